"""Classifiers of scenes: torchvision's networks to the bit, exact surgery, files, COCO weights, deployment."""

import json

import numpy as np
import onnx
import pytest
import torch
from conftest import same, snapshot
from test_darknet import WIDE_HEADER, values_of
from torch import Tensor, nn
from torchvision.models import resnet50, resnet101, vgg16_bn
from torchvision.models.resnet import Bottleneck, ResNet
from typer.testing import CliRunner

from paperlib.classifiers import CLASSIFIERS, FAMILY, build_classifier, transfer_coco_weights
from paperlib.cli.main import app
from paperlib.costs import cost
from paperlib.deploy.latency import latency
from paperlib.deploy.onnx import INPUT, export_onnx, open_onnx_session
from paperlib.detectors import build_detector
from paperlib.detectors.files import load_detector, save_detector
from paperlib.network_files import load_network, save_network
from paperlib.pairs import find_partners
from paperlib.partners.extend import extend
from paperlib.partners.fuse import fuse
from paperlib.pruning import apply_plan, mask_plan, plan_pruning
from paperlib.structure import describe_structure, shapes_only

SIDE = 32
SMALL = {
    "resnet50": {"width": 0.125, "depth": 0.2, "stem_stride": 2},
    "resnet101": {"width": 0.125, "depth": 0.1},
    "vgg16-bn": {"width": 0.125},
    "yolov4-tiny-trunk": {"width": 0.125},
}


