"""Anchors, region proposals and label assignment: the interface between the two stages of a detector.

The first stage scores R anchors per image and turns the best into proposals; the second classifies proposals and
refines their boxes. Both are trained on a random sample, drawn from torch's global generator as in torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import Conv2dNormActivation

from paperlib.detectors.base import InstanceLogits, Instances
from paperlib.detectors.blocks import at_least_float32, initialise_output_
from paperlib.detectors.resnet import initialise_convolutions_

Shape = tuple[float, float]
OBJECTNESS_PRIOR = 0.05
"""About the ratio of positives among the sampled anchors of an image with a dozen objects."""


@dataclass
class RegionOutputs:
    """The first stage's outputs for a `[B, 3, H, W]` batch.

    Attributes:
        levels: the pyramid's features `[B, F, H/s, W/s]`, finest first, from which the second stage pools.
        anchors: `[R, 4]` xyxy pixels, level by level, then row by row over cells, a cell's shapes innermost.
        objectness: `[B, R]` logits.
        deltas: `[B, R, 4]` from an anchor to its box: centre offset in anchor sides, log of the size over the anchor's.
        sizes: the `(height, width)` of each image before padding.
        classified: an assignment and the second stage's outputs for it, so that nothing is computed twice.
    """

    levels: list[Tensor]
    anchors: Tensor
    objectness: Tensor
    deltas: Tensor
    sizes: list[tuple[int, int]]
    classified: tuple[RegionAssignment, Tensor, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class RegionAssignment:
    """The training sample of both stages: S anchors, P of them positive, and K proposals, Q of them positive.

    Attributes:
        image: `[S]` index of the image in the batch.
        row: `[S]` index of the anchor.
        objects: `[S]` whether the anchor is positive.
        anchor_boxes: `[P, 4]` the boxes of the positive anchors, xyxy pixels.
        proposals: per image `[k, 4]` xyxy pixels, K in all.
        labels: `[K]` class of each proposal, in 1..C, 0 for background.
        proposal_boxes: `[Q, 4]` the boxes of the positive proposals, xyxy pixels.
    """

    image: Tensor
    row: Tensor
    objects: Tensor
    anchor_boxes: Tensor
    proposals: list[Tensor]
    labels: Tensor
    proposal_boxes: Tensor


class ShapedAnchors(AnchorGenerator):
    """torchvision's anchor generator with given shapes `(width, height)` in pixels for each level."""

    def __init__(self, shapes: Sequence[Sequence[Shape]]) -> None:
        # Sizes and ratios are placeholders: torchvision only counts them to learn the number of anchors in a cell.
        super().__init__(sizes=((1.0,),) * len(shapes), aspect_ratios=tuple((1.0,) * len(level) for level in shapes))
        # On the CPU even under the meta device: these are constants, which no weights file holds.
        # Not rounded to whole pixels, as torchvision's own are: small anchors would lose their shape.
        self.cell_anchors = [
            torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in level], device="cpu") for level in shapes
        ]

    def on_grids(self, levels: Sequence[Tensor], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return all anchors `[R, 4]` of feature maps `[B, F, h, w]` with these strides in pixels."""
        self.set_cell_anchors(dtype, levels[0].device)
        sizes = [list(level.shape[2:]) for level in levels]
        # torchvision annotates the strides as tensors; whole numbers do as well.
        return torch.cat(self.grid_anchors(sizes, [[s, s] for s in strides]))  # pyright: ignore[reportArgumentType]


class RegionHead(RPNHead):
    """torchvision's head of the region proposal network, with batch norm.

    All levels share one batch norm, which is trained on the statistics of all levels together. If each level were
    normalised by its own statistics in training, levels would shift against each other in evaluation.
    """

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__(channels, anchors)
        self.conv = Conv2dNormActivation(channels, channels, norm_layer=nn.BatchNorm2d)
        self.initialise_weights()

    def initialise_weights(self) -> None:
        """Draw fresh weights, small ones in the output layers; every anchor starts at a low objectness."""
        initialise_convolutions_(self.conv)
        initialise_output_(self.cls_logits, std=0.01, bias=math.log(OBJECTNESS_PRIOR / (1 - OBJECTNESS_PRIOR)))
        initialise_output_(self.bbox_pred, std=0.01)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map levels `[B, F, h, w]` to their logits `[B, A, h, w]` and deltas `[B, 4A, h, w]`."""
        if not self.training:
            return super().forward(x)
        conv, norm, activation = self.conv
        features = [conv(level) for level in x]
        # All levels side by side, as one image of one column, for the batch norm.
        together = activation(norm(torch.cat([level.flatten(2) for level in features], 2).unsqueeze(3)))
        parts = together.squeeze(3).split([level[0, 0].numel() for level in features], 2)
        features = [part.reshape(level.shape) for part, level in zip(parts, features, strict=True)]
        return [self.cls_logits(level) for level in features], [self.bbox_pred(level) for level in features]


def flat_rows(levels: Sequence[Tensor], values: int) -> Tensor:
    """Concatenate head tensors `[B, A*values, h, w]` to `[B, R, values]`, in float32 at least."""
    # Channels go last, so that the anchors of a cell are the innermost, as in torchvision's list of anchors.
    rows = [level.permute(0, 2, 3, 1).reshape(len(level), -1, values) for level in levels]
    return at_least_float32(torch.cat(rows, 1))


def judge_stages(answers: dict[str, tuple[Tensor, Tensor]], box_losses: Sequence[Tensor]) -> Instances:
    """Judge the positives of both stages, the first's first.

    Args:
        answers: per stage, by the name of its classification loss, logits `[n, C]` and true classes `[n]`.
        box_losses: per stage, `[n]`.
    """
    logits, losses, correct, first = {}, [], [], 0
    for name, (values, labels) in answers.items():
        places = torch.arange(first, first + len(labels), device=labels.device)
        logits[name] = InstanceLogits(values, places, values.new_ones(len(values)))
        losses.append(F.cross_entropy(values, labels, reduction="none"))
        correct.append(values.argmax(1) == labels)
        first += len(labels)
    return Instances(logits, torch.cat(losses), torch.cat(list(box_losses)), torch.cat(correct))


def best_negatives(scores: Tensor, assignment: RegionAssignment, limit: int) -> tuple[Tensor, Tensor]:
    """Return image and place in the sample of the up to `limit` best negative proposals of each image.

    Args:
        scores: `[K]` in [0, 1].
        assignment: the sample of K proposals.
        limit: the largest number per image.
    """
    counts = [len(each) for each in assignment.proposals]
    negative = scores.masked_fill(assignment.labels > 0, -1.0)
    places = torch.arange(len(scores), device=scores.device).split(counts)
    images, found = [], []
    for image, (of_image, place) in enumerate(zip(negative.split(counts), places, strict=True)):
        best = of_image.topk(min(limit, len(of_image)))
        found.append(place[best.indices[best.values >= 0]])
        images.append(torch.full_like(found[-1], image))
    return torch.cat(images), torch.cat(found)
