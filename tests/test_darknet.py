"""Official weights: the outputs of an independent reader, and files that do not fit leave the detector untouched."""

import io
import zipfile

import numpy as np
import pytest
import tiny
import torch
from conftest import YOLOS, same, snapshot
from torch import Tensor, nn

from paperlib.detectors import (
    build_detector,
    count_darknet_classes,
    find_coco_rows,
    load_darknet_weights,
    transfer_coco_weights,
)
from paperlib.detectors.blocks import ConvBlock
from paperlib.detectors.files import load_detector
from paperlib.network_files import load_network
from paperlib.pruning import Sparsity, apply_plan, plan_pruning
from paperlib.store.store import Store
from paperlib.workbench.options import Blueprint
from paperlib.workbench.steps import Workbench

WIDE_HEADER = np.array([0, 2, 5, 7, 0], dtype="<i4").tobytes()
NARROW_HEADER = np.array([0, 1, 0, 7], dtype="<i4").tobytes()


def values_of(detector: nn.Module) -> np.ndarray:
    """All values in the order of a Darknet file, each kind of layer spelled out."""
    tensors: list[Tensor] = []
    for module in detector.modules():
        if isinstance(module, ConvBlock):
            norm = module.bn
            tensors += [norm.bias, norm.weight, norm.running_mean, norm.running_var, module.conv.weight]
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            tensors += [module.bias, module.weight]
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()


# --- the official network -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut_416", "coffee_416", "coffee_320"])
def test_official_weights_give_the_outputs_of_an_independent_reader(coco_weights, data_root, name):
    path = data_root.parent / "reference" / "yolov4_tiny_coco_opencv.npz"
    if not path.is_file():
        pytest.skip(f"no reference outputs: {path}")
    reference = np.load(path)
    detector = build_detector("yolov4-tiny", 80).eval()
    load_darknet_weights(detector, coco_weights)
    image = torch.from_numpy(reference[f"{name}_image"]).permute(2, 0, 1)[None].float() / 255
    rows = torch.from_numpy(reference[f"{name}_rows"])
    side = image.shape[-1]

    with torch.no_grad():
        outputs = detector.head_outputs(image)
        boxes, scores = detector.decode(outputs, (side, side))
    found = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)[0] / side
    objectness = torch.cat([o.permute(0, 2, 3, 1).reshape(-1, 85)[:, 4] for o in outputs]).sigmoid()
    # The other reader writes a score of 0.2 or less as 0: leave out what rounding may put on either side.
    comparable = (scores[0] - 0.2).abs() > 1e-4
    expected = scores[0].where(scores[0] > 0.2, torch.zeros(()))

    torch.testing.assert_close(found, rows[:, :4], atol=1e-4, rtol=0)
    torch.testing.assert_close(objectness, rows[:, 4], atol=1e-4, rtol=0)
    torch.testing.assert_close(expected[comparable], rows[:, 5:][comparable], atol=1e-4, rtol=0)
    assert (rows[:, 5:] > 0.2).any()


@pytest.mark.parametrize("header", [WIDE_HEADER, NARROW_HEADER])
def test_a_darknet_file_fills_every_tensor(tiny_detector, tmp_path, header):
    source, target = tiny_detector(seed=1), tiny_detector(seed=2)
    path = tmp_path / "tiny.weights"
    path.write_bytes(header + values_of(source).tobytes())
    load_darknet_weights(target, path)
    assert same(snapshot(target), snapshot(source))


@pytest.mark.parametrize(
    ("damage", "held"),
    [
        (lambda content: content[:-4], "{all_but_one} float32 values after a header of 20 bytes (version 0.2)"),
        (lambda content: content + b"\0\0\0\0", "{one_more} float32 values after a header of 20 bytes (version 0.2)"),
        (lambda content: content[:-2], "{all_but_one} float32 values and 2 bytes of another after a header of 20"),
        (lambda content: NARROW_HEADER + content[20:-4], "{all_but_one} float32 values after a header of 16 bytes"),
        (lambda content: NARROW_HEADER + content[20:] + b"\0\0\0\0", "{one_more} float32 values after a header of 16"),
        (lambda content: content[:11], "0 float32 values after"),
        (lambda content: b"", "0 float32 values after"),
        (lambda content: b"\xff\xff\xff\x7f" * 9, "4 float32 values after"),
    ],
    ids=[
        "cut",
        "too-long",
        "inside-a-value",
        "narrow-cut",
        "narrow-too-long",
        "inside-the-header",
        "empty",
        "another-kind",
    ],
)
def test_a_darknet_file_that_does_not_fit_is_refused_with_both_counts(tiny_detector, tmp_path, damage, held):
    detector, path = tiny_detector(), tmp_path / "tiny.weights"
    before, count = snapshot(detector), len(values_of(detector))
    path.write_bytes(damage(WIDE_HEADER + values_of(tiny_detector(seed=1)).tobytes()))
    with pytest.raises(ValueError) as caught:
        load_darknet_weights(detector, path)
    held = held.format(all_but_one=count - 1, one_more=count + 1)
    assert str(caught.value).startswith(f"{path}: holds {held}")
    assert str(caught.value).endswith(f"; YoloV4Tiny needs {count}")
    assert same(snapshot(detector), before)


