"""What one-stage detectors share (Section 4.7): what is done with their head tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from paperlib.detectors.base import Detector, Targets


class OneStage(Detector):
    """A detector whose head tensors are all there is; a subclass supplies `strides`, `decode` and `_detections`.

    Attributes:
        strides: of each head tensor, in pixels.
        score_threshold: detections score more than this.
        max_detections: as many an image at most, the best.
    """

    traced_method = "head_outputs"
    strides: tuple[int, ...]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.score_threshold = 0.005
        self.max_detections = 100

    def _check_sizes(self, outputs: list[Tensor], image_size: tuple[int, int]) -> None:
        """Refuse head tensors that do not belong to a batch of `image_size`."""
        expected = [(image_size[0] // s, image_size[1] // s) for s in self.strides]
        found = [tuple(output.shape[2:]) for output in outputs]
        if found != expected:
            raise ValueError(f"head tensors of sizes {found} do not belong to an image of {image_size}")


def flatten_targets(targets: Targets, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All N boxes of a batch `[N, 4]`, their labels in 1..C and images `[N]`, and each image's number of boxes.

    Boxes get the type of `like`, everything its device.
    """
    boxes = torch.cat([t["boxes"] for t in targets]).to(like)
    labels = torch.cat([t["labels"] for t in targets]).to(like.device)
    counts = torch.tensor([len(t["boxes"]) for t in targets], device=like.device)
    image = torch.repeat_interleave(torch.arange(len(targets), device=like.device), counts)
    return boxes, labels, image, counts


def best_candidates(
    boxes: Tensor, scores: Tensor, size: tuple[int, int], threshold: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One image's best pairs of a box and a class, best first: boxes `[N, 4]`, classes in 0..C-1 and scores `[N]`.

    Args:
        boxes: `[R, 4]` xyxy pixels, to be clipped to the image; those in its padding vanish.
        scores: `[R, C]`.
        size: the image's `(height, width)` in pixels.
        threshold: scores must exceed this.
        most: the largest N.
    """
    boxes = clip_boxes_to_image(boxes, size)
    shows = (boxes[:, 2:] > boxes[:, :2]).all(1)
    row, label = ((scores > threshold) & shows[:, None]).nonzero(as_tuple=True)
    score = scores[row, label]
    order = score.argsort(descending=True, stable=True)[:most]
    return boxes[row[order]], label[order], score[order]