def small(name: str = "yolov4-tiny-trunk", seed: int = 0) -> nn.Module:
    """A narrow classifier of five classes with batch norms as unlike as training leaves them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_classifier(name, 5, **SMALL[name])
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.2, 1.0)
            nn.init.normal_(norm.bias, std=0.3)
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return net.eval()


@torch.no_grad()
def logits_of(net: nn.Module) -> Tensor:
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return net(images.to(next(net.parameters()).dtype))


def difference(net: nn.Module, other: nn.Module) -> float:
    """The largest difference of the logits, relative to the largest logit."""
    expected = logits_of(net)
    return float((logits_of(other) - expected).abs().max() / expected.abs().max())


def test_weights_of_torchvision_load_and_compute_the_same() -> None:
    theirs = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5).eval()
    ours = build_classifier("resnet50", 5, depth=0.2).eval()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(logits_of(ours), logits_of(theirs))

    with shapes_only():
        expected = {"resnet50": resnet50(), "resnet101": resnet101(), "vgg16-bn": vgg16_bn().features}
        built = {name: build_classifier(name, 1000) for name in expected}
    built["vgg16-bn"] = built["vgg16-bn"].features
    for name, net in expected.items():
        shapes = {key: value.shape for key, value in net.state_dict().items()}
        assert {key: value.shape for key, value in built[name].state_dict().items()} == shapes, name


def test_a_small_stem_has_the_same_weights_and_twice_the_resolution() -> None:
    nets = [build_classifier("resnet50", 5, **{**SMALL["resnet50"], "stem_stride": stride}) for stride in (4, 2)]
    nets[1].load_state_dict(nets[0].state_dict())
    sides = [[stage.shape[-1] for stage in net.stages(torch.rand(1, 3, 64, 64))] for net in nets]
    assert sides == [[16, 8, 4, 2], [32, 16, 8, 4]]


@pytest.mark.parametrize(
    ("name", "classes", "options", "fault"),
    [
        ("resnet34", 5, {}, "unknown classifier 'resnet34'; known: resnet50, resnet101, vgg16-bn, yolov4-tiny-trunk"),
        ("resnet50", 0, {}, "a classifier needs at least 1 class, not 0"),
        ("resnet50", 5, {"width": 0}, "width 0 is not positive"),
        ("resnet50", 5, {"stem_stride": 3}, "stem_stride 3 is not one of 4, 2"),
        ("vgg16-bn", 5, {"depth": 2.0}, "vgg16-bn has no depth to choose"),
        ("vgg16-bn", 5, {"stem_stride": 2}, "vgg16-bn has no stem_stride to choose"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, classes, options, fault) -> None:
    with pytest.raises(ValueError) as caught:
        build_classifier(name, classes, **options)
    assert str(caught.value) == fault


IMAGES, LABELS = torch.rand(2, 3, SIDE, SIDE), torch.tensor([0, 4])


@pytest.mark.parametrize(
    ("images", "targets", "fault"),
    [
        (IMAGES, None, "a classifier in training mode needs targets"),
        (IMAGES, LABELS.int(), r"targets are torch.int32 \[2\]; 2 images need one class each, int64 \[2\]"),
        (IMAGES, LABELS[:1], r"targets are torch.int64 \[1\]; 2 images need one class each, int64 \[2\]"),
        (IMAGES, [{"boxes": None}] * 2, r"targets are list; 2 images need one class each"),
        ([IMAGES[0], IMAGES[1, :, :16]], LABELS, r"images of different sizes, such as \(32, 32\) and \(16, 32\)"),
        (IMAGES[:, :1], LABELS, r"image 0 is torch.float32 \[1, 32, 32\]; expected floating point \[3, H, W\]"),
    ],
)
def test_a_wrong_batch_is_refused_in_one_line(images, targets, fault) -> None:
    with pytest.raises(ValueError, match=fault):
        small().train()(images, targets)


def test_the_loss_is_the_cross_entropy() -> None:
    net = small().train()
    losses = net(IMAGES, LABELS)
    torch.testing.assert_close(losses, {"classes": -net.logits(IMAGES).log_softmax(1)[[0, 1], LABELS].mean()})
    with pytest.raises(ValueError, match="a detector needs boxes to learn from; these targets are classes of scenes"):
        build_detector("yolov4-tiny", 5, width=0.125)(torch.rand(2, 3, 64, 64), LABELS)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_pruned_extended_and_fused_it_computes_the_same(name) -> None:
    net = small(name).double()
    plan = plan_pruning(net, 0.4, image_size=SIDE)
    pruned = apply_plan(net, plan, compensate="exact")
    assert difference(mask_plan(net, plan, keep_beta=True), pruned) < 1e-10
    uncompensated = apply_plan(net, plan, compensate="off")
    assert difference(mask_plan(net, plan), uncompensated) < 1e-10
    assert cost(uncompensated, SIDE) == plan.cost_after
    extended = extend(pruned)
    assert torch.equal(logits_of(extended), logits_of(pruned))
    fused = fuse(extended)
    assert difference(pruned, fused) < 1e-12
    assert describe_structure(fused) == describe_structure(pruned)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_pruned_classifier_is_loaded_as_it_was_saved(name, tmp_path) -> None:
    net = small(name)
    pruned = apply_plan(net, plan_pruning(net, 0.5, layers=int(name == "resnet101"), image_size=SIDE))
    save_network(pruned, tmp_path / "net.safetensors")
    loaded = load_network(tmp_path / "net.safetensors")
    assert type(loaded) is type(net) and not loaded.training
    assert loaded.build_arguments == pruned.build_arguments
    assert same(snapshot(loaded), snapshot(pruned))
    assert torch.equal(logits_of(loaded), logits_of(pruned))
    save_network(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "net.safetensors").read_bytes()


def test_each_kind_of_file_is_what_it_says(tmp_path) -> None:
    detector, classifier = tmp_path / "detector.safetensors", tmp_path / "classifier.safetensors"
    save_network(build_detector("yolov4-tiny", 3, width=0.125), detector)
    save_network(small(), classifier)
    assert type(load_network(detector)) is type(load_detector(detector))
    with pytest.raises(ValueError, match="does not say 'paperlib-detector-1'; it is no detector of this package"):
        load_detector(classifier)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(classifier.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"^{damaged}: not a whole safetensors file"):
        load_network(damaged)
    damaged.write_bytes(classifier.read_bytes().replace(b"paperlib-classifier-1", b"paperlib-classifier-2"))
    with pytest.raises(ValueError, match="'paperlib-detector-1' or 'paperlib-classifier-1'; it is no network of this"):
        load_network(damaged)
    damaged.write_bytes(classifier.read_bytes().replace(b'num_classes\\": 5', b'num_classes\\": 6'))
    with pytest.raises(ValueError, match="its structure was edited after it was written"):
        load_network(damaged)
    with pytest.raises(FileNotFoundError, match="none: no such network file"):
        load_network(tmp_path / "none")
    with pytest.raises(ValueError, match="^ReLU was not made by build_detector or load_detector"):
        save_detector(nn.ReLU(), damaged)


def test_the_trunk_takes_the_official_weights_of_the_detector(tmp_path) -> None:
    detector = build_detector("yolov4-tiny", 80, width=0.125)
    for norm in (m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean)
    path = tmp_path / "some.weights"
    path.write_bytes(WIDE_HEADER + values_of(detector).astype("<f4").tobytes())
    net = small()
    before = snapshot(net)
    transfer_coco_weights(net, path)
    theirs, ours = detector.state_dict(), snapshot(net)
    trunk = [name for name in ours if not name.startswith("fc.")]
    assert all(torch.equal(ours[name], theirs[name]) or name.endswith("num_batches_tracked") for name in trunk)
    assert same({"w": ours["fc.weight"], "b": ours["fc.bias"]}, {"w": before["fc.weight"], "b": before["fc.bias"]})
    with pytest.raises(ValueError, match="there are no COCO weights for resnet50; only for yolov4-tiny-trunk"):
        transfer_coco_weights(small("resnet50"), path)
    with pytest.raises(ValueError, match="official weights fit an unpruned classifier only"):
        transfer_coco_weights(apply_plan(net, plan_pruning(net, 0.5, image_size=SIDE)), path)
    with pytest.raises(ValueError, match=r"holds \d+ float32 values .*; YoloV4Tiny needs"):
        transfer_coco_weights(build_classifier("yolov4-tiny-trunk", 5, width=0.25), path)


def test_the_official_file_fits_the_full_trunk(coco_weights) -> None:
    net = build_classifier("yolov4-tiny-trunk", 12)
    transfer_coco_weights(net, coco_weights)
    assert bool((net.stem1.bn.running_var != 1).all())


def test_onnx_runtime_gives_the_same_logits_for_any_number_of_images(tmp_path) -> None:
    net, path = small("vgg16-bn"), tmp_path / "net.onnx"
    names = ["sea", "park", "works", "town", "Straße"]
    save_network(net, tmp_path / "net.safetensors")
    files = [str(tmp_path / "net.safetensors"), str(path)]
    result = CliRunner().invoke(app, ["export", *files, "--image-size", str(SIDE), "--classes", ",".join(names)])
    assert result.exit_code == 0 and "largest difference from PyTorch" in result.stdout, result.stderr
    session = open_onnx_session(path, 1)
    assert [output.name for output in session.get_outputs()] == ["logits"]
    for count in (1, 4):
        images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))
        (found,) = session.run(["logits"], {INPUT: images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, net(images).numpy(), atol=1e-4)
    metadata = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert json.loads(metadata["classes"]) == names and metadata["detector"] == "vgg16-bn"
    assert "cut to the square" in metadata["preprocessing"] and "selection" not in metadata
    extended = extend(net)
    with pytest.raises(ValueError, match="still has a partner, which only training can use; fuse it first"):
        export_onnx(extended, tmp_path / "extended.onnx", SIDE)
    assert not (tmp_path / "extended.onnx").exists()
    with pytest.raises(ValueError, match="4 names of classes for a detector of 5"):
        export_onnx(net, tmp_path / "named.onnx", SIDE, classes=names[:4])


def test_the_time_of_an_image_has_no_suppression() -> None:
    measured = latency(small(), SIDE, seconds=0.01)
    assert measured.median_ms > 0 and measured.nms_ms is None


def test_shapes_alone_draw_no_random_number() -> None:
    state = torch.get_rng_state()
    net = FAMILY.build_without_weights(name="vgg16-bn", num_classes=45)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(find_partners(extend(net))) == 13