def test_a_darknet_file_of_other_classes_is_refused_with_both_counts(tiny_detector, tmp_path):
    detector, path = tiny_detector(4), tmp_path / "three.weights"
    counts = len(values_of(tiny_detector(3))), len(values_of(detector))
    path.write_bytes(WIDE_HEADER + values_of(tiny_detector(3)).tobytes())
    with pytest.raises(ValueError, match=f"{counts[0]} float32 values .*; YoloV4Tiny needs {counts[1]}"):
        load_darknet_weights(detector, path)
    with pytest.raises(FileNotFoundError, match=r"none\.weights"):
        load_darknet_weights(detector, tmp_path / "none.weights")


@pytest.mark.parametrize("name", YOLOS)
def test_transfer_takes_everything_but_the_class_outputs(tiny_detector, tmp_path, name):
    source, target = tiny_detector(80, seed=1, name=name), tiny_detector(10, seed=2, name=name)
    path = tmp_path / "coco.weights"
    path.write_bytes(WIDE_HEADER + values_of(source).tobytes())
    before, given = snapshot(target), snapshot(source)
    transfer_coco_weights(target, path)
    for name, value in snapshot(target).items():
        if "_out." not in name:
            assert torch.equal(value, given[name]), name
            continue
        rows, fresh = value.unflatten(0, (3, 15)), before[name].unflatten(0, (3, 15))
        assert torch.equal(rows[:, :5], given[name].unflatten(0, (3, 85))[:, :5]), name
        assert torch.equal(rows[:, 5:], fresh[:, 5:]), name


def test_transfer_to_a_pruned_detector_is_refused(tiny_detector, tmp_path):
    whole, path = tiny_detector(80), tmp_path / "coco.weights"
    path.write_bytes(WIDE_HEADER + values_of(whole).tobytes())
    pruned = apply_plan(whole, plan_pruning(whole, 0.5))
    before = snapshot(pruned)
    with pytest.raises(ValueError, match="pruned"):
        transfer_coco_weights(pruned, path)
    assert same(snapshot(pruned), before)


# --- files of other classes and of other programs -------------------------------------------------------

COUNT = 32013312
HEADERS_OF_PORTS = {
    "no-version-wide": np.array([0, 0, 0, COUNT, 0], dtype="<i4"),
    "0.1-wide": np.array([0, 1, 0, COUNT, 0], dtype="<i4"),
    "0.2-narrow": np.array([0, 2, 5, COUNT], dtype="<i4"),
}


@pytest.mark.parametrize("header", HEADERS_OF_PORTS.values(), ids=HEADERS_OF_PORTS)
def test_a_header_of_another_length_than_its_version_says_is_recognised(tiny_detector, tmp_path, header):
    source, target = tiny_detector(seed=1), tiny_detector(seed=2)
    values = values_of(source)
    values[0] = 0.5  # the first bias of a trained detector, which is never zero
    path = tmp_path / "port.weights"
    path.write_bytes(header.tobytes() + values.tobytes())
    load_darknet_weights(target, path)
    assert np.array_equal(values_of(target), values)


@pytest.mark.parametrize(("name", "classes"), [*((name, 7) for name in YOLOS), ("yolov4-tiny", 1), ("yolov4-tiny", 80)])
def test_the_number_of_classes_follows_from_the_number_of_values(tiny_detector, tmp_path, name, classes):
    source = tiny_detector(classes, seed=1, name=name)
    path, shape = tmp_path / "own.weights", {key: source.build_arguments[key] for key in ("width", "depth")}
    path.write_bytes(WIDE_HEADER + values_of(source).tobytes())
    assert count_darknet_classes(path, name, **shape) == classes
    target = tiny_detector(classes, seed=2, name=name)
    transfer_coco_weights(target, path)
    assert same(snapshot(target), snapshot(source))
    path.write_bytes(path.read_bytes()[:-4])
    assert count_darknet_classes(path, name, **shape) is None


