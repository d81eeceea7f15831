"""Export: the file computes what the detector does, or there is no file."""

import json

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision.ops import nms

from paperlib.export import TOLERANCE, export_onnx
from paperlib.pruning import apply_plan, plan_pruning

SIZE = (64, 96)


class Cells(nn.Module):
    """The smallest one-stage detector: each cell of 8 pixels says a box and two scores."""

    num_classes = 2

    def __init__(self, noise=0.0):
        super().__init__()
        self.conv, self.noise = nn.Conv2d(3, 6, 8, 8), noise

    def head_outputs(self, batch):
        outputs = self.conv(batch)
        return [outputs + self.noise * torch.rand_like(outputs)]

    def decode(self, outputs, image_size):
        if outputs[0].shape[2:] != (image_size[0] / 8, image_size[1] / 8):
            raise ValueError(f"no image of {image_size}")
        table = outputs[0].flatten(2).transpose(1, 2)
        return 100 * table[..., :4], table[..., 4:].sigmoid()


class Finder(nn.Module):
    """The smallest two-stage detector: how many boxes it finds depends on the image."""

    num_classes = 2

    def __init__(self, forgetful=False):
        super().__init__()
        self.cells, self.forgetful = Cells(), forgetful

    def forward(self, images):
        return [self.find(image) for image in images]

    def find(self, image):
        boxes, scores = (value[0] for value in self.cells.decode(self.cells.head_outputs(image[None]), SIZE))
        score, label = scores.max(1)
        row = (score > 0.5).nonzero()[:, 0]
        if self.forgetful:
            boxes = boxes + len(row.tolist())  # a number that a tracer takes for constant
        boxes = torch.cat([boxes[row, :2], boxes[row, :2] + boxes[row, 2:].abs()], 1)
        kept = nms(boxes, score[row], 0.5)
        return {"boxes": boxes[kept], "labels": label[row][kept] + 1, "scores": score[row][kept]}


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


def pictures(count, seed=7):
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def check_one_stage(detector, path, counts):
    for count in counts:
        with torch.inference_mode():
            expected = detector.decode(detector.head_outputs(pictures(count)), SIZE)
        for found, wanted in zip(run(path, pictures(count)), expected, strict=True):
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


def test_a_whole_detector_gives_its_boxes_and_scores_for_a_chosen_number_of_images(tiny_detector, path):
    detector = tiny_detector().eval()
    assert export_onnx(detector, path, SIZE, batch_size=1) <= TOLERANCE
    check_one_stage(detector, path, (1,))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        run(path, pictures(2))


def test_a_two_stage_detector_finds_the_same_however_much_there_is(path):
    detector = Finder().eval()
    export_onnx(detector, path, SIZE)
    counts = set()
    for seed in range(5):
        image = pictures(1, seed) * seed  # the first is black
        (expected,) = detector(list(image))
        found = run(path, image)
        counts.add(len(found[0]))
        for name, value in zip(("boxes", "labels", "scores"), found, strict=True):
            torch.testing.assert_close(value, expected[name].detach(), rtol=1e-4, atol=1e-4)
    assert len(counts) > 1


@pytest.mark.parametrize(
    ("detector", "options", "fault"),
    [
        (Cells(noise=0.1), {}, "not written, for ONNX Runtime and PyTorch differ by"),
        (Finder(forgetful=True), {}, "not written, for ONNX Runtime and PyTorch differ by"),
        (Cells(), {"image_size": 100}, "no image of"),
        (Cells(), {"image_size": 4}, "Cells cannot take 4 x 4 pixels"),
        (Cells(), {"image_size": 0}, "0 x 0"),
        (Cells(), {"batch_size": 0}, "batch_size 0 is not at least 1"),
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
