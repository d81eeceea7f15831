"""The detectors of Sections 4.3 and 4.7, by name, with torchvision's calling convention."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paperlib import limits
from paperlib.detectors.base import Detector
from paperlib.detectors.centernet import CenterNet
from paperlib.detectors.darknet import load_darknet_weights
from paperlib.detectors.faster_rcnn import FasterRcnnResNet101
from paperlib.detectors.yolov3 import YoloV3, YoloV3Spp
from paperlib.detectors.yolov4 import YoloV4
from paperlib.detectors.yolov4_tiny import YoloV4Tiny
from paperlib.structure import describe_structure, reshape_

DETECTORS: dict[str, type[Detector]] = {
    "yolov3": YoloV3,
    "yolov3-spp": YoloV3Spp,
    "yolov4": YoloV4,
    "yolov4-tiny": YoloV4Tiny,
    "centernet-resnet50": CenterNet,
    "faster-rcnn-resnet101": FasterRcnnResNet101,
}
COCO_CLASSES = 80
USUAL_SIDE = 416
"""Side in pixels of the images for which the default anchors were chosen."""


def build_detector(
    name: str,
    num_classes: int,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    anchors: Sequence[tuple[float, float]] | None = None,
    structure: dict[str, dict] | None = None,
) -> Detector:
    """Build a detector with fresh weights.

    Args:
        name: a key of `DETECTORS`.
        num_classes: C, without background; labels are 1..C.
        width: multiplies the channel counts.
        depth: multiplies the numbers of repeated blocks, for detectors that repeat some.
        anchors: `(width, height)` in pixels, small to large, for detectors with anchors; see `usual_anchors`.
        structure: shapes of a pruned detector (`paperlib.structure.describe`), applied after building.

    Raises:
        ValueError: an unknown name, no or too many classes, a width or depth out of range, a depth or anchors for a
            detector that has none, a wrong number of anchors, or a structure of another detector.
    """
    kind = _kind(name)
    _check_size(num_classes, width, depth)
    defaults = {"width": 1.0, "depth": 1.0, "anchors": None}
    chosen = {"width": width, "depth": depth, "anchors": anchors}
    # Only what differs is passed on: a detector without a depth or anchors then accepts their defaults.
    options = {option: value for option, value in chosen.items() if value != defaults[option]}
    if unknown := sorted(options.keys() - inspect.signature(kind).parameters.keys()):
        raise ValueError(f"{name} has no {unknown[0]} to choose")
    detector = kind(num_classes, **options)
    # As lists, which is what comes back from JSON.
    plain_anchors = None if anchors is None else [list(anchor) for anchor in anchors]
    detector.build_arguments = {"name": name, "num_classes": num_classes, **chosen, "anchors": plain_anchors}
    if structure is not None:
        reshape_(detector, structure)
    return detector


def build_without_weights(**arguments: Any) -> Detector:
    """Build a detector as `build_detector` does, on the meta device: shapes without values, no random number drawn."""
    with torch.device("meta"), _NothingFilled():
        return build_detector(**arguments)


def usual_anchors(name: str, *, scale: float = 1.0) -> tuple[tuple[float, float], ...] | None:
    """Return the default anchors `(width, height)` of a detector, in pixels; None if it has no anchors.

    Args:
        name: the detector's.
        scale: side of the images over `USUAL_SIDE`, by which the anchors grow.

    Raises:
        ValueError: an unknown name.
    """
    anchors = getattr(_kind(name), "usual_anchors", None)
    return anchors and tuple((width * scale, height * scale) for width, height in anchors)


def reinitialise_(detector: nn.Module) -> None:
    """Draw fresh weights in place, as `build_detector` does, for a detector of any shape, also a pruned one."""
    for module in detector.modules():
        if callable(initialise := getattr(module, "initialise_weights", None)):
            initialise()


def transfer_coco_weights(detector: Detector, path: str | Path) -> None:
    """Load official COCO weights into a detector of any number of classes.

    All layers are loaded except the class outputs. In an output convolution the box and objectness channels of each
    anchor are loaded, and the class channels keep their initial values (a detector of 80 classes loads them too).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit the detector with 80 classes (see `load_darknet_weights`), or the detector
            has been pruned. The detector is unchanged then.
    """
    if describe_structure(detector) != describe_structure(build_without_weights(**detector.build_arguments)):
        raise ValueError("official weights fit an unpruned detector only; this one has been pruned")
    arguments: dict[str, Any] = {**detector.build_arguments, "num_classes": COCO_CLASSES}
    source = build_detector(**arguments)
    load_darknet_weights(source, path)
    target = detector.state_dict()
    with torch.no_grad():
        for name, value in source.state_dict().items():
            if value.shape == target[name].shape:
                target[name].copy_(value)
            else:
                # An output convolution: of each anchor's rows, the first five are box and objectness.
                source_rows = (-1, 5 + COCO_CLASSES, *value.shape[1:])
                target_rows = (-1, 5 + detector.num_classes, *value.shape[1:])
                target[name].view(target_rows)[:, :5] = value.view(source_rows)[:, :5]


class _NothingFilled(TorchFunctionMode):
    """A mode in which initialisation does nothing: on the meta device it would be slow and have no effect."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # Every function of torch.nn.init used here ends in one of these, and each returns the tensor that it fills.
        fills = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)
        return args[0] if func in fills else func(*args, **(kwargs or {}))


def _check_size(num_classes: int, width: float, depth: float) -> None:
    if num_classes < 1:
        raise ValueError(f"a detector needs at least 1 class, not {num_classes}")
    if num_classes > limits.MOST_CLASSES:
        raise ValueError(f"a detector has at most {limits.MOST_CLASSES} classes, not {num_classes:.6g}")
    for factor, value, most in (("width", width, limits.MOST_WIDTH), ("depth", depth, limits.MOST_DEPTH)):
        if not value > 0:
            raise ValueError(f"{factor} {value} is not positive")
        if value > most:
            raise ValueError(f"{factor} {value:.6g} is larger than {most:g}")


def _kind(name: str) -> type[Detector]:
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; known: {', '.join(DETECTORS)}")
    return DETECTORS[name]


__all__ = [
    "COCO_CLASSES",
    "DETECTORS",
    "USUAL_SIDE",
    "build_detector",
    "load_darknet_weights",
    "reinitialise_",
    "transfer_coco_weights",
    "usual_anchors",
]
