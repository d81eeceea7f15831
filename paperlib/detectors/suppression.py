"""From boxes and scores to detections: the selection of candidates, and non-maximum suppression."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

MAX_CANDIDATES = 1000
"""Number of candidates of an image, highest scores first, that go into non-maximum suppression."""


def select_candidates(
    boxes: Tensor, scores: Tensor, size: tuple[int, int], threshold: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one image's best pairs of box and class, best first: boxes `[N, 4]`, classes in 0..C-1, scores `[N]`.

    Args:
        boxes: `[R, 4]` xyxy pixels, which are clipped to the image; those in its padding are dropped.
        scores: `[R, C]`.
        size: the image's `(height, width)` in pixels.
        threshold: scores must exceed this.
        most: the largest N.
    """
    boxes = clip_boxes_to_image(boxes, size)
    # Boxes in the padding have no area left after clipping.
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    row, label = ((scores > threshold) & has_area[:, None]).nonzero(as_tuple=True)
    score = scores[row, label]
    # Stable, so that equal scores keep the order of their rows and results are reproducible.
    order = score.argsort(descending=True, stable=True)[:most]
    return boxes[row[order]], label[order], score[order]


def suppress_non_maxima(
    boxes: Tensor, scores: Tensor, size: tuple[int, int], threshold: float, iou: float, most: int
) -> dict[str, Tensor]:
    """Return one image's detections after non-maximum suppression per class, best first.

    Args:
        boxes: `[R, 4]` xyxy pixels.
        scores: `[R, C]`.
        size: the image's `(height, width)` in pixels.
        threshold: scores must exceed this.
        iou: of two boxes of a class that overlap by more, only the one with the higher score stays.
        most: the largest number of detections.

    Returns:
        `boxes` `[N, 4]` within the image, `labels` in 1..C and `scores` `[N]`.
    """
    boxes, label, score = select_candidates(boxes, scores, size, threshold, MAX_CANDIDATES)
    kept = batched_nms(boxes.float(), score.float(), label, iou)[:most]
    return {"boxes": boxes[kept], "labels": label[kept] + 1, "scores": score[kept]}
