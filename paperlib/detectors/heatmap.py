"""CenterNet's heatmaps: the radius of a peak, its Gaussian, and the weights of the focal loss."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_OVERLAP = 0.7
"""The IoU from which the radius of a peak follows."""
PEAK_POWER, SLOPE_POWER = 2, 4
"""The focal loss's alpha and beta."""


def gaussian_radius(sizes: Tensor) -> Tensor:
    """Return the radius of the peak around a box's centre.

    CornerNet's rule: the distance by which both corners of a box may move until its IoU with itself falls to
    `MIN_OVERLAP`, the smallest of three quadratics' roots. The code published with CornerNet and CenterNet divides
    without the leading coefficient. The outward move `r`, with `w h = MIN_OVERLAP (w + 2r)(h + 2r)`, is then always
    the smallest, and `4 MIN_OVERLAP` = 2.8 times too large. The published results depend on that radius, so it is
    kept here; with the correct one, objects of less than about 50 pixels would have a peak of a single cell.

    Args:
        sizes: `[P, 2]` widths and heights, in any unit.

    Returns:
        `[P]` radii in that unit.
    """
    total, area = sizes.sum(1), sizes.prod(1)
    return MIN_OVERLAP * ((total.square() + 4 * (1 / MIN_OVERLAP - 1) * area).sqrt() - total)


def draw_peaks(plane: Tensor, cell: Tensor, radius: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Draw target heatmaps: 1 at each peak, a Gaussian around it, the maximum where two overlap.

    Args:
        plane: `[P]` index of the heatmap of each peak, in 0..planes-1.
        cell: `[P, 2]` its column and line.
        radius: `[P]` its radius in whole cells, which is three standard deviations.
        shape: `(planes, H, W)`.

    Returns:
        `[planes, H, W]` in [0, 1], double precision.
    """
    _, height, width = shape
    # All cells of all peaks in one list: `peak` is a cell's peak, `position` its number within the peak's square.
    side = 2 * radius + 1
    area = side.square()
    peak = torch.repeat_interleave(area)
    position = torch.arange(len(peak), device=peak.device) - (area.cumsum(0) - area)[peak]
    away = torch.stack([position % side[peak], position // side[peak]], 1) - radius[peak, None]
    value = torch.exp(-18 * away.square().sum(1) / side[peak].double().square())  # one standard deviation is side / 6
    column, line = (cell[peak] + away).unbind(1)
    inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
    index = (plane[peak] * height + line) * width + column
    heatmap = torch.zeros(shape, dtype=torch.float64, device=cell.device)
    heatmap.view(-1).scatter_reduce_(0, index[inside], value[inside], "amax")
    return heatmap


def focal_weights(logits: Tensor, target: Tensor) -> Tensor:
    """Return the factor of each logit's cross entropy in the focal loss; same shape.

    At a peak `(1 - p)^alpha`, elsewhere `(1 - Y)^beta p^alpha`, with p the sigmoid of the logit and Y the target.
    """
    # Where p is nearly 1, the difference 1 - p would lose its digits.
    missed = (-logits).sigmoid() ** PEAK_POWER
    raised = logits.sigmoid() ** PEAK_POWER
    return torch.where(target == 1, missed, (1 - target) ** SLOPE_POWER * raised)
