"""How much a metric depends on which images were in the test split: the paired bootstrap over groups of images.

Groups of images that show the same ground are drawn with replacement, as many as there are (Efron and Tibshirani 1993).
All networks that are evaluated on the same images get the same draws, so replicate *b* of one and replicate *b* of
another can be subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from paperlib.data.records import Dataset
from paperlib.evaluation.metrics import COCO_THRESHOLDS, match_classes

REPLICATES = 100
"""Number of draws; the standard error that they give has itself an error of 7 %."""
SEED = 0
RECALL_POINTS = np.linspace(0, 1, 101)
DIGITS = 5
"""Digits to which replicates are stored: far below what one image changes."""


@dataclass(frozen=True)
class MatchedDetections:
    """The detections of all images of a data set: everything that its metrics depend on, without the boxes.

    Detections stand by falling score within a class. Those that score less than the confidence of precision and recall,
    and less than the last one that finds an object, are left out: no metric of any draw of the images depends on them.

    Attributes:
        images: uint16 `[N]`, the index of the image of each detection.
        labels: uint16 `[N]`, its class, 1..C.
        scores: float32 `[N]`.
        hits: uint16 `[N]`; bit k says whether it finds an object at the k-th of COCO's IoU thresholds, 0.5 to 0.95.
        objects: uint16 `[I, C]`, the number of objects of each class in each image.
        groups: uint16 `[I]`; images of one number show the same ground.
    """

    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    objects: np.ndarray
    groups: np.ndarray

    def save(self, path: Path) -> None:
        """Write the arrays to a compressed `.npz` file."""
        with path.open("wb") as file:
            np.savez_compressed(file, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> MatchedDetections:
        """Read the arrays of a file that `save` wrote."""
        with np.load(path) as stored:
            return cls(**{name: stored[name] for name in stored.files})


def match_detections(
    found: Sequence[dict[str, Tensor]], dataset: Dataset, groups: np.ndarray, confidence: float
) -> MatchedDetections:
    """Match detections with objects of their class, image by image, at each of COCO's IoU thresholds.

    Args:
        found: see `compute_metrics`.
        dataset: images and ground truth.
        groups: `[I]`, the number of the group of each image (see `paperlib.data.overlap.group_images`).
        confidence: the score threshold of precision and recall.
    """
    parts = []
    for label, matched in enumerate(match_classes(found, dataset), 1):
        order = np.argsort(-matched.scores, kind="stable")
        hits = matched.hits[order] @ (1 << np.arange(len(COCO_THRESHOLDS)))
        needed = (hits > 0) | (matched.scores[order] >= confidence)
        kept = order[: np.flatnonzero(needed).max(initial=-1) + 1]
        parts.append((matched.images[kept], np.full(len(kept), label), matched.scores[kept], hits[: len(kept)]))
    images, labels, scores, hits = (np.concatenate(column) for column in zip(*parts, strict=True))
    classes = len(dataset.classes) + 1
    objects = np.array([np.bincount(record.labels, minlength=classes)[1:] for record in dataset.records])
    whole = (array.astype(np.uint16) for array in (images, labels, hits, objects, groups))
    images, labels, hits, objects, groups = whole
    return MatchedDetections(images, labels, scores.astype(np.float32), hits, objects, groups)


def draw_weights(groups: np.ndarray, replicates: int = REPLICATES, seed: int = SEED) -> np.ndarray:
    """Draw groups of images with replacement.

    Args:
        groups: `[I]`, the number of the group of each image.
        replicates: B.
        seed: of the draws.

    Returns:
        int64 `[B, I]`, how often each image occurs in each replicate.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    count = int(group_of.max()) + 1
    drawn = np.random.default_rng(seed).integers(count, size=(replicates, count))
    return np.array([np.bincount(row, minlength=count) for row in drawn])[:, group_of]


def resample_metrics(matched: MatchedDetections, weights: np.ndarray, confidence: float) -> dict[str, np.ndarray]:
    """Compute the metrics of each replicate, as `compute_metrics` would on a data set with repeated images.

    Args:
        matched: the detections.
        weights: `[B, I]`, how often each image occurs.
        confidence: the score threshold of precision and recall.

    Returns:
        `map50`, `map`, `precision` and `recall`, `[B]` each. A class without objects in a replicate is left out.
    """
    positives = weights @ matched.objects.astype(np.int64)
    shape = (len(weights), positives.shape[1])
    average, precision, recall = np.zeros((len(COCO_THRESHOLDS), *shape)), np.zeros(shape), np.zeros(shape)
    for label in range(1, shape[1] + 1):
        mine = matched.labels == label
        each = weights[:, matched.images[mine]]
        hits = (matched.hits[mine, None] >> np.arange(len(COCO_THRESHOLDS)) & 1).astype(bool)
        total = np.maximum(positives[:, label - 1], 1)
        for level, hit in enumerate(hits.T):
            average[level, :, label - 1] = _average_precision(each, hit, total)
        confident = each * (matched.scores[mine] >= confidence)
        true = confident @ hits[:, 0]
        precision[:, label - 1] = true / np.maximum(confident.sum(1), 1)
        recall[:, label - 1] = true / total
    occurs = positives > 0
    tables = {"map50": average[0], "map": average.mean(0), "precision": precision, "recall": recall}
    return {name: (table * occurs).sum(1) / np.maximum(occurs.sum(1), 1) for name, table in tables.items()}


def _average_precision(weights: np.ndarray, hits: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return the average precision of one class in each replicate, `[B]`, read at COCO's recall points.

    Args:
        weights: `[B, N]`, how often each detection occurs, best first.
        hits: bool `[N]`, whether it finds an object.
        positives: `[B]`, the number of objects.
    """
    # Between two hits precision only falls, so the curve is needed at the hits alone.
    at = np.flatnonzero(hits)
    if not len(at):
        return np.zeros(len(weights))
    true = np.cumsum(weights[:, at], axis=1)
    precision = true / np.maximum(np.cumsum(weights, axis=1)[:, at], 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    places = [np.searchsorted(row, RECALL_POINTS) for row in true / positives[:, None]]
    # Recall points that are never reached have precision 0.
    padded = np.pad(envelope, ((0, 0), (0, 1)))
    return np.array([row[place].mean() for row, place in zip(padded, places, strict=True)])


def resample_matches(matched: MatchedDetections, confidence: float) -> dict[str, list[float]]:
    """Return the replicates of the metrics as they are stored with them."""
    found = resample_metrics(matched, draw_weights(matched.groups), confidence)
    return {name: np.round(values, DIGITS).tolist() for name, values in found.items()}


def resample_mean(values: np.ndarray, groups: np.ndarray) -> list[float]:
    """Return the replicates of a mean over images, such as the top-1 accuracy, as they are stored."""
    weights = draw_weights(groups)
    return np.round(weights @ values / weights.sum(1), DIGITS).tolist()


def paired_error(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the standard error of the difference of two metrics that the choice of the images makes.

    Args:
        first, second: replicates of both metrics, from the same draws.

    Raises:
        ValueError: they have different numbers of replicates.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} replicates do not come from the same draws")
    return float(np.std(np.subtract(first, second), ddof=1))
