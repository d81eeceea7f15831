"""Which detections of a class find an object, in the order of an evaluation by faster-coco-eval."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
from faster_coco_eval import COCOeval_faster


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

    def precision_recall(self, confidence: float) -> tuple[float, float]:
        """Return precision and recall (Eq. 13), at the first threshold, of what scores at least `confidence`."""
        kept = self.hits[self.scores >= confidence, 0]
        return float(kept.mean()) if len(kept) else 0.0, float(kept.sum()) / self.positives


def trace_classes(coco_eval: COCOeval_faster, num_classes: int, thresholds: np.ndarray) -> list[ClassCurve]:
    """Match the detections of each class with its objects at each IoU threshold; no object is ignored.

    Args:
        coco_eval: an evaluation, of which only the overlaps are used.
        num_classes: C.
        thresholds: `[T]`.
    """
    found, truth = coco_eval.cocoDt.dataset["annotations"], coco_eval.cocoGt.dataset["annotations"]
    scores: list[list[float]] = [[] for _ in range(num_classes + 1)]
    images: list[list[int]] = [[] for _ in range(num_classes + 1)]
    hits: list[list[np.ndarray]] = [[] for _ in range(num_classes + 1)]
    for each in found:
        scores[each["category_id"]].append(each["score"])
        images[each["category_id"]].append(each["image_id"])
    # Detections stand in the order of their scores within an image and class, as in the index, and images in theirs.
    counts = Counter((each["image_id"], each["category_id"]) for each in found)
    for (image, label), count in sorted(counts.items()):
        overlaps = np.asarray(coco_eval.ious[image, label])
        hits[label].append(np.array([_match_greedily(overlaps, count, limit) for limit in thresholds]).T)
    positives = Counter(each["category_id"] for each in truth)
    nothing = np.zeros((0, len(thresholds)), dtype=bool)
    return [
        ClassCurve(np.array(scores[k]), np.concatenate([nothing, *hits[k]]), np.array(images[k], int), positives[k])
        for k in range(1, num_classes + 1)
    ]


def _match_greedily(overlaps: np.ndarray, count: int, threshold: float) -> list[bool]:
    """Return which of `count` detections, best first, find an object: the one of largest IoU that is still free.

    Args:
        overlaps: `[detections, objects]`; empty if there is no object.
        count: the number of detections.
        threshold: the smallest IoU.
    """
    hits = [False] * count
    if len(overlaps) == 0:
        return hits
    near = np.nonzero(overlaps >= threshold - 1e-10)
    pairs = zip(near[0].tolist(), near[1].tolist(), strict=True)
    taken: set[int] = set()
    for detection, group in groupby(pairs, key=itemgetter(0)):
        # Of equally near objects COCO takes the last.
        free = [(overlaps[detection][other], other) for _, other in group if other not in taken]
        if free:
            hits[detection] = True
            taken.add(max(free)[1])
    return hits
