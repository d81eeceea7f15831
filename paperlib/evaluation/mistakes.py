"""Where a detector goes wrong: precision-recall curves, the confusion matrix, and the mistakes in each image.

All at IoU 0.5, the paper's threshold (Section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from paperlib.data.records import Dataset
from paperlib.evaluation.metrics import trace_curves

IOU = 0.5


@dataclass(frozen=True)
class ImageMistakes:
    """The mistakes in one image, among detections of at least some confidence.

    Attributes:
        missed: `[M]` bool, for each object whether no detection of its class finds it.
        false: `[N]` bool, for each such detection whether it finds no object of its class.
        boxes, labels, scores: those detections, best first.
    """

    missed: Tensor
    false: Tensor
    boxes: Tensor
    labels: Tensor
    scores: Tensor

    @property
    def count(self) -> int:
        """Return the number of missed objects and false detections."""
        return int(self.missed.sum() + self.false.sum())


def find_mistakes(found: Sequence[dict[str, Tensor]], dataset: Dataset, confidence: float) -> list[ImageMistakes]:
    """Match detections with objects of their class, image by image, best detections first."""
    mistakes = []
    for image, record in zip(found, dataset.records, strict=True):
        kept = _confident(image, confidence)
        truth, labels = torch.tensor(record.boxes), torch.tensor(record.labels)
        overlap = box_iou(kept["boxes"].float(), truth) * (kept["labels"][:, None] == labels)
        partner = _match_greedily(overlap)
        missed = torch.ones(len(truth), dtype=torch.bool)
        missed[partner[partner >= 0]] = False
        mistakes.append(ImageMistakes(missed, partner < 0, kept["boxes"], kept["labels"], kept["scores"]))
    return mistakes


def count_confusions(found: Sequence[dict[str, Tensor]], dataset: Dataset, confidence: float) -> np.ndarray:
    """Count what the objects of each class are taken for.

    Returns:
        int64 `[C + 1, C + 1]`: rows are the true classes and, last, background; columns the detected classes and, last,
        nothing. A detection is matched with the object that it overlaps most, whatever the class.
    """
    size = len(dataset.classes) + 1
    matrix = np.zeros((size, size), np.int64)
    for image, record in zip(found, dataset.records, strict=True):
        kept = _confident(image, confidence)
        partner = _match_greedily(box_iou(kept["boxes"].float(), torch.tensor(record.boxes)))
        detected = kept["labels"].numpy() - 1
        true = record.labels - 1
        for row, column in zip(partner.tolist(), detected.tolist(), strict=True):
            matrix[true[row] if row >= 0 else size - 1, column] += 1
        for missed in set(range(len(true))).difference(partner.tolist()):
            matrix[true[missed], size - 1] += 1
    return matrix


def precision_recall_curves(
    found: Sequence[dict[str, Tensor]], dataset: Dataset
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return recall and precision of each class that occurs, as the confidence falls from 1 to 0."""
    curves = {}
    for name, curve in zip(dataset.classes, trace_curves(found, dataset), strict=True):
        if curve.positives:
            hits = curve.hits[np.argsort(-curve.scores, kind="stable"), 0]
            true = np.cumsum(hits)
            curves[name] = (true / curve.positives, true / np.arange(1, len(hits) + 1))
    return curves


def _confident(image: dict[str, Tensor], confidence: float) -> dict[str, Tensor]:
    order = image["scores"].argsort(descending=True, stable=True)
    order = order[image["scores"][order] >= confidence]
    return {name: value[order] for name, value in image.items()}


def _match_greedily(overlap: Tensor) -> Tensor:
    """Return for each detection `[N]` the object that it finds, -1 for none; `overlap` is `[N, M]`, best first."""
    free = overlap.clone()
    partner = torch.full((len(overlap),), -1)
    for row in range(len(overlap)):
        if free.shape[1] and float(free[row].max()) >= IOU:
            partner[row] = free[row].argmax()
            free[:, partner[row]] = 0
    return partner
