"""Detectors for deployment: an ONNX file is written only if ONNX Runtime answers as PyTorch does (Section 4.7)."""

from __future__ import annotations

import copy
import io
import json
import math
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from paperlib.classifiers.base import Classifier
from paperlib.deploy.description import PREPROCESSING, SCENE_PREPROCESSING, Description, describe_selection
from paperlib.deploy.mish import expand_mish
from paperlib.deploy.selection import SELECTED, add_selection
from paperlib.extras import load_later, needs_extra
from paperlib.files import replace_file
from paperlib.pairs import require_fused
from paperlib.store.provenance import package_version

if TYPE_CHECKING:
    import onnx
    import onnxruntime
else:
    onnx = load_later("runtimes", lambda: import_module("onnx"))
    onnxruntime = load_later("runtimes", lambda: import_module("onnxruntime"))

ImageSize = int | tuple[int, int]
"""`(H, W)` in pixels, or the side of a square."""
INPUT = "images"
OPSET = 18
IMAGE_MULTIPLE = 32
"""Sides of images are multiples of this many pixels, unless a detector defines another `image_multiple`."""
TOLERANCE = 1e-4
"""The largest difference from PyTorch that counts as rounding: of a score, or of a box in units of its largest
coordinate (at least 1 pixel)."""
SELECTION_TOLERANCE = 1e-3
"""The same for nine in ten detections, of a file that selects them."""


