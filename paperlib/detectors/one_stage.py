"""The base of one-stage detectors (Section 4.7): what all of them need."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from paperlib.detectors.base import Assignment, Detector, FeatureMap, HeadTensors, Targets


class OneStage(Detector):
    """A detector without a second stage; a subclass defines `strides`, `decode`, `_row_scores` and `_detections`.

    Attributes:
        strides: of each head tensor, in pixels.
        selection: how detections are selected among the boxes: by non-maximum suppression, or as peaks of a heat map.
        sources: per level of features, coarsest first, the convolution that they come from (see `FeatureMap`).
        feature_strides: per level of features, in pixels.
        score_threshold: detections have a higher score than this.
        max_detections: maximum number of detections per image, highest scores first.
    """

    traced_method = "head_outputs"
    selection = "nms"
    strides: tuple[int, ...]
    sources: tuple[str, ...]
    feature_strides: tuple[int, ...]
    _row_scores: Callable[[HeadTensors], Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # Low, because average precision takes in the whole curve, down to detections of low score.
        self.score_threshold = 0.005
        self.max_detections = 100

    def features(self, outputs: HeadTensors) -> list[FeatureMap]:
        """Return the levels that the heads read (see `paperlib.detectors.base`)."""
        levels = zip(outputs.features, self.feature_strides, self.sources, strict=True)
        return [
            FeatureMap(values, stride, source, self._level_anchors(level, values))
            for level, (values, stride, source) in enumerate(levels)
        ]

    @torch.no_grad()
    def find_background(self, outputs: HeadTensors, assignment: Assignment, limit: int) -> tuple[Tensor, Tensor]:
        """Return image and row of the up to `limit` highest scores of each image, without positives and ignored rows.

        Args:
            outputs: from `head_outputs`.
            assignment: the positives and the ignored rows.
            limit: the largest number per image.
        """
        scores = self._row_scores(outputs).masked_fill(assignment.ignored, -1.0)
        scores[assignment.image, assignment.row] = -1.0
        best = scores.topk(min(limit, scores.shape[1]), 1)
        image, rank = (best.values >= 0).nonzero(as_tuple=True)
        return image, best.indices[image, rank]

    def _level_anchors(self, level: int, like: Tensor) -> Tensor | None:
        return None

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
