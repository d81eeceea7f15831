"""The detectors of Sections 4.3 and 4.7, by name, with torchvision's calling convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from paperlib.detectors.base import Detector
from paperlib.detectors.centernet import CenterNet
from paperlib.detectors.darknet import VALUE_BYTES, count_values, find_header, load_darknet_weights
from paperlib.detectors.family import Family
from paperlib.detectors.faster_rcnn import FasterRcnnResNet101
from paperlib.detectors.yolov3 import YoloV3, YoloV3Spp
from paperlib.detectors.yolov4 import YoloV4
from paperlib.detectors.yolov4_tiny import YoloV4Tiny
from paperlib.structure import describe_structure

DETECTORS: dict[str, type[Detector]] = {
    "yolov3": YoloV3,
    "yolov3-spp": YoloV3Spp,
    "yolov4": YoloV4,
    "yolov4-tiny": YoloV4Tiny,
    "centernet-resnet50": CenterNet,
    "faster-rcnn-resnet101": FasterRcnnResNet101,
}
LIMITS = ("max_detections", "match_iou", "sampled_anchors", "sampled_regions", "proposals")
"""Numbers that bound what a detector considers; only YOLOs have the second, only Faster R-CNN the last three."""
FAMILY = Family("detector", "paperlib-detector-1", DETECTORS, {"width": 1.0, "depth": 1.0, "anchors": None}, LIMITS)
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
    **limits: Any,
) -> Detector:
    """Build a detector with fresh weights.

    Args:
        name: a key of `DETECTORS`.
        num_classes: C, without background; labels are 1..C.
        width: multiplies the channel counts.
        depth: multiplies the numbers of repeated blocks, for detectors that repeat some.
        anchors: `(width, height)` in pixels, small to large, for detectors with anchors; see `usual_anchors`.
        structure: shapes of a pruned detector (`paperlib.structure.describe`), applied after building.
        limits: some of `LIMITS` with other values: `max_detections` of an image (100); of a YOLO,
            `match_iou`, above which an anchor that is not the best is assigned to a box (0.213; 1: none is); of
            Faster R-CNN, `sampled_anchors` and `sampled_regions` of an image for the losses (64 and 32) and the
            `proposals`, those of training and those of detection ([300, 300]).

    Raises:
        ValueError: an unknown name, no or too many classes, a width or depth out of range, a depth or anchors for a
            detector that has none, a wrong number of anchors, or a structure of another detector.
    """
    if unknown := sorted(limits.keys() - set(LIMITS)):
        raise TypeError(f"build_detector has no argument {unknown[0]!r}")
    options = {"width": width, "depth": depth, "anchors": anchors, **limits}
    detector = FAMILY.build(name, num_classes, structure=structure, **options)
    if anchors is not None:
        # As lists, which is what comes back from JSON.
        detector.build_arguments["anchors"] = [list(anchor) for anchor in anchors]
    return detector


def usual_anchors(name: str, *, scale: float = 1.0) -> tuple[tuple[float, float], ...] | None:
    """Return the default anchors `(width, height)` of a detector, in pixels; None if it has no anchors.

    Args:
        name: the detector's.
        scale: side of the images over `USUAL_SIDE`, by which the anchors grow.

    Raises:
        ValueError: an unknown name.
    """
    anchors = getattr(FAMILY.kind(name), "usual_anchors", None)
    return anchors and tuple((width * scale, height * scale) for width, height in anchors)


def find_coco_rows(pairs: Mapping[str, str], classes: Sequence[str]) -> dict[int, int]:
    """Return the indices of paired classes, from 0: of each class of a data set and of the class of COCO it is like.

    Args:
        pairs: names of COCO's classes, by the names of the data set's.
        classes: the data set's classes.

    Raises:
        ValueError: a name that the data set or COCO does not have.
    """
    meta = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    # Torchvision's list has gaps where COCO took classes out; in Darknet's files the 80 stand without gaps.
    coco = [name for name in meta if name not in ("__background__", "N/A")]
    for own, other in pairs.items():
        for name, known, whose in ((own, classes, "the data set"), (other, coco, "COCO")):
            if name not in known:
                raise ValueError(f"coco_rows: {name!r} is no class of {whose}; its classes: {', '.join(known)}")
    return {list(classes).index(own): coco.index(other) for own, other in pairs.items()}


def reinitialise_(detector: nn.Module) -> None:
    """Draw fresh weights in place, as `build_detector` does, for a detector of any shape, also a pruned one."""
    for module in detector.modules():
        if callable(initialise := getattr(module, "initialise_weights", None)):
            initialise()


def count_darknet_classes(path: str | Path, name: str, *, width: float = 1.0, depth: float = 1.0) -> int | None:
    """Return of how many classes a detector is whose values a Darknet file has; None if it fits no number of classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another program wrote it.
    """
    # The number of values is linear in the number of classes, so that two numbers determine it.
    shape = {"name": name, "width": width, "depth": depth}
    one, two = (count_values(FAMILY.build_without_weights(num_classes=classes, **shape)) for classes in (1, 2))

    def count_classes(length: int) -> int | None:
        values, rest = divmod(length, VALUE_BYTES)
        more, part = divmod(values - one, max(two - one, 1))
        return None if rest or part or more < 0 else more + 1

    header = find_header(Path(path), lambda length: count_classes(length) is not None)
    return None if header is None else count_classes(Path(path).stat().st_size - header)


def transfer_coco_weights(detector: Detector, path: str | Path, class_rows: Mapping[int, int] | None = None) -> None:
    """Load Darknet weights, official ones of COCO or those of the detector's own classes, into a detector.

    Of COCO weights all layers are loaded except the class outputs. In an output convolution the box and objectness
    channels of each anchor are loaded, and the class channels keep their initial values. Weights of as many classes as
    the detector has are loaded completely.

    Args:
        detector: the detector, changed in place.
        path: the file.
        class_rows: of COCO weights, class channels that are loaded too: per index of a class of the detector, from 0,
            the index of the class of COCO.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file fits the detector neither with its own number of classes nor with 80 (see
            `load_darknet_weights`), or the detector has been pruned. The detector is unchanged then.
    """
    if describe_structure(detector) != describe_structure(FAMILY.build_without_weights(**detector.build_arguments)):
        raise ValueError("official weights fit an unpruned detector only; this one has been pruned")
    built = detector.build_arguments
    if count_darknet_classes(path, built["name"], width=built["width"], depth=built["depth"]) == detector.num_classes:
        load_darknet_weights(detector, path)
        return
    arguments: dict[str, Any] = {**built, "num_classes": COCO_CLASSES}
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
                for own, coco in (class_rows or {}).items():
                    target[name].view(target_rows)[:, 5 + own] = value.view(source_rows)[:, 5 + coco]


__all__ = [
    "COCO_CLASSES",
    "DETECTORS",
    "FAMILY",
    "USUAL_SIDE",
    "build_detector",
    "count_darknet_classes",
    "find_coco_rows",
    "load_darknet_weights",
    "reinitialise_",
    "transfer_coco_weights",
    "usual_anchors",
]
