"""Which detections of a class find an object, in the order of an evaluation by faster-coco-eval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paperlib.evaluation.coco import Evaluation

ROUNDING = 1e-10
"""An overlap that is less than the threshold by no more than this reaches it."""


@dataclass(frozen=True)
class ClassCurve:
    """One class's detections.

    Attributes:
        scores: `[N]` of its detections in all images.
        hits: `[N, T]` bool, whether each of them finds an object at each IoU threshold.
        images: `[N]`, the index of the image of each of them.
        positives: number of its objects.
    """

    scores: np.ndarray
    hits: np.ndarray
    images: np.ndarray
    positives: int

    def precision_recall(self, confidences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return precision and recall (Eq. 13), at the first threshold, of what scores at least each confidence."""
        order = np.argsort(self.scores)
        start = np.searchsorted(self.scores[order], confidences)
        # The number of hits among the detections from each one on.
        true = np.append(np.cumsum(self.hits[order[::-1], 0])[::-1], 0)[start]
        return true / np.maximum(len(order) - start, 1), true / self.positives


@dataclass(frozen=True)
class _Pairs:
    """Detections and objects of the same image and class that overlap enough for some threshold.

    They stand by rank, and those of one detection together. The object that it would take is the first: the one of
    largest IoU, and of equal ones the last in the data set, as in COCO.

    Attributes:
        detections, objects: `[P]`, their indices.
        overlaps: `[P]`, their IoU.
        ranks: `[P]`, the place of the detection among those of its image and class, by falling score.
    """

    detections: np.ndarray
    objects: np.ndarray
    overlaps: np.ndarray
    ranks: np.ndarray

    def select(self, chosen: np.ndarray) -> _Pairs:
        """Return the chosen pairs, in their order."""
        return _Pairs(*(column[chosen] for column in vars(self).values()))


def trace_classes(evaluation: Evaluation, num_classes: int, thresholds: np.ndarray) -> list[ClassCurve]:
    """Match the detections of each class with its objects at each IoU threshold; no object is ignored.

    Args:
        evaluation: of its result only the overlaps are used.
        num_classes: C.
        thresholds: `[T]`.
    """
    found, truth = evaluation.found, evaluation.truth
    pairs = _find_pairs(evaluation, thresholds.min() - ROUNDING)
    hits = np.zeros((len(found.labels), len(thresholds)), dtype=bool)
    for column, threshold in enumerate(thresholds):
        hits[_match_greedily(pairs, len(truth.labels), threshold - ROUNDING), column] = True
    chosen = [np.flatnonzero(found.labels == label) for label in range(1, num_classes + 1)]
    positives = np.bincount(truth.labels, minlength=num_classes + 1)[1:]
    return [
        ClassCurve(found.scores[mine], hits[mine], found.images[mine], int(count))
        for mine, count in zip(chosen, positives, strict=True)
    ]


def _find_pairs(evaluation: Evaluation, least: float) -> _Pairs:
    """Return the pairs whose overlap is at least `least`."""
    # A table has a row for each detection of an image and class, and a column for each object; some are empty.
    tables = {group: np.asarray(table) for group, table in evaluation.result.ious.items() if len(table)}
    heights, widths = np.array([table.shape for table in tables.values()], int).reshape(-1, 2).T
    sizes = heights * widths
    group = np.repeat(np.arange(len(sizes)), sizes)
    ranks, columns = np.divmod(np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes), widths[group])
    # A number for each image and class, by which the rows of a table are found among the detections.
    found, truth = evaluation.found, evaluation.truth
    step = 1 + max(found.labels.max(initial=0), truth.labels.max(initial=0))
    numbers = np.array([image * step + label for image, label in tables], int)
    of_found, of_truth = (each.images * step + each.labels for each in (found, truth))
    order = np.argsort(of_truth, kind="stable")
    detections = np.searchsorted(of_found, numbers)[group] + ranks
    objects = order[np.searchsorted(of_truth[order], numbers)[group] + columns]
    overlaps = np.concatenate([np.zeros(0), *(table.ravel() for table in tables.values())])
    pairs = _Pairs(detections, objects, overlaps, ranks).select(np.flatnonzero(overlaps >= least))
    return pairs.select(np.lexsort((-pairs.objects, -pairs.overlaps, pairs.detections, pairs.ranks)))


def _match_greedily(pairs: _Pairs, objects: int, least: float) -> np.ndarray:
    """Return the indices of the detections that find one of so many objects: a free one that overlaps enough.

    The best detections of all images and classes choose first, at once, because they cannot want the same object.
    Then those of the second rank choose, and so on.
    """
    near = pairs.select(pairs.overlaps >= least)
    taken = np.zeros(objects, dtype=bool)
    hits = [np.zeros(0, dtype=int)]
    for rank in np.split(np.arange(len(near.ranks)), np.flatnonzero(np.diff(near.ranks)) + 1):
        free = rank[~taken[near.objects[rank]]]
        first = free[np.diff(near.detections[free], prepend=-1) > 0]
        taken[near.objects[first]] = True
        hits.append(near.detections[first])
    return np.concatenate(hits)
