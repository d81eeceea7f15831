"""Loss of boxes that follows the training status (TSA): boxes harder than usual by now weigh more.

Built from the abstract of dynamic distillation (Zhang et al. 2022), which wants the student to mine objects of large
aspect ratio or small size; formulas ours. A box displaced by a few pixels loses the more of its overlap the smaller and
the more elongated it is, so hardness = 1 - IoU needs no term for size or shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from paperlib.distillation.dynamic_options import HardnessOptions
from paperlib.distillation.losses import bounded_regression_loss

AREAS, RATIOS = (32.0**2, 96.0**2), (1.5, 3.0)
"""Borders of the bins of area in square pixels (COCO's) and of aspect ratio."""
DISTANCES = ("smooth", "l1", "bound")
"""Values of `regression` that are distances; all boxes weigh the same then."""
SHORTEST_SIDE = 1.0
"""Pixels. A shorter side of a predicted box counts as this long: of a box without any, the CIoU is not defined."""
TINY = 1e-12


def box_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Compute the IoU of pairs of boxes: `[P, 4]` xyxy each to `[P]`."""
    sides = torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])
    common = sides.clamp(min=0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return common / (areas[0] + areas[1] - common).clamp(min=TINY)


def box_hardness(boxes: Tensor, truth: Tensor) -> Tensor:
    """Return the hardness h = 1 - IoU of predicted boxes `[P, 4]`, `[P]` in [0, 1]; a constant."""
    return 1 - box_overlap(boxes.detach(), truth)


def start_status(options: HardnessOptions) -> Tensor:
    """Return the status before the first box: NaN, per bin."""
    return torch.full(((len(AREAS) + 1) * (len(RATIOS) + 1) if options.regression == "bins" else 1,), torch.nan)


@torch.no_grad()
def update_status(status: Tensor, boxes: Tensor, truth: Tensor, options: HardnessOptions) -> Tensor:
    """Return the status m_t = rho m_(t-1) + (1 - rho) mean_i h_i; at first, it is the mean of the first batch.

    The mean is over all positives of all processes. With `regression="smooth"` it is the median of the errors instead
    (see `relative_boxes`), averaged over processes. A bin without boxes keeps its status.

    Args:
        status: `[bins]` from the step before.
        boxes: `[P, 4]` the student's boxes, xyxy pixels.
        truth: `[P, 4]` the true ones.
        options: see `HardnessOptions`.
    """
    if options.regression == "smooth":
        errors = relative_boxes(boxes - truth, truth).abs()
        values = errors.median()[None] if len(errors) else errors.new_zeros(0)
        bins = torch.zeros_like(values, dtype=torch.long)
    else:
        values = box_hardness(boxes, truth)
        bins = find_bins(truth) if options.regression == "bins" else torch.zeros_like(values, dtype=torch.long)
    status = status.to(values)
    sums = status.new_zeros(2, len(status))
    sums.index_add_(1, bins, torch.stack([values, torch.ones_like(values)]))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    mean = sums[0] / sums[1].clamp(min=1)
    moved = torch.where(status.isnan(), mean, options.decay * status + (1 - options.decay) * mean)
    return torch.where(sums[1] > 0, moved, status)


def find_bins(truth: Tensor) -> Tensor:
    """Return the bin of each true box `[P, 4]`, int64 `[P]`: by its area, then by its aspect ratio."""
    area, ratio = _area_and_ratio(truth)
    return torch.bucketize(area, area.new_tensor(AREAS)) * (len(RATIOS) + 1) + torch.bucketize(
        ratio, ratio.new_tensor(RATIOS)
    )


@torch.no_grad()
def box_weights(boxes: Tensor, truth: Tensor, status: Tensor, options: HardnessOptions, image_area: float) -> Tensor:
    """Return the weight of each box, `[P]`: w = min((h / m)^gamma, w_max), or 1 for a distance; a constant.

    With `regression="explicit"` it is times 1 + kappa_a (1 - 1/r) + kappa_s exp(-2 sqrt(area / image area)).

    Args:
        boxes: `[P, 4]` the student's boxes, xyxy pixels.
        truth: `[P, 4]` the true ones.
        status: `[bins]`, of this step.
        options: see `HardnessOptions`.
        image_area: of an image, in square pixels.
    """
    if options.regression in DISTANCES:
        return torch.ones_like(boxes[:, 0])
    current = status[find_bins(truth)] if options.regression == "bins" else status
    weights = (box_hardness(boxes, truth) / current.clamp(min=TINY)).pow(options.power).clamp(max=options.largest)
    if options.regression != "explicit":
        return weights
    area, ratio = _area_and_ratio(truth)
    small = torch.exp(-2 * (area / image_area).sqrt())
    return weights * (1 + options.aspect_gain * (1 - 1 / ratio) + options.size_gain * small)


def box_losses(boxes: Tensor, goal: Tensor, truth: Tensor, status: Tensor, options: HardnessOptions) -> Tensor:
    """Compute the loss of each box towards its goal, `[P]`.

    It is 1 - CIoU, or a distance in sides of the true box: with `regression="l1"` or `"smooth"` from the goal (beta is
    the status), with `"bound"` from the truth where the goal is nearer to it (Eq. 12).

    Args:
        boxes: `[P, 4]` the student's boxes, xyxy pixels.
        goal: `[P, 4]` the boxes to be learned; constants.
        truth: `[P, 4]` the true boxes.
        status: `[bins]`, of this step.
        options: see `HardnessOptions`.
    """
    goal = goal.detach()
    if options.regression not in DISTANCES:
        return complete_box_iou_loss(_widen(boxes), _widen(goal.to(boxes)))
    if options.regression == "bound":
        own, other = (relative_boxes(each - truth, truth) for each in (boxes, goal))
        return bounded_regression_loss(own, other, torch.zeros_like(own))
    error = relative_boxes(boxes - goal, truth).abs()
    if options.regression == "l1":
        return error.sum(1)
    beta = status.clamp(TINY, 1)
    return torch.where(error < beta, error.square() / (2 * beta), error - beta / 2).sum(1)


def relative_boxes(difference: Tensor, truth: Tensor) -> Tensor:
    """Divide differences of corners `[P, 4]` by the width and the height of the true boxes."""
    return difference / (truth[:, 2:] - truth[:, :2]).clamp(min=SHORTEST_SIDE).repeat(1, 2)


def weighted_mean(terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return sum m_i x_i / max(1, sum m_i) over pairs of weights m and values x, `[n]` each."""
    weights = torch.cat([weights for weights, _ in terms])
    return (weights * torch.cat([values for _, values in terms])).sum() / weights.sum().clamp(min=1)


def _area_and_ratio(truth: Tensor) -> tuple[Tensor, Tensor]:
    sides = (truth[:, 2:] - truth[:, :2]).clamp(min=TINY)
    return sides.prod(1), sides.amax(1) / sides.amin(1)


def _widen(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + SHORTEST_SIDE)], 1)
