"""Augmentation of a whole batch at once: one resampling does flips, quarter turns, zoom, shift and mosaic.

Not stated in the paper; aerial scenes have no up and down, so all eight symmetries of the square are fair.
Everything random comes from the generator that is handed in, so a batch is a function of its seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = 0.5
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """How strongly to augment.

    Attributes:
        zoom: the picture is scaled by a factor between 1/zoom and zoom (1: not at all).
        shift: largest move, as a share of the side.
        symmetries: draw one of the eight flips and quarter turns.
        colour: largest relative change of brightness, contrast and saturation.
        mosaic: probability that a picture is put together from four others.
        visible: a box is kept when at least this share of it is still in the picture.
    """

    zoom: float = 1.3
    shift: float = 0.1
    symmetries: bool = True
    colour: float = 0.3
    mosaic: float = 0.0
    visible: float = 0.3


Batch = tuple[Tensor, list[dict[str, Tensor]]]


def augment(
    images: Tensor, boxes: list[Tensor], labels: list[Tensor], how: Augmentation, generator: torch.Generator
) -> Batch:
    """Augment a batch.

    Args:
        images: uint8 `[B, 3, S, S]`.
        boxes: per image `[n, 4]` xyxy pixels.
        labels: per image `[n]`.
        how: the strengths.
        generator: a CPU generator, the only source of chance.

    Returns:
        float32 `[B, 3, S, S]` in [0, 1], mosaics last, and the targets of the new pictures.
    """
    count, side = len(images), images.shape[-1]
    # Around grey, because outside a picture there are zeros.
    pixels = images.to(torch.float32).div_(255).sub_(GREY)
    plain = count - int((torch.rand(count, generator=generator) < how.mosaic).sum())
    parts = []
    if plain:
        parts.append(_view(pixels[:plain], boxes[:plain], labels[:plain], how, generator, side, zoom=1.0))
    if plain < count:
        parts.append(_mosaic(pixels, boxes, labels, how, generator, count - plain))
    out = torch.cat([views for views, _ in parts])
    return _recolour(out, how.colour, generator), [target for _, targets in parts for target in targets]


def _view(
    pixels: Tensor, boxes: list[Tensor], labels: list[Tensor], how: Augmentation,
    generator: torch.Generator, side: int, zoom: float,
) -> Batch:  # fmt: skip
    """Look at each picture through a random similarity, in a window of `side` pixels."""
    forward = _similarities(len(pixels), how, generator, zoom)
    inverse = torch.linalg.inv(forward)
    grid = _grid(inverse[:, :2].to(pixels), side)
    out = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    source = pixels.shape[-1]
    targets = [
        _move(box, label, matrix, source, side, how.visible)
        for box, label, matrix in zip(boxes, labels, forward.to(torch.float32), strict=True)
    ]
    return out, targets


def _grid(maps: Tensor, side: int) -> Tensor:
    """`[B, side, side, 2]` places that `[B, 2, 3]` maps send the pixels' centres to.

    What `F.affine_grid` gives, several times as fast: of x and of y a map is the sum of two lines.
    """
    axis = ((2 * torch.arange(side, device=maps.device) + 1) / side - 1)[:, None]
    along, down = axis * maps[:, None, :, 0], axis * maps[:, None, :, 1] + maps[:, None, :, 2]
    return along[:, None] + down[:, :, None]


def _similarities(count: int, how: Augmentation, generator: torch.Generator, zoom: float) -> Tensor:
    """`[count, 3, 3]` float64 maps from the source's to the window's coordinates, both in [-1, 1]."""
    draw = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    scale = zoom * torch.exp((2 * draw[:, 0] - 1) * math.log(how.zoom))
    turn = (draw[:, 1] * 8).floor().long() if how.symmetries else torch.zeros(count, dtype=torch.long)
    angle = (turn % 4) * (math.pi / 2)
    cosine, sine = angle.cos().round(), angle.sin().round()
    mirror = torch.where(turn >= 4, -1.0, 1.0).double()
    matrix = torch.zeros(count, 3, 3, dtype=torch.float64)
    matrix[:, 0, 0], matrix[:, 0, 1] = scale * cosine * mirror, -scale * sine
    matrix[:, 1, 0], matrix[:, 1, 1] = scale * sine * mirror, scale * cosine
    # A picture larger than the window may be moved until its border shows.
    reach = 2 * how.shift + (scale - 1).clamp(min=0)
    matrix[:, :2, 2] = (2 * draw[:, 2:4] - 1) * reach[:, None]
    matrix[:, 2, 2] = 1.0
    return matrix


def _move(box: Tensor, label: Tensor, matrix: Tensor, source: int, side: int, visible: float) -> dict[str, Tensor]:
    """Carry boxes along, clip them to the window and drop those of which too little is left."""
    unit = box.cpu() * (2 / source) - 1
    corners = unit.view(-1, 2, 2) @ matrix[:2, :2].T + matrix[:2, 2]
    corners = (corners + 1) * (side / 2)
    whole = torch.cat([corners.amin(1), corners.amax(1)], 1)
    clipped = whole.clamp(0, side)
    size, full = clipped[:, 2:] - clipped[:, :2], whole[:, 2:] - whole[:, :2]
    kept = (size.prod(1) >= visible * full.prod(1)) & (size.amin(1) >= 2)
    return {"boxes": clipped[kept].to(box), "labels": label[kept.to(label.device)]}


def _mosaic(
    pixels: Tensor, boxes: list[Tensor], labels: list[Tensor], how: Augmentation,
    generator: torch.Generator, count: int,
) -> Batch:  # fmt: skip
    """Put `count` pictures together, each from four quarters, each a view of a picture of the batch."""
    half = pixels.shape[-1] // 2
    quarters, parts = [], []
    for quarter in range(4):
        pick = torch.randperm(len(pixels), generator=generator)[:count]
        chosen = [boxes[i] for i in pick], [labels[i] for i in pick]
        view, targets = _view(pixels[pick.to(pixels.device)], *chosen, how, generator, half, zoom=math.sqrt(2))
        offset = view.new_tensor([quarter % 2, quarter // 2]).repeat(2) * half
        quarters.append(view)
        parts.append([{"boxes": t["boxes"] + offset, "labels": t["labels"]} for t in targets])
    rows = [torch.cat(quarters[:2], 3), torch.cat(quarters[2:], 3)]
    merged = [{key: torch.cat([part[i][key] for part in parts]) for key in ("boxes", "labels")} for i in range(count)]
    return torch.cat(rows, 2), merged


def _recolour(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation of each picture by its own factors, from around grey to [0, 1].

    All three are linear in the colour (r, g, b), so they are one 3 x 3 matrix and one offset per picture.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, generator=generator) - 1)
    brightness, contrast, saturation = factors.to(images)
    to_luma = images.new_tensor([LUMA])
    saturate = saturation * torch.eye(3).to(images) + (1 - saturation) * to_luma
    mean = to_luma @ images.mean((2, 3))[:, :, None]
    offset = brightness * ((1 - contrast) * mean + GREY)
    colours = torch.baddbmm(offset, brightness * contrast * saturate, images.flatten(2))
    return colours.clamp_(0, 1).view_as(images)
