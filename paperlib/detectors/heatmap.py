"""CenterNet's heatmaps: how far a peak spreads, and the focal loss that goes easy on its slopes."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_OVERLAP = 0.7
"""A cell belongs to a peak's slope as far as a box whose two corners moved by as much still has this IoU."""
PEAK_POWER, SLOPE_POWER = 2, 4
"""The focal loss's alpha and beta."""


def gaussian_radius(sizes: Tensor) -> Tensor:
    """How far both corners of a box may move, each along both axes, before its IoU falls to `MIN_OVERLAP`.

    Of the three ways to move them (inwards, outwards, both alike) inwards costs most: the radius r solves
    `(w - 2r)(h - 2r) = MIN_OVERLAP w h`. CornerNet's published code takes another root of its quadratics and draws
    slopes 2.8 times as wide; this is the rule as its paper states it.

    Args:
        sizes: `[P, 2]` widths and heights, in any unit.

    Returns:
        `[P]` radii in that unit.
    """
    total, area = sizes.sum(1), sizes.prod(1)
    return (total - (total.square() - 4 * (1 - MIN_OVERLAP) * area).sqrt()) / 4


def draw_peaks(plane: Tensor, cell: Tensor, radius: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Target heatmaps: 1 at each peak, a Gaussian slope around it, the higher of two where slopes meet.

    Args:
        plane: `[P]` the heatmap that each peak stands in, in 0..planes-1.
        cell: `[P, 2]` its column and line.
        radius: `[P]` whole cells that its slope reaches; a slope is cut off at three standard deviations.
        shape: `(planes, H, W)`.

    Returns:
        `[planes, H, W]` in [0, 1], double precision.
    """
    _, height, width = shape
    side = 2 * radius + 1
    peak = torch.repeat_interleave(side.square())
    place = torch.arange(len(peak), device=peak.device) - (side.square().cumsum(0) - side.square())[peak]
    away = torch.stack([place % side[peak], place // side[peak]], 1) - radius[peak, None]
    height_there = torch.exp(-18 * away.square().sum(1) / side[peak].double().square())  # a deviation is side / 6
    column, line = (cell[peak] + away).unbind(1)
    inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
    index = (plane[peak] * height + line) * width + column
    heatmap = torch.zeros(shape, dtype=torch.float64, device=cell.device)
    heatmap.view(-1).scatter_reduce_(0, index[inside], height_there[inside], "amax")
    return heatmap


def focal_weights(logits: Tensor, target: Tensor) -> Tensor:
    """What the focal loss multiplies each logit's cross entropy with; same shape.

    At a peak `(1 - p)^alpha`, elsewhere `(1 - Y)^beta p^alpha`, with p the sigmoid of the logit and Y the target.
    """
    missed, raised = (-logits).sigmoid() ** PEAK_POWER, logits.sigmoid() ** PEAK_POWER
    return torch.where(target == 1, missed, (1 - target) ** SLOPE_POWER * raised)
