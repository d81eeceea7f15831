"""Section 4.2: precision and recall (Eq. 13), average precision and its mean over classes (Eq. 14).

pycocotools is the judge. `map50` is the paper's mAP: the area under each class's precision-recall curve at IoU 0.5,
averaged over the classes, with the curve read at COCO's 101 recall points.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from paperlib.data.records import Dataset
from paperlib.data.slices import Rule, Slice, all_objects

IOU_INDEX = 0
"""COCO's thresholds run 0.50, 0.55, …: the paper's is the first."""
COCO_LIMIT = 100
DIFFICULT = ("cut by the border", "small", "crowded")
"""Slices of objects that are hard to find in the paper's examples of edge cases (Section 4.5.4)."""
BELONGS = 1.0
"""Stands for the area of all that belongs to a slice."""


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
        slices: by name of a slice or a change, `map50` and `recall` there and the numbers of `images` and `objects`;
            empty unless `evaluate` was asked for them.
    """

    map50: float
    map: float
    precision: float
    recall: float
    confidence: float
    per_class: dict[str, float]
    slices: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @property
    def edge_recall(self) -> float:
        """Recall on the difficult slices (`DIFFICULT`), each weighing as much as it has objects.

        Raises:
            ValueError: the slices were not judged, or none of these has an object.
        """
        parts = [self.slices[name] for name in DIFFICULT if name in self.slices]
        if not parts:
            raise ValueError(f"no slice was judged among {', '.join(DIFFICULT)}")
        return sum(part["recall"] * part["objects"] for part in parts) / sum(part["objects"] for part in parts)


def compute_metrics(found: Sequence[dict[str, Tensor]], dataset: Dataset, confidence: float | None = None) -> Metrics:
    """Metrics of given detections, one entry per image of the data set (see `evaluate`).

    Raises:
        ValueError: the data set has no box to find, or there are detections for another number of images.
    """
    require_boxes(dataset)
    if len(found) != len(dataset):
        raise ValueError(f"{dataset.name}: detections for {len(found)} images, the data set has {len(dataset)}")
    verdict = _coco_eval(found, dataset)
    average, occurs = _average_precision(verdict)
    per_class = {name: float(average[IOU_INDEX, k]) for k, name in enumerate(dataset.classes) if occurs[k]}
    curves = [curve for curve in _curves(verdict, len(dataset.classes)) if curve.positives]
    if confidence is None:
        confidence = _best_confidence(curves)
    points = np.array([curve.at(confidence) for curve in curves])
    return Metrics(
        map50=float(average[IOU_INDEX, occurs].mean()),
        map=float(average[:, occurs].mean()),
        precision=float(points[:, 0].mean()),
        recall=float(points[:, 1].mean()),
        confidence=float(confidence),
        per_class=per_class,
    )


def require_boxes(dataset: Dataset) -> None:
    """Raise `ValueError` if there is nothing to find."""
    if not any(len(record.labels) for record in dataset.records):
        raise ValueError(f"{dataset.name}: no boxes, nothing to evaluate")


def compute_slice_metrics(
    found: Sequence[dict[str, Tensor]], dataset: Dataset, part: Slice, confidence: float
) -> dict[str, float] | None:
    """`map50` of given detections on a part of a data set, and the numbers of its `images` and `objects`.

    Beside it `recall`, the share of those objects, of whatever class, that is found with at least that confidence.
    Objects of its images that do not belong to the slice are passed over, and so are detections that do not and find
    nothing: COCO's rule for objects of other sizes. None if no object belongs.
    """
    images = dataset.subset(part.images, f"{dataset.name}: {part.name}")
    objects = sum(int(part.holds(record.boxes, record.size()).sum()) for record in images.records)
    if not objects:
        return None
    verdict = _coco_eval([found[index] for index in part.images], images, part.holds)
    average, occurs = _average_precision(verdict)
    recall = sum(_hits(entry, confidence) for entry in verdict.evalImgs if entry) / objects
    return {
        "map50": float(average[IOU_INDEX, occurs].mean()),
        "recall": recall,
        "images": len(images),
        "objects": objects,
    }


def _hits(entry: Mapping[str, Any], confidence: float) -> int:
    """How many objects that belong are matched, at IoU 0.5, by detections that score at least `confidence`."""
    bold = np.asarray(entry["dtIds"])[np.asarray(entry["dtScores"]) >= confidence]
    belongs = ~np.asarray(entry["gtIgnore"], dtype=bool)
    return int(np.isin(entry["gtMatches"][IOU_INDEX][belongs], bold).sum())


def _average_precision(verdict: COCOeval) -> tuple[np.ndarray, np.ndarray]:
    """Average precision `[IoU, class]`, and which classes occur."""
    # [IoU, recall, class, area, max detections]; -1 marks a class that does not occur.
    precision = verdict.eval["precision"][:, :, :, 0, -1]
    return precision.mean(1), precision[IOU_INDEX, 0] > -1


@dataclass(frozen=True)
class _Curve:
    """One class's detections at IoU 0.5, best first."""

    scores: np.ndarray
    hits: np.ndarray
    positives: int

    def at(self, confidence: float) -> tuple[float, float]:
        """Precision and recall (Eq. 13) of the detections that score at least `confidence`."""
        kept = self.hits[self.scores >= confidence]
        return float(kept.mean()) if len(kept) else 0.0, float(kept.sum()) / self.positives


