"""Refusals before any training: data and detectors that Algorithm 1 cannot use."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from paperlib.data.records import Dataset
from paperlib.limits import IMPORTANCE_NAMES
from paperlib.pruning import score_channels, trace_channels
from paperlib.pruning.criteria import needs_calibration


def check_data(train: Dataset, val: Dataset, may_lack: Collection[str] = ()) -> None:
    """Refuse data that nothing can be learned from or evaluated on; classes in `may_lack` need no boxes.

    Raises:
        ValueError: classes that differ, a class without training boxes, or validation images without boxes.
    """
    if train.classes != val.classes:
        listed = " and ".join(", ".join(map(repr, data.classes)) for data in (train, val))
        raise ValueError(f"{train.name} and {val.name} differ in their classes: {listed}")
    counts = train.box_counts()
    if not any(counts.values()):
        raise ValueError("; ".join([f"{train.name}: no boxes to learn from", *train.remarks]))
    if missing := [name for name, count in counts.items() if not count and name not in may_lack]:
        raise ValueError(f"{train.name}: category {missing[0]!r} has no boxes to learn from")
    if not any(val.box_counts().values()):
        raise ValueError(f"{val.name}: no boxes, so nothing can be evaluated")


def check_detector(detector: nn.Module, image_size: int) -> None:
    """Refuse a module that is not a detector of this package, or whose strides do not divide the image size.

    Raises:
        ValueError: names the fault.
    """
    if not hasattr(detector, "build_arguments"):
        raise ValueError(f"{type(detector).__name__} was not made by build_detector or load_detector")
    multiple = getattr(detector, "image_multiple")  # noqa: B009 (the checker takes a module's attributes for modules)
    if image_size % multiple:
        raise ValueError(f"image size {image_size} is not a multiple of {multiple} pixels")


def check_criterion(detector: nn.Module, importance: str) -> None:
    """Try a criterion of one's own that needs no data.

    Raises:
        ValueError: it cannot score the channels of the detector.
    """
    if importance not in IMPORTANCE_NAMES and not needs_calibration(importance):
        graph = trace_channels(detector)
        score_channels(importance, detector, graph.prunable, norms=graph.norms)


def check_classes(detector: nn.Module, data: Dataset) -> None:
    """Refuse a detector with another number of classes than the data set.

    Raises:
        ValueError: names the data set and both numbers.
    """
    if detector.num_classes != len(data.classes):
        raise ValueError(f"{data.name}: {len(data.classes)} classes, the detector has {detector.num_classes}")
