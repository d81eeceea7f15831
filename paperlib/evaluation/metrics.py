"""Section 4.2: precision and recall (Eq. 13), average precision and its mean over classes (Eq. 14).

faster-coco-eval computes them, in C++, with the digits of pycocotools. `map50` is the paper's mAP: the area under each
class's precision-recall curve at IoU 0.5, averaged over the classes, with the curve read at COCO's 101 recall points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from faster_coco_eval import COCOeval_faster
from torch import Tensor

from paperlib.data.records import Dataset
from paperlib.data.slices import Slice
from paperlib.evaluation.coco import BELONGS, Evaluation, run_coco_eval
from paperlib.evaluation.curves import ClassCurve, trace_classes

COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
PAPER_THRESHOLD = COCO_THRESHOLDS[:1]
IOU_INDEX = 0
"""The paper's IoU threshold is the first of COCO's."""
DIFFICULT = ("cut by the border", "small", "crowded")
"""Slices of objects that are hard to find in the paper's examples of edge cases (Section 4.5.4)."""
CONDITIONS = {
    "occlusion": ("covered",),
    "clutter": ("cluttered background",),
    "out of view": ("moved",),
    "light": ("darker", "brighter"),
}
"""The four conditions of Section 4.5.4, and the slices and corruptions that make them."""


@dataclass(frozen=True)
class Metrics:
    """How well a detector does on a data set; all in [0, 1].

    Attributes:
        map50: mean over classes of the average precision at IoU 0.5 (Eq. 14), the paper's mAP.
        map: COCO's mAP, over IoU 0.50-0.95.
        precision: mean over classes at `confidence` (Eq. 13).
        recall: likewise.
        confidence: the score threshold of precision and recall.
        per_class: average precision at IoU 0.5 of each class that occurs.
        slices: by name of a slice or a corruption, its `map50` and `recall` and the numbers of its `images` and
            `objects`; empty unless `evaluate` was called with `slices`.
        resampled: of some metrics, the values on images drawn with replacement (see `paperlib.evaluation.bootstrap`);
            empty unless the detections were kept.
    """

    map50: float
    map: float
    precision: float
    recall: float
    confidence: float
    per_class: dict[str, float]
    slices: dict[str, dict[str, float]] = field(default_factory=dict)
    resampled: dict[str, list[float]] = field(default_factory=dict)

    tracked: ClassVar[tuple[str, ...]] = ("map50", "map")
    """What the history of a training holds of each validation; the first decides which epoch is the best."""

    @property
    def score(self) -> float:
        """Return the metric by which detectors are compared: `map50`."""
        return self.map50

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data for JSON."""
        return asdict(self)

    @property
    def condition_recall(self) -> dict[str, float]:
        """Return the recall in each of the four conditions of Section 4.5.4, and their mean as `conditions`.

        Raises:
            ValueError: the slices or the corruptions were not evaluated.
        """
        if missing := [name for names in CONDITIONS.values() for name in names if name not in self.slices]:
            raise ValueError(f"slice {missing[0]} was not evaluated")
        found = {
            name: sum(self.slices[part]["recall"] for part in parts) / len(parts) for name, parts in CONDITIONS.items()
        }
        return found | {"conditions": sum(found.values()) / len(found)}

    @property
    def difficult_recall(self) -> dict[str, float]:
        """Return `edge_recall` and, beside it, all of `condition_recall`."""
        return {"edge_recall": self.edge_recall, **self.condition_recall}

    @property
    def edge_recall(self) -> float:
        """Average the recall on the difficult slices (`DIFFICULT`), weighted by their numbers of objects.

        Raises:
            ValueError: the slices were not evaluated, or none of these has an object.
        """
        parts = [self.slices[name] for name in DIFFICULT if name in self.slices]
        if not parts:
            raise ValueError(f"no slice was evaluated among {', '.join(DIFFICULT)}")
        return sum(part["recall"] * part["objects"] for part in parts) / sum(part["objects"] for part in parts)


def compute_metrics(found: Sequence[dict[str, Tensor]], dataset: Dataset, confidence: float | None = None) -> Metrics:
    """Compute the metrics of given detections (see `evaluate`).

    Args:
        found: per image of the data set `boxes` `[N, 4]` xyxy pixels, `labels` `[N]` in 1..C and `scores` `[N]`.
        dataset: images and ground truth.
        confidence: see `evaluate`.

    Raises:
        ValueError: the data set has no box, or there are detections for another number of images.
    """
    require_boxes(dataset)
    if len(found) != len(dataset):
        raise ValueError(f"{dataset.name}: detections for {len(found)} images, the data set has {len(dataset)}")
    evaluation = run_coco_eval(found, dataset, COCO_THRESHOLDS)
    average, occurs = _average_precision(evaluation.result)
    per_class = {name: float(average[IOU_INDEX, k]) for k, name in enumerate(dataset.classes) if occurs[k]}
    traced = trace_classes(evaluation, len(dataset.classes), PAPER_THRESHOLD)
    curves = [curve for curve in traced if curve.positives]
    if confidence is None:
        confidence = _best_confidence(curves)
    points = np.array([curve.precision_recall(np.array(confidence)) for curve in curves])
    return Metrics(
        map50=float(average[IOU_INDEX, occurs].mean()),
        map=float(average[:, occurs].mean()),
        precision=float(points[:, 0].mean()),
        recall=float(points[:, 1].mean()),
        confidence=float(confidence),
        per_class=per_class,
    )


def trace_curves(found: Sequence[dict[str, Tensor]], dataset: Dataset) -> list[ClassCurve]:
    """Return for each class which of its detections find an object (see `compute_metrics`)."""
    return trace_classes(run_coco_eval(found, dataset, PAPER_THRESHOLD), len(dataset.classes), PAPER_THRESHOLD)


def match_classes(found: Sequence[dict[str, Tensor]], dataset: Dataset) -> list[ClassCurve]:
    """Return for each class which of its detections find an object at each of COCO's thresholds."""
    # The overlaps do not depend on the threshold.
    return trace_classes(run_coco_eval(found, dataset, PAPER_THRESHOLD), len(dataset.classes), COCO_THRESHOLDS)


