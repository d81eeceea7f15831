"""The base of one-stage detectors (Section 4.7): what all of them need."""

from __future__ import annotations

import torch
from torch import Tensor

from paperlib.detectors.base import Detector, Targets


class OneStage(Detector):
    """A detector without a second stage; a subclass defines `strides`, `decode` and `_detections`.

    Attributes:
        strides: of each head tensor, in pixels.
        selection: how detections are selected among the boxes: by non-maximum suppression, or as peaks of a heat map.
        score_threshold: detections have a higher score than this.
        max_detections: maximum number of detections per image, highest scores first.
    """

    traced_method = "head_outputs"
    selection = "nms"
    strides: tuple[int, ...]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # Low, because average precision takes in the whole curve, down to detections of low score.
        self.score_threshold = 0.005
        self.max_detections = 100

    def _check_sizes(self, outputs: list[Tensor], image_size: tuple[int, int]) -> None:
        """Refuse head tensors that do not belong to a batch of `image_size`."""
        expected = [(image_size[0] // s, image_size[1] // s) for s in self.strides]
        found = [tuple(output.shape[2:]) for output in outputs]
        if found != expected:
            raise ValueError(f"head tensors of sizes {found} do not belong to an image of {image_size}")


def flatten_targets(targets: Targets, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Concatenate the targets of a batch.

    Returns:
        Boxes `[N, 4]` of the dtype of `like`, labels in 1..C and image indices `[N]`, and the number of boxes of each
        image `[B]`, all on the device of `like`.
    """
    boxes = torch.cat([t["boxes"] for t in targets]).to(like)
    labels = torch.cat([t["labels"] for t in targets]).to(like.device)
    counts = torch.tensor([len(t["boxes"]) for t in targets], device=like.device)
    image = torch.repeat_interleave(torch.arange(len(targets), device=like.device), counts)
    return boxes, labels, image, counts
