"""A file in 8-bit integers is smaller, says what it is, and is chosen by its accuracy on validation data."""

import numpy as np
import onnx
import pytest
import tiny
import torch
from small import Cells
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import paperlib as pl
from paperlib.cli.main import app
from paperlib.deploy import int8
from paperlib.deploy.description import Description
from paperlib.deploy.mish import PREFIX
from paperlib.deploy.onnx import export_onnx, open_onnx_session

USE = Description(classes=tiny.CLASSES, image_size=tiny.SIDE, confidence=0.02)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "detector.onnx"
    detector = tiny.detector(width=0.25).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for norm in (module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    export_onnx(detector, path, tiny.SIDE, description=USE)
    return path


def has_int8_heads(path):
    """Return whether the weights of the output convolutions are stored in 8 bits."""
    graph = onnx.load(path).graph
    heads = int8.last_convolutions(graph)
    makers = {output: node.op_type for node in graph.node for output in node.output}
    return all("DequantizeLinear" == makers.get(node.input[1]) for node in graph.node if node.name in heads)


def test_the_file_is_smaller_describes_itself_and_finds_nearly_the_same(model, tmp_path):
    made = int8.quantise(model, tmp_path / "int8.onnx", tiny.dataset())
    assert made.way == int8.Way(True) and made.int8 is None
    assert made.path.stat().st_size < 0.5 * model.stat().st_size
    # The first convolution stays in float32, with its activation; nothing else does, before the heads.
    graph = onnx.load(made.path).graph
    weights = {weight.name for weight in graph.initializer}
    assert [node.input[1] in weights for node in graph.node if node.op_type == "Conv"].index(False) == 1
    opened = pl.open_model(made.path)
    assert opened.description.classes == USE.classes
    kept = {entry.key: entry.value for entry in onnx.load(made.path).metadata_props}
    assert kept["precision"] == "int8"
    scores = {}
    for name, file in (("float32", model), ("int8", made.path)):
        session = open_onnx_session(file, 1)
        images = tiny.dataset().letterboxed(tiny.SIDE).images[:4].numpy().astype(np.float32) / 255
        boxes, scores[name] = session.run(None, {"images": images})
        assert np.isfinite(boxes).all()
    assert np.corrcoef(scores["float32"].ravel(), scores["int8"].ravel())[0, 1] > 0.9


class Curved(Cells):
    """Two convolutions with Mish between them."""

    num_classes = len(tiny.CLASSES)

    def __init__(self):
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 4 + self.num_classes, 1)

    def head_outputs(self, batch):
        return [self.conv(F.mish(self.first(batch)))]


def test_the_exponential_of_mish_stays_in_float32(tmp_path):
    detector = Curved().eval()
    export_onnx(detector, tmp_path / "mish.onnx", tiny.SIDE, description=USE)
    made = int8.quantise(tmp_path / "mish.onnx", tmp_path / "int8.onnx", tiny.dataset(), count=1)
    nodes = onnx.load(made.path).graph.node
    quantised = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    formula = [node for node in nodes if node.name.startswith(PREFIX) and node.op_type != "Constant"]
    inner = {node.output[0] for node in formula if not node.name.startswith(f"{PREFIX}product")}
    assert inner and not inner & quantised


def test_of_all_ways_the_most_accurate_is_kept_and_slow_ones_are_tried_only_if_needed(model, tmp_path, monkeypatch):
    def judge(file, validation, side):
        accuracy = {"way_0.onnx": 0.5, "way_1.onnx": better, "way_2.onnx": 0.4, "way_3.onnx": slow}.get(file.name, 0.6)
        return pl.Metrics(accuracy, 0, 0, 0, 0, {})

    monkeypatch.setattr(int8, "_judge", judge)
    for better, slow, way in (
        (0.5, 0.4, int8.Way(True)),
        (0.55, 0.4, int8.Way(False)),
        (0.595, 0.6, int8.Way(False)),  # close enough: other calibrations are not tried
        (0.5, 0.58, int8.Way(True, "entropy")),
    ):
        made = int8.quantise(model, tmp_path / "int8.onnx", tiny.dataset(), validation=tiny.dataset("val"))
        assert made.way == way
        assert made.int8.map50 == (slow if way.calibration == "entropy" else better) and made.float32.map50 == 0.6
        assert has_int8_heads(made.path) is not way.float_heads


def test_what_cannot_be_quantised_is_named_and_nothing_is_written(model, tmp_path):
    target = tmp_path / "out.onnx"
    made = int8.quantise(model, tmp_path / "int8.onnx", tiny.dataset()).path
    empty = tiny.dataset().subset([], "empty")
    text = tmp_path / "text.onnx"
    text.write_text("text")
    for source, images, fault in (
        (made, tiny.dataset(), "in 8-bit integers already"),
        (model, empty, "no images"),
        (text, tiny.dataset(), "no whole ONNX file"),
    ):
        with pytest.raises(ValueError, match=fault):
            int8.quantise(source, target, images)
    other = tiny.dataset("val")
    other.classes = other.classes[::-1]
    with pytest.raises(ValueError, match="its classes are not those of"):
        int8.quantise(model, target, tiny.dataset(), validation=other)
    assert not target.exists()
    for arguments in (["none.onnx", "x.onnx", "--data", "toy-aerial"], [str(model), "x.onnx", "--data", "none.json"]):
        refused = CliRunner().invoke(app, ["quantise", *arguments])
        assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
