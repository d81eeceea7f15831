"""The base of all YOLOs (Section 4.3): decoding, label assignment, losses and the selection of detections.

A YOLO head predicts, for each cell and each of its anchors, one *row* `(tx, ty, tw, th, objectness, classes…)`.
The rows of all heads form one table of R rows: coarse head first, then row by row over its cells, anchors
innermost. Everything after the network (decoding, assignment, losses) is arithmetic on that table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import complete_box_iou_loss

from paperlib.detectors.base import (
    Assignment,
    HeadResponses,
    HeadTensors,
    InstanceLogits,
    Instances,
    Targets,
)
from paperlib.detectors.blocks import at_least_float32, paired_iou
from paperlib.detectors.one_stage import OneStage, flatten_targets
from paperlib.detectors.suppression import suppress_non_maxima

Anchor = tuple[float, float]
OBJECTNESS_PRIOR = 0.01


@dataclass(frozen=True)
class LossGains:
    """Weights of the three parts of the YOLO loss; each part is a mean over the positive rows."""

    box: float = 8.0
    objectness: float = 1.0
    classes: float = 1.0


class Rows(NamedTuple):
    """The constants of each of the R rows for one image size: cell corner, stride and anchor in pixels, `scale_xy`."""

    corner: Tensor
    stride: Tensor
    anchor: Tensor
    scale: Tensor


class Yolo(OneStage):
    """The base of all YOLOs; a subclass defines `head_outputs` and the constants of its official configuration.

    Args:
        num_classes: C, without background.
        anchors: as many as `usual_anchors`, `(width, height)` in pixels, small to large; by default `usual_anchors`.

    Attributes:
        usual_anchors: the official anchors, for images of 416 pixels.
        masks: per head, coarse head first like all that follows, the indices of its anchors.
        strides: per head, in pixels.
        scale_xy: per head, how far beyond its cell a centre can be predicted (`scale_x_y`).
        match_iou: an anchor is also assigned to a box when their shapes overlap by more than this (`iou_thresh`).
        ignore_iou: a row whose prediction overlaps a box by more than this, without being assigned to it, is not
            trained as background (`ignore_thresh`).

    Raises:
        ValueError: a wrong number of anchors, or one without an area.
    """

    usual_anchors: tuple[Anchor, ...]
    masks: tuple[tuple[int, ...], ...] = ((6, 7, 8), (3, 4, 5), (0, 1, 2))
    strides: tuple[int, ...] = (32, 16, 8)
    feature_strides: tuple[int, ...] = (32, 16, 8)
    sources: tuple[str, ...] = ("coarse.conv", "middle.conv", "fine.conv")
    scale_xy: tuple[float, ...]
    match_iou = 0.213
    ignore_iou = 0.7

    def __init__(self, num_classes: int, anchors: Sequence[Anchor] | None = None) -> None:
        super().__init__(num_classes)
        anchors = self.usual_anchors if anchors is None else tuple(anchors)
        needed = len(self.usual_anchors)
        if len(anchors) != needed or not all(w > 0 and h > 0 for w, h in anchors):
            kind = type(self).__name__
            raise ValueError(f"{kind} needs {needed} anchors (width, height) of at least some area, not {anchors}")
        sizes = [(float(w), float(h)) for w, h in anchors]
        self.anchors = tuple(tuple(sizes[i] for i in mask) for mask in self.masks)
        self.gains = LossGains()
        self.nms_iou = 0.5

    def decode(self, outputs: list[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Decode head tensors to boxes `[B, R, 4]` xyxy pixels and scores `[B, R, C]`, without a threshold.

        Args:
            outputs: head tensors `[B, A*(5+C), H/s, W/s]`, from `head_outputs`.
            image_size: `(H, W)` of the batch in pixels.

        Returns:
            Boxes, and scores: objectness x class probability.

        Raises:
            ValueError: the head tensors do not belong to an image of that size.
        """
        self._check_sizes(outputs, image_size)
        table = self._table(outputs)
        boxes = self._boxes(table, self._rows(outputs))
        return boxes, table[..., 4:5].sigmoid() * table[..., 5:].sigmoid()

    def assign_targets(self, outputs: list[Tensor], targets: Targets) -> Assignment:
        """Assign rows to ground-truth boxes, for the whole batch at once.

        A box is assigned to the cell that contains its centre, and there to the anchor of the most similar shape and
        to every other whose shape overlaps by more than `match_iou`. Rows whose prediction fits a box without being
        assigned to it are marked to be ignored.
        """
        rows = self._rows(outputs)
        boxes, labels, image, counts = flatten_targets(targets, rows.anchor)
        matched, row = self._matches(boxes, outputs)
        with torch.no_grad():
            ignored = self._ignored(self._boxes(self._table(outputs).detach(), rows), boxes, image, counts)
        # A row may fit one box well and be assigned to another; then it is a positive.
        ignored[image[matched], row] = False
        return Assignment(image[matched], row, boxes[matched], labels[matched] - 1, ignored)

    def compute_losses(self, outputs: list[Tensor], assignment: Assignment) -> dict[str, Tensor]:
        """Compute the detector's own losses: `box` (1 - CIoU), `objectness` and `classes` (binary cross entropies)."""
        table = self._table(outputs)
        boxes = self._boxes(table, self._rows(outputs))[assignment.image, assignment.row]
        box = complete_box_iou_loss(boxes, assignment.boxes, reduction="sum")
        hard = self.head_responses(outputs, assignment).hard_losses()
        return {"box": self.gains.box * box / assignment.count, **hard}

    def head_responses(self, outputs: list[Tensor], assignment: Assignment) -> HeadResponses:
        """Return what distillation compares (Eqs. 10-12): logits, their weights, regressions of the positives.

        The regression space is that of YOLO: centre offset in cells, and log of the size over the anchor's.
        """
        table = self._table(outputs)
        rows = Rows(*(constant[assignment.row] for constant in self._rows(outputs)))
        chosen = table[assignment.image, assignment.row]
        offset = (self._centre(chosen[:, :2], rows) - rows.corner) / rows.stride
        low, high = assignment.boxes[:, :2], assignment.boxes[:, 2:]
        target_offset = ((low + high) / 2 - rows.corner) / rows.stride
        objectness = torch.zeros_like(table[..., 4])
        # Since YOLOv3 the target is 1, not the IoU of the prediction as before.
        objectness[assignment.image, assignment.row] = 1.0
        mean = 1.0 / assignment.count
        return HeadResponses(
            kind="sigmoid",
            logits={"objectness": table[..., 4], "classes": chosen[:, 5:]},
            hard_targets={
                "objectness": objectness,
                "classes": F.one_hot(assignment.labels, self.num_classes).to(chosen.dtype),
            },
            weights={
                "objectness": (~assignment.ignored).to(chosen.dtype) * (self.gains.objectness * mean),
                "classes": torch.full_like(chosen[:, 5:], self.gains.classes * mean),
            },
            regression=torch.cat([offset, chosen[:, 2:4]], 1),
            regression_target=torch.cat([target_offset, ((high - low) / rows.anchor).log()], 1),
            regression_weight=self.gains.box * mean,
            boxes=(boxes := self._boxes(chosen, rows)),
            true_boxes=assignment.boxes,
            instances=self._judge_positives(chosen, boxes, assignment),
        )

    def _judge_positives(self, rows: Tensor, boxes: Tensor, assignment: Assignment) -> Instances:
        """Judge the rows `[P, 5+C]` of the positives, whose decoded boxes are `[P, 4]`."""
        classes, truth = rows[:, 5:], F.one_hot(assignment.labels, self.num_classes).to(rows.dtype)
        entropy = F.binary_cross_entropy_with_logits(classes, truth, reduction="none").sum(1)
        return Instances(
            logits={
                "objectness": self._instance_logits(rows[:, 4], self.gains.objectness),
                "classes": self._instance_logits(classes, self.gains.classes),
            },
            class_losses=self.gains.objectness * F.softplus(-rows[:, 4]) + self.gains.classes * entropy,
            box_losses=self.gains.box * complete_box_iou_loss(boxes, assignment.boxes),
            correct=classes.argmax(1) == assignment.labels,
        )

    @staticmethod
    def _instance_logits(values: Tensor, gain: float) -> InstanceLogits:
        return InstanceLogits(values, torch.arange(len(values), device=values.device), torch.full_like(values, gain))

    def cell_scores(self, outputs: HeadTensors) -> list[Tensor]:
        """Return per head the highest objectness x class probability of each cell, `[B, H/s, W/s]`."""
        tables = [at_least_float32(o.unflatten(1, (-1, 5 + self.num_classes))).sigmoid() for o in outputs]
        return [(table[:, :, 4] * table[:, :, 5:].amax(2)).amax(1) for table in tables]

    def _row_scores(self, outputs: HeadTensors) -> Tensor:
        table = self._table(outputs).sigmoid()
        return table[..., 4] * table[..., 5:].amax(-1)

    def background_responses(
        self, outputs: HeadTensors, assignment: Assignment, places: tuple[Tensor, Tensor]
    ) -> Instances:
        """Judge rows whose truth is background: their objectness alone, as in the detector's own loss."""
        objectness = self._table(outputs)[..., 4][places]
        losses = self.gains.objectness * F.softplus(objectness)
        logits = {"objectness": self._instance_logits(objectness, self.gains.objectness)}
        return Instances(logits, losses, torch.zeros_like(losses), objectness < 0)

    def _level_anchors(self, level: int, like: Tensor) -> Tensor:
        return like.new_tensor(self.anchors[level])

    @staticmethod
    def _read_heads(*levels: tuple[nn.Module, nn.Module, Tensor]) -> HeadTensors:
        """Apply a convolution and a head to each input of a level; return the heads' outputs with what they read."""
        outputs, features = [], []
        for convolve, head, x in levels:
            features.append(convolve(x))
            outputs.append(head(features[-1]))
        return HeadTensors(outputs, features)

    def _table(self, outputs: list[Tensor]) -> Tensor:
        """Concatenate the rows of all head tensors to `[B, R, 5+C]`, in float32 at least."""
        parts = [o.permute(0, 2, 3, 1).reshape(o.shape[0], -1, 5 + self.num_classes) for o in outputs]
        return at_least_float32(torch.cat(parts, 1))

    def _rows(self, outputs: list[Tensor]) -> Rows:
        grids = tuple((o.shape[2], o.shape[3]) for o in outputs)
        dtype = torch.promote_types(outputs[0].dtype, torch.float32)
        return _row_constants(grids, self.strides, self.anchors, self.scale_xy, dtype, outputs[0].device)

    def _centre(self, txy: Tensor, rows: Rows) -> Tensor:
        """Decode box centres to pixels; `scale_xy` lets a centre reach the border of its cell."""
        return (txy.sigmoid() * rows.scale - (rows.scale - 1) / 2) * rows.stride + rows.corner

    def _boxes(self, table: Tensor, rows: Rows) -> Tensor:
        """Decode a `[B, R, 5+C]` table to `[B, R, 4]` xyxy pixels."""
        centre = self._centre(table[..., :2], rows)
        # e^8 is about 3000 anchor sides, more than any object; without a bound it can overflow early in training.
        half = table[..., 2:4].clamp(max=8.0).exp() * rows.anchor / 2
        return torch.cat([centre - half, centre + half], -1)

    def _matches(self, boxes: Tensor, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the indices `(box, row)` of each pair of a box and a row assigned to it."""
        anchors = boxes.new_tensor([anchor for head in self.anchors for anchor in head])
        size, centre = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
        # The IoU of two boxes laid on the same centre: only their shapes count.
        shape = torch.minimum(size[:, None], anchors).prod(-1)
        shape = shape / (size.prod(-1)[:, None] + anchors.prod(-1) - shape)
        # Anchors that tie for the best all match: YOLOv4-tiny has one anchor in both heads.
        matched = (shape > self.match_iou) | (shape == shape.max(1, keepdim=True).values)
        found, rows, first_row = [], [], 0
        by_head = matched.split([len(head) for head in self.anchors], 1)
        for output, stride, of_head in zip(outputs, self.strides, by_head, strict=True):
            height, width = output.shape[2:]
            box, anchor = of_head.nonzero(as_tuple=True)
            column, line = (centre[box] / stride).long().unbind(1)
            cell = line.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            found.append(box)
            rows.append(first_row + cell * of_head.shape[1] + anchor)
            first_row += height * width * of_head.shape[1]
        return torch.cat(found), torch.cat(rows)

    def _ignored(self, found: Tensor, boxes: Tensor, image: Tensor, counts: Tensor) -> Tensor:
        """Return `[B, R]`, true where a predicted box overlaps a ground truth of its image by over `ignore_iou`."""
        if len(boxes) == 0:
            return torch.zeros(found.shape[:2], dtype=torch.bool, device=found.device)
        # One row of boxes per image, filled up with empty ones, which overlap nothing.
        column = torch.arange(len(boxes), device=boxes.device) - (counts.cumsum(0) - counts)[image]
        padded = boxes.new_zeros((len(counts), int(counts.max()), 4))
        padded[image, column] = boxes
        overlap, _ = paired_iou(found[:, :, None], padded[:, None])
        return overlap.amax(2) > self.ignore_iou

    def _detections(
        self, outputs: list[Tensor], image_size: tuple[int, int], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the detections of each image after non-maximum suppression per class."""
        found = []
        for boxes, scores, size in zip(*self.decode(outputs, image_size), sizes, strict=True):
            limits = (self.score_threshold, self.nms_iou, self.max_detections)
            found.append(suppress_non_maxima(boxes, scores, size, *limits))
        return found


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # cached by an evaluation, the constants must serve the next training step
def _row_constants(
    grids: tuple[tuple[int, int], ...],
    strides: tuple[int, ...],
    anchors: tuple[tuple[Anchor, ...], ...],
    scale_xy: tuple[float, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Rows:
    """Compute the constants of all rows for grids of these `(height, width)`, in double precision until the end."""
    parts = []
    for (height, width), stride, head, scale in zip(grids, strides, anchors, scale_xy, strict=True):
        line, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        corner = torch.stack([column, line], -1).reshape(-1, 1, 2).double() * stride
        corner = corner.expand(-1, len(head), 2).reshape(-1, 2)
        anchor = torch.tensor(head, dtype=torch.float64).expand(height * width, -1, 2).reshape(-1, 2)
        one = corner.new_ones((len(corner), 1))
        parts.append((corner, one * stride, anchor, one * scale))
    return Rows(*(torch.cat(constant).to(device, dtype) for constant in zip(*parts, strict=True)))


class YoloHead(nn.Conv2d):
    """The output convolution of a head, from `[B, inputs, H, W]` to `[B, A*(5+C), H, W]`."""

    def __init__(self, inputs: int, anchors: int, num_classes: int) -> None:
        super().__init__(inputs, anchors * (5 + num_classes), 1)
        self.num_classes = num_classes
        self.initialise_weights()

    def initialise_weights(self) -> None:
        """Draw small weights; set biases so that every row starts at a low objectness and equal class scores."""
        nn.init.normal_(self.weight, std=0.01)
        bias = torch.zeros(self.out_channels // (5 + self.num_classes), 5 + self.num_classes)
        bias[:, 4] = math.log(OBJECTNESS_PRIOR / (1 - OBJECTNESS_PRIOR))
        # The sigmoid of this is 1/C, from two classes on.
        bias[:, 5:] = -math.log(max(self.num_classes - 1, 1))
        with torch.no_grad():
            self.get_parameter("bias").copy_(bias.flatten())
