"""Detectors in 8-bit integers: static quantisation of an ONNX file by ONNX Runtime, calibrated on pictures."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from paperlib.data.records import Dataset
from paperlib.deploy.mish import PREFIX
from paperlib.deploy.onnx import INPUT
from paperlib.deploy.runtime import open_model
from paperlib.evaluation.evaluate import evaluate
from paperlib.evaluation.metrics import Metrics
from paperlib.extras import needs_extra
from paperlib.files import replace_file

with needs_extra("runtimes"):
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

ACTIVATIONS = ("LeakyRelu", "Relu", "Sigmoid", "Tanh", "Mul")
QUANTISED = (*ACTIVATIONS, "Conv", "MaxPool", "AveragePool", "Concat", "Split", "Resize", "Add")
"""Operators that compute in 8 bits, where a convolution follows them; what decodes boxes stays in float32."""
FEW_CHANNELS = 4
"""Convolutions of at most so many input channels, such as the first one of a network, stay in float32: they do not fill
the blocks of an integer kernel, in which they take longer (YOLOv4-tiny: 4.4 ms instead of 1.7 ms)."""
CALIBRATION_IMAGES = 64
HISTOGRAM_IMAGES = 12
"""For calibrations by histograms, which hold all activations of all images in memory."""
TOLERATED = 0.01
"""mAP50 that may be lost before calibrations that take longer are tried."""
PRECISION = "precision"
"""The entry of a file's metadata that says `int8`."""


@dataclass(frozen=True)
class Way:
    """How a file is quantised.

    Attributes:
        float_heads: whether the output convolutions stay in float32.
        calibration: how the range of an activation follows from the calibration images: `minmax` takes in all of its
            values; `percentile` leaves out the largest, `entropy` those that matter least to the distribution.
    """

    float_heads: bool
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"


METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
USUAL = (Way(float_heads=True), Way(float_heads=False))
SLOW = (Way(float_heads=True, calibration="percentile"), Way(float_heads=True, calibration="entropy"))


@dataclass(frozen=True)
class Quantised:
    """A file in 8-bit integers.

    Attributes:
        path: the file.
        way: how it was quantised.
        float32, int8: the metrics on the validation data before and after; None if there were none to measure.
    """

    path: Path
    way: Way
    float32: Metrics | None = None
    int8: Metrics | None = None


