"""CenterNet's heatmaps: how far a peak spreads, and the focal loss that goes easy on its slopes."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_OVERLAP = 0.7
"""The IoU from which a peak's reach is derived."""
PEAK_POWER, SLOPE_POWER = 2, 4
"""The focal loss's alpha and beta."""


def gaussian_radius(sizes: Tensor) -> Tensor:
    """How far around a box's centre a peak reaches.

    CornerNet's rule asks how far both corners of a box may move until its IoU with itself falls to `MIN_OVERLAP`, and
    takes the least of three quadratics' roots. The code published with it and with CenterNet forgets the leading
    coefficient when it divides, so that outward moves `r`, with `w h = MIN_OVERLAP (w + 2r)(h + 2r)`, always come out
    as the least, and `4 MIN_OVERLAP` = 2.8 times too large. The published results rest on that reach, so it is kept
    here: the rule to the letter would leave objects of less than about 50 pixels a peak of a single cell.

    Args:
        sizes: `[P, 2]` widths and heights, in any unit.

    Returns:
        `[P]` radii in that unit.
    """
    total, area = sizes.sum(1), sizes.prod(1)
    return MIN_OVERLAP * ((total.square() + 4 * (1 / MIN_OVERLAP - 1) * area).sqrt() - total)


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
