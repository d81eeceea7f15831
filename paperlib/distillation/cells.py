"""Cells of a feature level: those that boxes touch, those of anchors that fit a box, and the most valuable ones.

A level of stride s has a cell for every s x s pixels. All functions return constants for autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

ANCHOR_FRACTION = 0.5
"""FGFI's psi: an anchor fits a box if their IoU exceeds this fraction of the IoU of the box's best anchor."""


def touch_cells(boxes: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Tell for each box which cells of a level it touches: `[N, 4]` xyxy pixels to bool `[N, H, W]`.

    Args:
        boxes: the boxes.
        stride: side of a cell in pixels.
        size: number of rows and columns of the level, `(H, W)`.
    """
    left, top, right, bottom = boxes.unsqueeze(-1).unbind(1)
    rows, columns = (stride * torch.arange(count, device=boxes.device) for count in size)
    in_row = (top < rows + stride) & (bottom > rows)
    in_column = (left < columns + stride) & (right > columns)
    return in_row[:, :, None] & in_column[:, None, :]


def cover_cells(boxes: Sequence[Tensor], stride: int, size: tuple[int, int]) -> Tensor:
    """Tell which cells any box of the same image touches: B times `[N, 4]` xyxy pixels to bool `[B, H, W]`."""
    return torch.stack([touch_cells(each, stride, size).any(0) for each in boxes])


def fit_anchors(boxes: Sequence[Tensor], anchors: Tensor, stride: int, inside: Tensor) -> Tensor:
    """Tell which cells have an anchor that fits a box of their image, as FGFI does (Wang et al. 2019).

    Args:
        boxes: per image, `[N, 4]` xyxy pixels.
        anchors: `[K, 2]` width and height in pixels of the level's anchors, which lie at the centres of cells.
        stride: side of a cell in pixels.
        inside: bool `[B, H, W]`, the cells that belong to the image; no other cell is returned or compared.

    Returns:
        bool `[B, H, W]`.
    """
    height, width = inside.shape[1:]
    rows, columns = (stride * (torch.arange(n, device=inside.device) + 0.5) for n in (height, width))
    centres = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[:, :, None]
    half = anchors.to(centres) / 2
    grid = torch.cat([centres - half, centres + half], -1).flatten(0, 2)
    masks = []
    for each, valid in zip(boxes, inside, strict=True):
        overlap = box_iou(grid, each.to(grid)).view(height, width, len(anchors), len(each)) * valid[:, :, None, None]
        best = overlap.amax((0, 1, 2))
        masks.append((overlap > ANCHOR_FRACTION * best).any(-1).any(-1))
    return torch.stack(masks)


def count_box_cells(boxes: Sequence[Tensor], stride: int, inside: Tensor) -> Tensor:
    """Count for each cell the cells of the smallest box that touches it; 0 where no box does.

    The inverse is the scale mask of FGD (Yang et al. 2022) in the foreground.

    Args:
        boxes: per image, `[N, 4]` xyxy pixels.
        stride: side of a cell in pixels.
        inside: bool `[B, H, W]`, the cells that belong to the image; no other cell counts.

    Returns:
        int64 `[B, H, W]`.
    """
    counts = inside.new_zeros(inside.shape, dtype=torch.int64)
    for each, valid, count in zip(boxes, inside, counts, strict=True):
        touched = touch_cells(each, stride, (inside.shape[1], inside.shape[2])) & valid
        sizes = touched.sum((1, 2))
        # The smallest box is written last, so that it prevails.
        for index in sizes.argsort(descending=True).tolist():
            count[touched[index]] = sizes[index]
    return counts


def choose_cells(value: Tensor, region: Tensor, fraction: float) -> Tensor:
    """Choose per image the fraction of a region's cells that has the highest values; equal values stay together.

    Args:
        value: `[B, H, W]`.
        region: bool `[B, H, W]`. Of its n cells in an image, the ceil(fraction * n) best ones are chosen.
        fraction: q, in (0, 1].

    Returns:
        bool `[B, H, W]`.
    """
    if fraction == 1:
        return region
    # The order statistic rather than `quantile`, whose interpolation may round to above the value it stands for.
    ranked = value.masked_fill(~region, -torch.inf).flatten(1).sort(descending=True).values
    count = region.flatten(1).sum(1, keepdim=True)
    # In float64, and minus a little, because 0.55 * 100 is more than 55 there.
    last = (fraction * count.double() - 1e-9).ceil().long() - 1
    threshold = ranked.gather(1, last.clamp_min(0))
    return region & (value >= threshold[:, :, None])