def _best_confidence(curves: Sequence[_Curve]) -> float:
    grid = np.linspace(0.01, 0.99, 99)
    points = np.array([[curve.at(confidence) for curve in curves] for confidence in grid])
    precision, recall = points[..., 0], points[..., 1]
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    return float(grid[f1.mean(1).argmax()])


def _curves(verdict: COCOeval, num_classes: int) -> list[_Curve]:
    curves = []
    for label in range(1, num_classes + 1):
        entries = [entry for entry in verdict.evalImgs if entry and entry["category_id"] == label]
        scores = np.concatenate([np.asarray(entry["dtScores"]) for entry in entries] or [np.zeros(0)])
        hits = np.concatenate([entry["dtMatches"][IOU_INDEX] > 0 for entry in entries] or [np.zeros(0, bool)])
        positives = sum(len(entry["gtIds"]) for entry in entries)
        curves.append(_Curve(scores, hits, positives))
    return curves


def _coco_eval(found: Sequence[dict[str, Tensor]], dataset: Dataset, holds: Rule = all_objects) -> COCOeval:
    truth, answer = COCO(), COCO()
    images = [{"id": index} for index in range(len(dataset))]
    categories = [{"id": label, "name": name} for label, name in enumerate(dataset.classes, 1)]
    sizes = [record.size() for record in dataset.records]
    truths = [{"boxes": record.boxes, "labels": record.labels} for record in dataset.records]
    for coco, entries in ((truth, truths), (answer, found)):
        annotations = _annotations(entries, sizes, holds)
        coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        answer.createIndex()
        verdict = COCOeval(truth, answer, "bbox")
        verdict.params.maxDets = [_most_detections(found, dataset)]
        verdict.params.areaRng, verdict.params.areaRngLbl = [[BELONGS, BELONGS]], ["all"]
        verdict.evaluate()
        verdict.accumulate()
    return verdict


def _most_detections(found: Sequence[dict[str, Tensor]], dataset: Dataset) -> int:
    """COCO's limit of 100 detections per image and class, but for images with more objects than that."""
    crowd = max(len(record.labels) for record in dataset.records)
    return COCO_LIMIT if crowd <= COCO_LIMIT else max(COCO_LIMIT, *(len(image["labels"]) for image in found))


def _annotations(
    objects: Sequence[Mapping[str, Any]], sizes: Sequence[tuple[int, int]], holds: Rule
) -> list[dict[str, Any]]:
    """COCO's form of `boxes`, `labels` and, of detections, `scores`."""
    annotations = []
    for index, (image, size) in enumerate(zip(objects, sizes, strict=True)):
        boxes = np.asarray(image["boxes"], dtype=np.float64)
        belongs = holds(boxes, size)
        corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        labels, scores = np.asarray(image["labels"]), image.get("scores")
        for place, box in enumerate(np.hstack([corner, extent]).tolist()):
            entry = {"image_id": index, "category_id": int(labels[place]), "bbox": box, "iscrowd": 0}
            # COCOeval passes over what lies outside a range of areas, and takes a match with id 0 for no match.
            entry |= {"area": BELONGS if belongs[place] else 0.0, "id": len(annotations) + 1}
            annotations.append(entry if scores is None else {**entry, "score": float(scores[place])})
    return annotations