def require_boxes(dataset: Dataset) -> None:
    """Raise `ValueError` if the data set has no box."""
    if not any(len(record.labels) for record in dataset.records):
        raise ValueError(f"{dataset.name}: no boxes, nothing to evaluate")


def compute_slice_metrics(
    found: Sequence[dict[str, Tensor]], dataset: Dataset, part: Slice, confidence: float
) -> dict[str, float] | None:
    """Compute `map50` and `recall` of given detections on a part of a data set.

    `recall` is the fraction of its objects, of any class, that are found with at least that confidence. Objects that do
    not belong to the slice are ignored, and so are unmatched detections that do not belong to it: COCO's rule for
    objects of other sizes.

    Returns:
        These two and the numbers of `images` and `objects`; None if no object belongs to the slice.
    """
    images = dataset.subset(part.images, f"{dataset.name}: {part.name}")
    objects = sum(int(part.holds(record.boxes, record.size()).sum()) for record in images.records)
    if not objects:
        return None
    evaluation = run_coco_eval([found[index] for index in part.images], images, PAPER_THRESHOLD, part.holds)
    average, occurs = _average_precision(evaluation.result)
    recall = _count_hits(evaluation, confidence) / objects
    return {
        "map50": float(average[IOU_INDEX, occurs].mean()),
        "recall": recall,
        "images": len(images),
        "objects": objects,
    }


def _count_hits(evaluation: Evaluation, confidence: float) -> int:
    """Count the objects of the slice that detections with a score of at least `confidence` match at IoU 0.5."""
    truth = evaluation.result.cocoGt.anns
    # The only threshold of the evaluation is that one.
    pairs = (map(int, pair.split("_")) for pair in evaluation.result.eval["matched"])
    scores = evaluation.found.scores
    return sum(bool(scores[one - 1] >= confidence) and truth[other]["area"] == BELONGS for one, other in pairs)


def _average_precision(coco_eval: COCOeval_faster) -> tuple[np.ndarray, np.ndarray]:
    """Return the average precision `[IoU, class]`, and for each class whether it occurs."""
    # [IoU, recall, class, area, max detections]; -1 marks a class that does not occur.
    precision = coco_eval.eval["precision"][:, :, :, 0, -1]
    return precision.mean(1), precision[IOU_INDEX, 0] > -1


def _best_confidence(curves: Sequence[ClassCurve]) -> float:
    """Return the confidence, in steps of 0.01, that maximises the mean F1."""
    grid = np.linspace(0.01, 0.99, 99)
    points = np.array([curve.precision_recall(grid) for curve in curves])
    # [confidence, class], and each row in one piece of memory, because the order of additions decides the last digit.
    precision, recall = (np.ascontiguousarray(points[:, number].T) for number in range(2))
    # The small constant avoids 0 / 0 where nothing is found.
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    return float(grid[f1.mean(1).argmax()])