def quantise(
    model: str | Path, target: str | Path, images: Dataset, *,
    validation: Dataset | None = None, count: int = CALIBRATION_IMAGES,
) -> Quantised:  # fmt: skip
    """Write a detector's ONNX file with 8-bit weights and activations, one scale per output channel of a weight.

    With validation data several ways are judged, and the file with the highest mAP50 is written: output convolutions in
    float32 and in 8 bits, and, if both lose more than `TOLERATED`, other calibrations. Without, the output convolutions
    stay in float32.

    Args:
        model: a file of `export_onnx`, of a one-stage detector.
        target: the file to write; complete or absent.
        images: calibrate the ranges of the activations; training images, never test images.
        validation: judges.
        count: number of calibration images, evenly spaced in the data set.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is no ONNX file of a one-stage detector, is in 8 bits already, there is no image, or the
            validation data have other classes.
    """
    model, target = Path(model), Path(target)
    side = _check_model(model, validation)
    if not len(images):
        raise ValueError(f"{images.name}: no images, nothing to calibrate with")
    chosen = images.subset(images.spaced_indices(count), images.name)
    squares = chosen.letterboxed(side).images.numpy()
    with tempfile.TemporaryDirectory(prefix="paperlib-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        with _quiet():
            quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        float32 = _judge(model, validation, side)
        best = max(_try_ways(prepared, squares, validation, side, float32), key=_accuracy)
        with replace_file(target) as partial:
            partial.write_bytes(best.path.read_bytes())
    return replace(best, path=target)


def write_for_timing(model: Path, pixels: np.ndarray) -> Path:
    """Write a file in 8-bit integers beside `model`, its ranges from images `[B, 3, H, W]` in [0, 1], unjudged."""
    prepared, target = (model.with_suffix(suffix) for suffix in (".prepared.onnx", ".int8.onnx"))
    with _quiet():
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    _write_int8(prepared, target, np.round(255 * pixels), Way(float_heads=True))
    return target


def _try_ways(
    prepared: Path, squares: np.ndarray, validation: Dataset | None, side: int, float32: Metrics | None
) -> list[Quantised]:  # fmt: skip
    """Return the files that were tried. Of equal accuracy the first counts: float32 loses nothing elsewhere either."""
    made: list[Quantised] = []
    for way in (*USUAL, *SLOW) if validation else USUAL[:1]:
        if float32 and len(made) >= len(USUAL) and max(map(_accuracy, made)) >= float32.map50 - TOLERATED:
            break
        file = prepared.with_name(f"way_{len(made)}.onnx")
        _write_int8(prepared, file, squares, way)
        made.append(Quantised(file, way, float32, _judge(file, validation, side)))
    return made


def _accuracy(made: Quantised) -> float:
    return made.int8.map50 if made.int8 else 0.0


def _check_model(model: Path, validation: Dataset | None) -> int:
    """Return the image size of a file that can be quantised."""
    use = open_model(model, "onnxruntime").description
    content = onnx.load(model)
    if any(entry.key == PRECISION for entry in content.metadata_props):
        raise ValueError(f"{model}: is in 8-bit integers already")
    if use is None or len(content.graph.output) != 2:
        raise ValueError(f"{model}: selects its detections itself (two stages, or --nms), which is not quantised")
    if validation and tuple(validation.classes) != use.classes:
        raise ValueError(f"{validation.name}: its classes are not those of {model}: {', '.join(use.classes)}")
    return use.image_size


def _judge(file: Path, validation: Dataset | None, side: int) -> Metrics | None:
    return evaluate(open_model(file).detector, validation, image_size=side) if validation else None


def _write_int8(prepared: Path, file: Path, squares: np.ndarray, way: Way) -> None:
    if way.calibration != "minmax":
        squares = squares[:: math.ceil(len(squares) / HISTOGRAM_IMAGES)]
    graph = onnx.load(prepared).graph
    heads = last_convolutions(graph)
    inner = _before_convolutions(graph)
    excluded = [node.name for node in graph.node if node.name not in inner and node.op_type != "Conv"]
    excluded += first_layers(graph) + [node.name for node in graph.node if node.name.startswith(PREFIX)]
    if way.float_heads:
        excluded += heads
    with _quiet():
        quantize_static(
            str(prepared), str(file), _Pictures(squares), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=list(QUANTISED), nodes_to_exclude=excluded,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=METHODS[way.calibration],
        )  # fmt: skip
    written = onnx.load(file)
    kept = {entry.key: entry.value for entry in onnx.load(prepared).metadata_props}
    onnx.helper.set_model_props(written, kept | {PRECISION: "int8"})
    onnx.save(written, file)


class _Pictures(CalibrationDataReader):
    """Gives calibration one picture after the other, float32 `[1, 3, S, S]` in [0, 1]."""

    def __init__(self, squares: np.ndarray) -> None:
        self._rest: Iterator[np.ndarray] = iter(squares)

    def get_next(self) -> Any:  # a dict or None, although the base class promises a dict
        """Return the next input, None after the last."""
        square = next(self._rest, None)
        return None if square is None else {INPUT: square[None].astype(np.float32) / 255}


def _before_convolutions(graph: onnx.GraphProto) -> set[str]:
    """Return the nodes from which a convolution can be reached."""
    makers = {output: node for node in graph.node for output in node.output}
    reached: set[str] = set()
    waiting = [name for node in graph.node if node.op_type == "Conv" for name in node.input]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in reached:
            reached.add(node.name)
            waiting += node.input
    return reached


def last_convolutions(graph: onnx.GraphProto) -> list[str]:
    """Return the convolutions whose output reaches no other convolution: those of the heads."""
    inner = _before_convolutions(graph)
    return [node.name for node in graph.node if node.op_type == "Conv" and node.name not in inner]


def first_layers(graph: onnx.GraphProto) -> list[str]:
    """Return the convolutions of few input channels, each with the activation after it, which is computed with it."""
    shapes = {weight.name: weight.dims for weight in graph.initializer}
    found: list[str] = []
    values: set[str] = set()
    for node in graph.node:  # every node stands after those whose outputs it takes
        weight = shapes.get(node.input[1]) if node.op_type == "Conv" else None
        grouped = any(each.name == "group" and each.i > 1 for each in node.attribute)
        narrow = weight is not None and weight[1] <= FEW_CHANNELS and not grouped
        follows = node.op_type in ACTIVATIONS and all(name in values for name in node.input)
        if narrow or follows:
            found.append(node.name)
            values.update(node.output)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the remarks of the quantiser off the terminal."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
