"""Export: the file computes what the detector does, or there is no file."""

import json

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from small import SIZE, Cells, Finder
from torch import nn
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.deploy.onnx import TOLERANCE, export_onnx
from paperlib.detectors.files import save_detector
from paperlib.pruning import apply_plan, plan_pruning


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "detector.onnx"


@pytest.fixture
def pruned(tiny_detector):
    whole = tiny_detector()
    return apply_plan(whole, plan_pruning(whole, 0.6), compensate="exact")


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]


def pictures(count, seed=7, size=SIZE):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def check_one_stage(detector, path, counts, size=SIZE):
    for count in counts:
        images = pictures(count, size=size)
        with torch.inference_mode():
            expected = detector.decode(detector.head_outputs(images), size)
        for found, wanted in zip(run(path, images), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_pruned_detector_gives_its_boxes_and_scores_for_any_number_of_images(pruned, path):
    detector = pruned.to(memory_format=torch.channels_last).train()
    assert 0 <= export_onnx(detector, path, SIZE, classes=("ship", "harbour", "plane")) <= TOLERANCE
    assert detector.training
    check_one_stage(detector.eval(), path, (1, 4))
    model = onnx.load(path)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert {"detector": "yolov4-tiny", "classes": '["ship", "harbour", "plane"]'}.items() <= said.items()
    assert json.loads(said["image_size"]) == [64, 96] and "paperlib" in said
    kinds = {node.op_type for node in model.graph.node}
    assert "Conv" in kinds and not kinds & {"BatchNormalization", "Shape", "If", "Loop"}
    assert __file__.rsplit("/", 2)[0].encode() not in path.read_bytes()


def test_a_chosen_number_of_images_is_part_of_the_file(path):
    detector = Cells().eval()
    export_onnx(detector, path, SIZE, batch_size=1)
    check_one_stage(detector, path, (1,))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        run(path, pictures(2))


class Curved(nn.Module):
    """Mish of the pixels; all values of a row are the boxes and the scores."""

    num_classes, image_multiple = SIZE[1], 1
    selection, score_threshold, max_detections = "nms", 0.005, 100

    def head_outputs(self, batch):
        return [F.mish(batch[:, 0])]

    def decode(self, outputs, image_size):
        return outputs[0], outputs[0]


@pytest.mark.parametrize("largest", [1.0, 25.0, 1e4])
def test_mish_is_exact_and_finite_for_all_values(path, largest):
    export_onnx(Curved(), path, SIZE, batch_size=1)
    assert "Softplus" not in {node.op_type for node in onnx.load(path).graph.node}
    x = torch.linspace(-largest, largest, 3 * SIZE[0] * SIZE[1]).view(1, 3, *SIZE)
    (found, _), exact = run(path, x), F.mish(x[:, 0].double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-9)


def test_a_two_stage_detector_finds_the_same_however_much_there_is(path):
    detector = Finder().eval()
    export_onnx(detector, path, SIZE)
    counts = set()
    for seed in range(5):
        image = pictures(1, seed) * seed  # the first is black
        (expected,) = detector(image)
        found = run(path, image)
        counts.add(len(found[0]))
        for name, value in zip(("boxes", "labels", "scores"), found, strict=True):
            torch.testing.assert_close(value, expected[name].detach(), rtol=1e-4, atol=1e-4)
    assert len(counts) > 1


@pytest.mark.parametrize(
    ("detector", "options", "fault"),
    [
        (Cells(noise=0.1), {}, "not written, because ONNX Runtime and PyTorch differ by"),
        (Finder(forgetful=True), {}, "not written, because ONNX Runtime and PyTorch differ by"),
        (Cells(), {"image_size": (64, 100)}, "64 x 100: the sides are not multiples of 8"),
        (Cells(), {"image_size": 0}, "0 x 0: the sides"),
        (Cells(), {"batch_size": 0}, "batch_size 0 must be ≥ 1"),
        (Cells(), {"classes": ["ship"]}, "1 names of classes for a detector of 2"),
        (Finder(), {"batch_size": 2}, "one image at a time"),
    ],
)
def test_a_refused_export_leaves_the_file_as_it_was(path, detector, options, fault):
    path.parent.mkdir()
    path.write_text("older")
    with pytest.raises(ValueError, match=fault):
        export_onnx(detector, path, **{"image_size": SIZE, **options})
    assert [each.read_text() for each in path.parent.iterdir()] == ["older"]


def test_the_command_writes_a_whole_detector_or_one_line(tiny_detector, tmp_path):
    source, target = tmp_path / "detector.safetensors", tmp_path / "out.onnx"
    detector = tiny_detector().eval()
    save_detector(detector, source)
    runner = CliRunner()
    for arguments, fault in (
        ([tmp_path / "none.safetensors", target], "no such detector file"),
        ([source, target, "--image-size", "100"], "not multiples of 32"),
        ([source, target, "--classes", "ship,plane"], "2 names of classes for a detector of 3"),
    ):
        refused = runner.invoke(app, ["export", *map(str, arguments)])
        assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert refused.stderr.startswith("paperlib: ") and fault in refused.stderr
    assert not target.exists()
    written = runner.invoke(app, ["export", str(source), str(target), "--image-size", "64"])
    assert written.exit_code == 0 and written.stdout.startswith(f"{target}: 64 x 64")
    check_one_stage(detector, target, (1, 4), (64, 64))
