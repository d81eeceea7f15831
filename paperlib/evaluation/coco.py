"""Detections and objects as columns, and the evaluation of faster-coco-eval, which has the digits of pycocotools."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from paperlib.data.records import Dataset
from paperlib.data.slices import Rule, all_objects

COCO_LIMIT = 100
BELONGS = 1.0
"""Marks what belongs to a slice; it replaces the area."""


@dataclass(frozen=True)
class Boxes:
    """The detections or the objects of all images of a data set, image by image.

    Attributes:
        images: `[N]`, the index of the image of each.
        labels: `[N]`, its class, 1..C.
        scores: float64 `[N]`; 0 for an object.
        corners: float64 `[N, 4]`, xyxy pixels.
    """

    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    corners: np.ndarray

    def select(self, chosen: np.ndarray) -> Boxes:
        """Return those with the given indices, in their order."""
        return Boxes(self.images[chosen], self.labels[chosen], self.scores[chosen], self.corners[chosen])


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation has compared, and its result.

    Attributes:
        result: overlaps and precision; annotation n is the detection or object of index n − 1.
        found: the detections; those of an image stand by class, and those of a class by falling score.
        truth: the objects.
    """

    result: COCOeval_faster
    found: Boxes
    truth: Boxes


def run_coco_eval(
    found: Sequence[Mapping[str, Tensor]], dataset: Dataset, thresholds: np.ndarray, holds: Rule = all_objects
) -> Evaluation:
    """Match detections with objects at each IoU threshold and compute precision; only what a rule holds counts."""
    limit = _max_detections(found, dataset)
    truth = _stack([{"boxes": record.boxes, "labels": record.labels} for record in dataset.records])
    best = _choose_best(_stack(found), limit)
    with _without_garbage_collection():
        of_truth, of_found = (_coco_index(boxes, dataset, holds) for boxes in (truth, best))
        coco_eval = COCOeval_faster(of_truth, of_found, "bbox", print_function=_ignore)
        coco_eval.params.iouThrs = thresholds
        coco_eval.params.maxDets = [limit]
        coco_eval.params.areaRng = [[BELONGS, BELONGS]]
        coco_eval.params.areaRngLbl = ["all"]
        coco_eval.evaluate()
        coco_eval.accumulate()
    return Evaluation(coco_eval, best, truth)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Let no garbage be collected meanwhile: an index is a dictionary per box, and each collection visits all."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _ignore(_text: str) -> None:
    """Print nothing."""


def _max_detections(found: Sequence[Mapping[str, Tensor]], dataset: Dataset) -> int:
    """Return COCO's limit of 100 detections per image and class, or no limit if an image has more objects."""
    most_objects = max(len(record.labels) for record in dataset.records)
    return COCO_LIMIT if most_objects <= COCO_LIMIT else max(COCO_LIMIT, *(len(image["labels"]) for image in found))


def _stack(images: Sequence[Mapping[str, Any]]) -> Boxes:
    """Join `boxes`, `labels` and, if there are any, `scores` of each image."""
    columns = {
        name: [np.asarray(image[name]) for image in images]
        for name in ("boxes", "labels", "scores")
        if name in images[0]
    }
    labels = np.concatenate(columns["labels"]).astype(np.int64)
    scores = np.concatenate(columns["scores"]).astype(np.float64) if "scores" in columns else np.zeros(len(labels))
    indices = np.repeat(np.arange(len(images)), [len(each) for each in columns["labels"]])
    return Boxes(indices, labels, scores, np.concatenate(columns["boxes"]).astype(np.float64))


def _choose_best(found: Boxes, limit: int) -> Boxes:
    """Return the best `limit` detections of each class of each image, sorted; of equal scores the first, as in COCO."""
    order = np.lexsort((-found.scores, found.labels, found.images))
    images, labels = found.images[order], found.labels[order]
    first = np.flatnonzero(np.diff(images, prepend=-1) | np.diff(labels, prepend=-1))
    rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    return found.select(order[rank < limit])


def _coco_index(boxes: Boxes, dataset: Dataset, holds: Rule) -> COCO:
    """Index detections or objects; ids of images are their indices, and ids of categories their labels."""
    corners = boxes.corners
    each = np.split(corners, np.searchsorted(boxes.images, np.arange(1, len(dataset))))
    held = [holds(part, record.size()) for part, record in zip(each, dataset.records, strict=True)]
    # COCOeval ignores objects outside a range of areas, and takes a match with id 0 for no match.
    columns = {
        "id": np.arange(1, len(corners) + 1),
        "image_id": boxes.images,
        "category_id": boxes.labels,
        "bbox": np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]),
        "area": np.where(np.concatenate(held), BELONGS, 0.0),
        "score": boxes.scores,
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(len(dataset))],
        "categories": [{"id": label, "name": name} for label, name in enumerate(dataset.classes, 1)],
        "annotations": [
            {"id": a, "image_id": b, "category_id": c, "bbox": d, "area": e, "score": f} for a, b, c, d, e, f in rows
        ],
    }
    coco.createIndex()
    return coco