class OnePass(nn.Module):
    """A network without a second stage, for images of one size; a subclass defines `forward` and `outputs`."""

    outputs: tuple[str, ...]
    compared, agreeing = 2, 2
    """Random batches on which the graph is compared with PyTorch, and how many of them must agree."""

    def __init__(self, detector: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        self.image_size = image_size

    def max_difference(self, found: list[np.ndarray], expected: list[np.ndarray]) -> float:
        """Return the largest difference of a box, a score or logits (see `TOLERANCE`)."""
        return max(float(_relative_difference(*pair).max(initial=0.0)) for pair in zip(found, expected, strict=True))

    def trace_onnx(self, images: Tensor, any_number: bool) -> onnx.ModelProto:
        """Return the ONNX graph, for as many images as given or for `any_number` of images."""
        program = torch.onnx.export(
            self, (images,), dynamo=True, verbose=False, opset_version=OPSET, input_names=[INPUT],
            output_names=list(self.outputs), dynamic_shapes={INPUT: {0: "batch"}} if any_number else None,
        )  # fmt: skip
        return cast(torch.onnx.ONNXProgram, program).model_proto  # None only if a file is given


class OneStage(OnePass):
    """A one-stage detector up to non-maximum suppression."""

    outputs = ("boxes", "scores")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map `[B, 3, H, W]` to boxes `[B, R, 4]` in xyxy pixels and scores `[B, R, C]`."""
        return self.detector.decode(self.detector.head_outputs(images), self.image_size)


class SceneClassifier(OnePass):
    """A classifier of scenes."""

    outputs = ("logits",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map `[B, 3, H, W]` to logits `[B, C]`."""
        return (self.detector.logits(images),)


class TwoStage(nn.Module):
    """A two-stage detector from end to end, for one image of one size at a time."""

    outputs = ("boxes", "labels", "scores")
    compared, agreeing = 6, 3
    """Rounding decides which of two boxes with equal scores is suppressed, and untrained detectors have many."""

    def __init__(self, detector: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        self.image_size = image_size

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map `[1, 3, H, W]` to boxes `[N, 4]` in xyxy pixels, labels `[N]` in 1..C and scores `[N]`."""
        (found,) = self.detector(images)
        return tuple(found[name] for name in self.outputs)

    def max_difference(self, found: list[np.ndarray], expected: list[np.ndarray]) -> float:
        """Return how far nine in ten detections are from the other side's."""
        return _detection_distance(found, expected)

    def trace_onnx(self, images: Tensor, any_number: bool = False) -> onnx.ModelProto:
        """Return the ONNX graph, for one image."""
        # The older exporter, because torch.export cannot follow torchvision's branches on the number of boxes.
        file = io.BytesIO()
        torch.onnx.export(
            self, (images,), cast(str, file), dynamo=False, opset_version=OPSET, input_names=[INPUT],
            output_names=list(self.outputs), dynamic_axes={name: {0: "detections"} for name in self.outputs},
        )  # fmt: skip
        return onnx.load_from_string(file.getvalue())


Deployable = OneStage | SceneClassifier | TwoStage


def make_deployable(detector: nn.Module, image_size: ImageSize) -> Deployable:
    """Copy the part of a network that is deployed, in evaluation mode and float32 on the CPU.

    Args:
        detector: untouched; a classifier of this package, or a detector, which has one stage if it has `decode`.
        image_size: size of the images that it will process.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    kind: type[Deployable] = OneStage if hasattr(detector, "decode") else TwoStage
    if isinstance(detector, Classifier):
        kind = SceneClassifier
    return kind(copy.deepcopy(detector).cpu().float(), (int(height), int(width))).eval()


def export_onnx(
    detector: nn.Module,
    path: str | Path,
    image_size: ImageSize = 800,
    *,
    batch_size: int | None = None,
    classes: Sequence[str] | None = None,
    description: Description | None = None,
    nms: bool = False,
    tolerance: float = TOLERANCE,
) -> float:
    """Write a detector, pruned or not, to an ONNX file.

    The input is `images` `[B, 3, H, W]`, float32 in [0, 1]. A one-stage detector gives `boxes` `[B, R, 4]` (xyxy
    pixels) and `scores` `[B, R, C]` before any threshold; a two-stage detector gives its detections, `boxes` `[N, 4]`,
    `labels` `[N]` in 1..C and `scores` `[N]`; a classifier gives `logits` `[B, C]`. The file's metadata hold
    `paperlib` (the version), `detector`, `image_size`, how detections are selected, and what else `description` says;
    what is no text, as JSON.

    Args:
        detector: one of this package, or another with the same calling convention, or a classifier; untouched.
        path: the file; it is complete or absent, and missing folders are created.
        image_size: size of the images that the file will process.
        batch_size: B; by default any, but for a two-stage detector 1, the only choice.
        classes: names of the C classes; by default those of `description`.
        description: how the detector is used; `image_size` is that of the argument.
        nms: a one-stage detector's file selects its detections, too. Its outputs are those of a two-stage detector and
            `image_index` `[N]`, the number in the batch of the image that a detection belongs to.
        tolerance: the largest accepted difference; rounding alone exceeds the default in deep untrained networks.

    Returns:
        The largest difference between ONNX Runtime and PyTorch on random images (see `TOLERANCE`); for a two-stage
        detector that of nine in ten detections, on the half of the images that agree best.

    Raises:
        ValueError: an invalid argument, sides that are not multiples of the detector's coarsest stride, or outputs
            that differ by more than `tolerance` (the message names the difference). Nothing is written then.
    """
    with needs_extra("runtimes"):
        import onnxscript  # noqa: F401  # PyTorch's exporter imports it

    require_fused(detector)
    network = make_deployable(detector, image_size)
    if classes is None and description is not None:
        classes = description.classes
    _check_arguments(network, batch_size, classes, nms)
    if isinstance(network, TwoStage):
        batch_size = 1
    # A graph for any number of images is traced with 2, because 1 is a special case, and compared with 3.
    example = _random_images(batch_size or 2, network.image_size, seed=0)
    with torch.inference_mode():
        network(example)  # first, so that the detector caches real tensors and not those of a tracer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the comparison finds whatever a tracer wrongly takes for constant
        model = expand_mish(network.trace_onnx(example, batch_size is None))
    onnx.checker.check_model(model, full_check=True)
    difference = _compare_with_torch(model, network, batch_size or 3)
    if difference > tolerance:
        raise ValueError(f"{path}: not written, because ONNX Runtime and PyTorch differ by {difference:.3g}")
    if nms and isinstance(network, OneStage):
        model, difference = _add_selection(model, network, Path(path), batch_size or 3)
    _write_metadata_(model, network, classes, description)
    with replace_file(Path(path)) as partial:
        onnx.save(model, partial)
    return difference


def open_onnx_session(model: onnx.ModelProto | Path, threads: int) -> onnxruntime.InferenceSession:
    """Open an ONNX Runtime session on the CPU that computes with `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Operators run one after another, so that no more than `threads` threads compute.
    options.inter_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _check_arguments(network: Deployable, batch_size: int | None, classes: Sequence[str] | None, nms: bool) -> None:
    detector, (height, width) = network.detector, network.image_size
    multiple = getattr(detector, "image_multiple", IMAGE_MULTIPLE)
    if min(height, width) < 1 or height % multiple or width % multiple:
        raise ValueError(f"image size {height} x {width}: the sides are not multiples of {multiple} pixels")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be ≥ 1")
    if nms and isinstance(network, SceneClassifier):
        raise ValueError("a classifier of scenes has no detections, so its file cannot select any")
    if isinstance(network, TwoStage) and batch_size not in (None, 1):
        raise ValueError(f"a two-stage detector is exported for one image at a time, not batch_size {batch_size}")
    if classes is not None and len(classes) != detector.num_classes:
        raise ValueError(f"{len(classes)} names of classes for a detector of {detector.num_classes}")


def _random_images(count: int, image_size: tuple[int, int], seed: int) -> Tensor:
    """Draw noise of different brightness, so that detections differ between the images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 1, 1, generator=generator) * torch.rand(count, 3, *image_size, generator=generator)


def _compare_with_torch(model: onnx.ModelProto, network: Deployable, batch_size: int) -> float:
    """Return the largest difference between ONNX Runtime and PyTorch on the batches that agree best."""
    session = open_onnx_session(model, torch.get_num_threads())
    differences = []
    for seed in range(1, 1 + network.compared):
        images = _random_images(batch_size, network.image_size, seed)
        with torch.inference_mode():
            expected = [output.numpy() for output in network(images)]
        found = [np.asarray(output) for output in session.run(list(network.outputs), {INPUT: images.numpy()})]
        differences.append(network.max_difference(found, expected))
    return sorted(differences)[network.agreeing - 1]


def _relative_difference(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return how far rows `[..., K]` are from the expected ones (see `TOLERANCE`); infinite where one is NaN."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    unit = np.maximum(1, np.abs(expected).max(-1))
    return np.nan_to_num(np.abs(found - expected).max(-1) / unit, nan=math.inf, posinf=math.inf)


def _detection_distance(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the 90 % quantile of the distances between detections and the nearest ones of the other side."""
    if len(found[0]) == 0 or len(expected[0]) == 0:
        return 0.0 if len(found[0]) == len(expected[0]) else math.inf
    pairs = zip(found, expected, strict=True)
    # [found, expected]: the largest difference in boxes, labels and scores.
    differences = np.max(
        [_relative_difference(f.reshape(len(f), 1, -1), e.reshape(1, len(e), -1)) for f, e in pairs], axis=0
    )
    nearest = np.concatenate([differences.min(0), differences.min(1)])
    return float(np.quantile(nearest, 0.9, method="higher"))


def _add_selection(
    model: onnx.ModelProto, network: OneStage, path: Path, batch_size: int
) -> tuple[onnx.ModelProto, float]:
    """Return the graph with the selection of its detections, and how far these are from PyTorch's."""
    detector = network.detector
    joined = add_selection(
        model, network.image_size, iou=getattr(detector, "nms_iou", 1.0), peaks=detector.selection == "peaks",
        threshold=detector.score_threshold, most=detector.max_detections,
    )  # fmt: skip
    images = _random_images(batch_size, network.image_size, seed=1)
    with torch.inference_mode():
        expected = [[each[name].numpy() for name in SELECTED[:3]] for each in detector(images)]
    *outputs, index = open_onnx_session(joined, torch.get_num_threads()).run(list(SELECTED), {INPUT: images.numpy()})
    found = [[np.asarray(output)[index == number] for output in outputs] for number in range(batch_size)]
    difference = max(_detection_distance(*pair) for pair in zip(found, expected, strict=True))
    if difference > SELECTION_TOLERANCE:
        raise ValueError(f"{path}: not written, because its detections differ from PyTorch's by {difference:.3g}")
    return joined, difference


def _write_metadata_(
    model: onnx.ModelProto, network: Deployable, classes: Sequence[str] | None, description: Description | None
) -> None:
    """Describe the file in its metadata, and remove the paths of this machine that tracing left there."""
    selection = {} if isinstance(network, SceneClassifier) else describe_selection(network.detector)
    properties = {
        "preprocessing": SCENE_PREPROCESSING if isinstance(network, SceneClassifier) else PREPROCESSING,
        **(description.to_properties() if description else {}),
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in selection.items()},
        "paperlib": package_version("paperlib"),
        "detector": _detector_name(network.detector),
        "image_size": json.dumps(network.image_size),
    }
    if classes is not None:
        properties["classes"] = json.dumps(list(classes), ensure_ascii=False)
    onnx.helper.set_model_props(model, properties)
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")


def _detector_name(detector: nn.Module) -> str:
    return getattr(detector, "build_arguments", {}).get("name", type(detector).__name__)
