"""CenterNet ("Objects as Points") on ResNet-50 (Section 4.7): an object is a peak in its class's heatmap.

One *row* is one cell of the heatmap, four pixels wide, line by line; R of them make a batch's grid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.detectors.base import (
    Assignment,
    HeadResponses,
    HeadTensors,
    InstanceLogits,
    Instances,
    Targets,
)
from paperlib.detectors.blocks import at_least_float32, initialise_output_, scaled_width
from paperlib.detectors.heatmap import draw_peaks, focal_weights, gaussian_radius
from paperlib.detectors.one_stage import OneStage, flatten_targets
from paperlib.detectors.resnet import RESNET_50, ResNetTrunk, initialise_convolutions_
from paperlib.detectors.suppression import select_candidates

STRIDE = 4
SIZE_GAIN = 0.1
"""Weight of the size loss; offset and heatmap have weight 1."""
PEAK_PRIOR = 0.01
"""Initial probability of every heatmap cell: most cells show no object."""
BILINEAR = (0.25, 0.75, 0.75, 0.25)
"""Weights along one axis of the kernel that doubles a grid by interpolation."""
DECONVOLUTIONS, HEAD = (256, 128, 64), 64
"""Channels at width 1."""


class Deconvolution(nn.Module):
    """A transposed convolution that doubles the sides of its input, batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=True)
        self.initialise_weights()

    def initialise_weights(self) -> None:
        """Draw fresh weights: He's rule between channels, and a bilinear kernel for each pair of channels.

        The layer starts as an interpolation. With random kernels, training takes clearly longer to place the peaks.
        """
        initialise_convolutions_(self)
        weight = self.deconv.weight
        with torch.no_grad():
            mixing = nn.init.normal_(weight.new_empty((*weight.shape[:2], 1, 1)), std=math.sqrt(2 / len(weight)))
            taps = weight.new_tensor(BILINEAR)
            # An output pixel meets two of the four taps per axis. Their sum is 1, so He's rule counts channels alone.
            weight.copy_(mixing * taps[:, None] * taps)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, 2H, 2W]`."""
        return self.act(self.bn(self.deconv(x)))


class CenterNetHead(nn.Module):
    """A 3x3 convolution with batch normalisation and ReLU, and a 1x1 one with a bias.

    Args:
        inputs: number of input channels.
        hidden: number of channels between the two.
        outputs: number of output channels.
        start: initial bias, near which all outputs start.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, start: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, hidden, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.act = nn.ReLU(inplace=True)
        self.out = nn.Conv2d(hidden, outputs, 1)
        self.start = start
        self.initialise_weights()

    def initialise_weights(self) -> None:
        """Draw fresh weights, small ones in the output layer, and set its bias to `start`."""
        initialise_convolutions_(self)
        initialise_output_(self.out, std=0.01, bias=self.start)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, H, W]`."""
        return self.out(self.act(self.bn(self.conv(x))))


class CenterNet(OneStage):
    """CenterNet on ResNet-50, three plain deconvolutions and three heads on a grid of four pixels.

    This layout has the paper's 32.66 M parameters and 61.51 GMACs (10 classes, 800x800): deconvolutions of 256, 128
    and 64 channels, 64 in each head, and a trunk whose stages halve the image in their first 1x1 convolution. (256
    channels in all three make 34.44 M and 85.3 GMACs.) A head's 3x3 convolution could have a batch norm or a bias with
    the same numbers; it has a batch norm, because pruning needs its gamma.

    Args:
        num_classes: C, without background.
        width: multiplies every channel count except those of the outputs.
        depth: multiplies the trunk's numbers of blocks; each stage keeps at least one.
    """

    strides = (STRIDE,) * 3
    selection = "peaks"
    sources = ("up1.deconv", "up2.deconv", "up3.deconv")
    feature_strides = (4 * STRIDE, 2 * STRIDE, STRIDE)

    def __init__(self, num_classes: int, *, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__(num_classes)
        self.trunk = ResNetTrunk(RESNET_50, width=width, depth=depth, early_stride=True)
        c256, c128, c64 = (scaled_width(c, width) for c in DECONVOLUTIONS)
        self.up1 = Deconvolution(self.trunk.channels[-1], c256)
        self.up2 = Deconvolution(c256, c128)
        self.up3 = Deconvolution(c128, c64)
        hidden = scaled_width(HEAD, width)
        self.heatmap = CenterNetHead(c64, hidden, num_classes, start=math.log(PEAK_PRIOR / (1 - PEAK_PRIOR)))
        self.size = CenterNetHead(c64, hidden, 2)
        self.offset = CenterNetHead(c64, hidden, 2)

    def head_outputs(self, batch: Tensor) -> HeadTensors:
        """Compute heatmap `[B, C, H/4, W/4]`, size and offset `[B, 2, H/4, W/4]` of a `[B, 3, H, W]` batch.

        The heatmap is in logits; the box size `(width, height)` and the centre's offset `(x, y)` from the corner of
        its cell are in cells.
        """
        coarse = self.up1(self.trunk(batch)[-1])
        middle = self.up2(coarse)
        fine = self.up3(middle)
        return HeadTensors([self.heatmap(fine), self.size(fine), self.offset(fine)], [coarse, middle, fine])

    def decode(self, outputs: list[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Decode head tensors to boxes `[B, R, 4]` xyxy pixels and scores `[B, R, C]` of all R cells, line by line.

        There is no threshold. Peaks are picked afterwards: a cell is a detection of a class only if no cell in its 3x3
        neighbourhood scores higher (`nn.MaxPool2d(3, 1, 1)` of the heatmap), instead of non-maximum suppression.

        Args:
            outputs: heatmap, size and offset, from `head_outputs`.
            image_size: `(H, W)` of the batch in pixels.

        Raises:
            ValueError: the head tensors do not belong to an image of that size.
        """
        self._check_sizes(outputs, image_size)
        heatmap, size, offset = (at_least_float32(output).flatten(2).transpose(1, 2) for output in outputs)
        row = torch.arange(heatmap.shape[1], device=heatmap.device)
        centre = _cells(row, image_size[1] // STRIDE) + offset
        return _corners(centre, size), heatmap.sigmoid()

    def assign_targets(self, outputs: list[Tensor], targets: Targets) -> Assignment:
        """Assign each box to the cell that contains its centre; a cell can have several boxes."""
        height, width = outputs[0].shape[2:]
        boxes, labels, image, _ = flatten_targets(targets, at_least_float32(outputs[0]))
        column, line = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).long().unbind(1)
        # A centre on the right or bottom edge of the image would belong to a cell beyond the grid.
        row = line.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        ignored = torch.zeros((len(targets), height * width), dtype=torch.bool, device=boxes.device)
        return Assignment(image, row, boxes, labels - 1, ignored)

    def compute_losses(self, outputs: list[Tensor], assignment: Assignment) -> dict[str, Tensor]:
        """Compute the detector's own losses: `heatmap` (penalty-reduced focal loss), `offset` and `size` (L1)."""
        logits, peaks, weights = self._answers(outputs[0], assignment)
        found, true = self._regression(outputs, assignment)
        entropy = F.binary_cross_entropy_with_logits(logits, peaks, reduction="none")
        distance = (found - true).abs().sum(0) / assignment.count
        return {
            "heatmap": (weights * entropy).sum(),
            "offset": distance[:2].sum(),
            "size": distance[2:].sum(),
        }

    def head_responses(self, outputs: list[Tensor], assignment: Assignment) -> HeadResponses:
        """Return what distillation compares (Eqs. 10-12): heatmap logits, their weights, regressions of the positives.

        The weights of the heatmap's cross entropy are the focal modulation, `(1 - p)^2` at peaks and `(1 - Y)^4 p^2`
        elsewhere, as constants: a student that equals its teacher then gets no gradient. In the detector's own loss,
        the focal loss, gradients pass through them.

        In the regression space the detector's own box loss is the plain L1 distance: the centre's offset in cells,
        and `SIZE_GAIN` times the size in cells.
        """
        logits, peaks, weights = self._answers(outputs[0], assignment)
        found, true = self._regression(outputs, assignment)
        return HeadResponses(
            kind="sigmoid",
            logits={"heatmap": logits},
            hard_targets={"heatmap": peaks},
            weights={"heatmap": weights.detach()},
            regression=found,
            regression_target=true,
            regression_weight=1.0 / assignment.count,
            boxes=self._positive_boxes(outputs, assignment),
            true_boxes=assignment.boxes,
            instances=self._judge_positives(outputs, assignment, (found - true).abs().sum(1)),
        )

    def _positive_boxes(self, outputs: list[Tensor], assignment: Assignment) -> Tensor:
        """Decode the boxes of the positives, `[P, 4]` xyxy pixels."""
        size, offset = (at_least_float32(o).flatten(2)[assignment.image, :, assignment.row] for o in outputs[1:])
        return _corners(_cells(assignment.row, outputs[0].shape[3]) + offset, size)

    def _judge_positives(self, outputs: list[Tensor], assignment: Assignment, box_losses: Tensor) -> Instances:
        """Judge each positive by the focal loss of its class at its peak, and by the given loss of its box."""
        cells = at_least_float32(outputs[0]).flatten(2)[assignment.image, :, assignment.row]
        peak = cells.gather(1, assignment.labels[:, None]).squeeze(1)
        weights = focal_weights(peak, torch.ones_like(peak))
        positives = torch.arange(len(peak), device=peak.device)
        return Instances(
            logits={"heatmap": InstanceLogits(peak, positives, weights.detach())},
            class_losses=weights * F.softplus(-peak),
            box_losses=box_losses,
            correct=cells.argmax(1) == assignment.labels,
        )

    def cell_scores(self, outputs: HeadTensors) -> list[Tensor]:
        """Return the highest class probability of each cell of the three levels of features, `[B, H, W]` each."""
        finest = at_least_float32(outputs[0]).sigmoid().amax(1)
        return [F.max_pool2d(finest, stride // STRIDE) for stride in self.feature_strides]

    def _row_scores(self, outputs: HeadTensors) -> Tensor:
        return at_least_float32(outputs[0]).sigmoid().amax(1).flatten(1)

    def background_responses(
        self, outputs: HeadTensors, assignment: Assignment, places: tuple[Tensor, Tensor]
    ) -> Instances:
        """Judge cells that are no peak by the detector's own focal loss, close to a peak less than elsewhere."""
        image, row = places
        logits, peaks, weights = (each.flatten(2)[image, :, row] for each in self._answers(outputs[0], assignment))
        weights = weights * assignment.count
        losses = (weights * F.binary_cross_entropy_with_logits(logits, peaks, reduction="none")).sum(1)
        instances = torch.arange(len(row), device=row.device)
        answers = {"heatmap": InstanceLogits(logits, instances, weights.detach())}
        return Instances(answers, losses, torch.zeros_like(losses), (logits < 0).all(1))

    def _answers(self, heatmap: Tensor, assignment: Assignment) -> tuple[Tensor, Tensor, Tensor]:
        """Return the heatmap's logits, the true peaks (1, else 0), and each logit's weight; `[B, C, H/4, W/4]` each."""
        logits = at_least_float32(heatmap)
        images, classes, height, width = logits.shape
        plane = assignment.image * classes + assignment.labels
        cell = _cells(assignment.row, width)
        # Rounded down, like the published code: a small object's peak is its own cell alone.
        radius = gaussian_radius((assignment.boxes[:, 2:] - assignment.boxes[:, :2]) / STRIDE).long()
        target = draw_peaks(plane, cell, radius, (images * classes, height, width)).view_as(logits).to(logits)
        # A Gaussian is exactly 1 only at its centre, so this finds the peaks, also where another Gaussian overlaps.
        return logits, (target == 1).to(logits), focal_weights(logits, target) / assignment.count

    def _regression(self, outputs: list[Tensor], assignment: Assignment) -> tuple[Tensor, Tensor]:
        """Return the predictions and the targets of the positives, `[P, 4]` each, in the regression space."""
        size, offset = (at_least_float32(o).flatten(2)[assignment.image, :, assignment.row] for o in outputs[1:])
        low, high = assignment.boxes[:, :2] / STRIDE, assignment.boxes[:, 2:] / STRIDE
        cell = _cells(assignment.row, outputs[0].shape[3])
        true = torch.cat([(low + high) / 2 - cell, SIZE_GAIN * (high - low)], 1)
        return torch.cat([offset, SIZE_GAIN * size], 1), true

    def _detections(
        self, outputs: list[Tensor], image_size: tuple[int, int], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the highest peaks of each image."""
        boxes, scores = self.decode(outputs, image_size)
        # On logits: in float32 the sigmoid of all above about 17 is 1, and neighbours would tie.
        peaks = F.max_pool2d(outputs[0], 3, 1, 1) == outputs[0]
        scores = scores.masked_fill(~peaks.flatten(2).transpose(1, 2), 0.0)
        found = []
        for box, score, size in zip(boxes, scores, sizes, strict=True):
            box, label, score = select_candidates(box, score, size, self.score_threshold, self.max_detections)
            found.append({"boxes": box, "labels": label + 1, "scores": score})
        return found


def _corners(centre: Tensor, size: Tensor) -> Tensor:
    """Convert centres and sizes `[..., 2]` in cells to boxes `[..., 4]`, xyxy pixels."""
    # An untrained head can predict negative sizes, which would swap the corners of a box.
    half = size.clamp(min=0) / 2
    return torch.cat([centre - half, centre + half], -1) * STRIDE


def _cells(row: Tensor, width: int) -> Tensor:
    """Convert indices `[R]` of cells, line by line, to `[R, 2]` column and line."""
    return torch.stack([row % width, row // width], 1)