def zipped(name):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr(name, bytes(99))
    return archive.getvalue()


FOREIGN = {
    "checkpoint.pt": (b"PK\x03\x04" + bytes(99), "is a PyTorch file, .* pl.save_detector"),
    "yolov3.weights": (b"PK\x03\x04" + bytes(99), "is a PyTorch file"),
    "old.pth": (b"\x80\x02}q\0.", "is a PyTorch file"),
    "third.weights": (b"\x80\x03}q\0.", "is a PyTorch file"),
    "arrays.weights": (b"\x93NUMPY\1\0" + bytes(99), "is a NumPy file"),
    "packed.weights": (zipped("yolov4-tiny.weights"), "is a ZIP archive"),
    "mobile.weights": (b"\x1c\0\0\0TFL3" + bytes(99), "is a TensorFlow Lite file"),
    "pointer.weights": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    "download.weights": (b"<!DOCTYPE html>", "is a web page"),
    "notes.weights": (b"# yolov4\n[net]\n", "is text, not weights"),
    "odd.PTH": (b"anything", "is a PyTorch file"),
    "keras.h5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "network.onnx": (b"\x08\x07", "is an ONNX file"),
    "yolov4-tiny.cfg": (b"[net]\nbatch=1\n", "is a Darknet configuration"),
}


@pytest.mark.parametrize(("name", "content", "kind"), [(name, *rest) for name, rest in FOREIGN.items()], ids=FOREIGN)
def test_a_file_of_another_program_is_named_and_not_read(tiny_detector, tmp_path, name, content, kind):
    path = tmp_path / name
    path.write_bytes(content)
    own = lambda file: load_network(file, build=tiny_detector)  # noqa: E731
    for read in (load_detector, own, lambda file: load_darknet_weights(tiny_detector(), file)):
        with pytest.raises(ValueError, match=kind) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_class_outputs_of_chosen_classes_start_from_those_of_coco(tiny_detector, tmp_path):
    source, target = tiny_detector(80, seed=1), tiny_detector(3, seed=2)
    path = tmp_path / "coco.weights"
    path.write_bytes(WIDE_HEADER + values_of(source).tobytes())
    before, given = snapshot(target), snapshot(source)
    rows = find_coco_rows({"plane": "airplane", "vehicle": "car"}, ("plane", "ship", "vehicle"))
    assert rows == {0: 4, 2: 2}
    transfer_coco_weights(target, path, rows)
    for name in (key for key in before if "_out." in key):
        loaded, fresh = (values[name].unflatten(0, (3, 8)) for values in (snapshot(target), before))
        coco = given[name].unflatten(0, (3, 85))
        assert torch.equal(loaded[:, [5, 7]], coco[:, [9, 7]])
        assert torch.equal(loaded[:, 6], fresh[:, 6])


@pytest.mark.parametrize("pairs", [{"boat": "boat"}, {"ship": "ship"}])
def test_a_class_that_one_side_lacks_is_named(pairs):
    with pytest.raises(ValueError, match=f"coco_rows: '{next(iter(pairs))}' is no class of"):
        find_coco_rows(pairs, ("ship",))


def test_chosen_classes_start_from_those_of_coco_in_a_step_too(tmp_path):
    source, weights = tiny.detector(seed=1, num_classes=80), tmp_path / "coco.weights"
    weights.write_bytes(WIDE_HEADER + values_of(source).tobytes())
    rows = {tiny.dataset().classes[0]: "airplane"}
    blueprint = Blueprint("yolov4-tiny", 0.1, anchors=tiny.ANCHORS, weights=weights, coco_rows=rows)
    recipe = tiny.recipe()
    splits = (tiny.dataset(), tiny.dataset("val", 4), None)
    made = Workbench(
        *splits, blueprint, recipe, recipe, Sparsity(0.01), store=Store(tmp_path / "store")
    ).build_detector()
    found, given = snapshot(made.detector()), snapshot(source)
    for name in (key for key in found if "_out." in key):
        assert torch.equal(found[name].unflatten(0, (3, -1))[:, 5], given[name].unflatten(0, (3, 85))[:, 9])
