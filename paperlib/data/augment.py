"""Augmentation of a batch: one resampling does flips, quarter turns, zoom, shift and mosaic.

The paper does not state its augmentation. Aerial scenes have no up and down, so all eight symmetries of the square are
used. All random numbers come from the given generator, so a batch is a function of its seed.
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
    """Strength of the augmentation.

    Attributes:
        zoom: an image is scaled by a factor between 1/zoom and zoom (1: not at all).
        shift: largest shift, as a fraction of the side.
        symmetries: whether to draw one of the eight flips and quarter turns.
        colour: largest relative change of brightness, contrast and saturation.
        mosaic: probability that an image is composed of four others.
        visible: a box is kept when at least this fraction of it is still in the image.
        crop: whether a batch has the shape of its largest image instead of a square that is grey beside it.
    """

    zoom: float = 1.3
    shift: float = 0.1
    symmetries: bool = True
    colour: float = 0.3
    mosaic: float = 0.0
    visible: float = 0.3
    crop: bool = False


Batch = tuple[Tensor, list[dict[str, Tensor]]]


def augment(
    images: Tensor, boxes: list[Tensor], labels: list[Tensor], options: Augmentation, generator: torch.Generator,
    visible: list[Tensor] | None = None,
) -> Batch:  # fmt: skip
    """Augment a batch.

    Args:
        images: uint8 `[B, 3, S, S]`.
        boxes: per image `[n, 4]` xyxy pixels.
        labels: per image `[n]`.
        options: the strengths.
        generator: a CPU generator, the only source of random numbers.
        visible: per image `[k, 4]` xyxy pixels, the rectangles that show it and not grey padding; by default all.

    Returns:
        float32 `[B, 3, S, S]` in [0, 1], mosaics last, and the targets of the new images: `boxes`, `labels`, and
        `visible`, the rectangles that show an image. With `crop` both sides are multiples of 32, S at most, and the
        quarter turns of a batch bring all of its images into one position, upright or on their side.

    Raises:
        ValueError: both `crop` and `mosaic` are set; four images fill a square.
    """
    if options.crop and options.mosaic:
        raise ValueError(f"mosaic is {options.mosaic:g}: mosaics are squares; set it to 0, or crop_padding to false")
    count, side = len(images), images.shape[-1]
    # Centred at grey, because resampling fills the outside of an image with zeros.
    pixels = images.to(torch.float32).div_(255).sub_(GREY)
    if visible is None:
        visible = [torch.tensor([[0.0, 0.0, side, side]])] * count
    given = [
        {"boxes": box, "labels": label, "visible": area}
        for box, label, area in zip(boxes, labels, visible, strict=True)
    ]
    plain = count - int((torch.rand(count, generator=generator) < options.mosaic).sum())
    parts = []
    if plain:
        views = (pixels[:plain], given[:plain], options, generator)
        parts.append(_cropped_view(*views) if options.crop else _view(*views, side, zoom=1.0))
    if plain < count:
        parts.append(_mosaic(pixels, given, options, generator, count - plain))
    out = torch.cat([views for views, _ in parts])
    return _recolour(out, options.colour, generator), [target for _, targets in parts for target in targets]


def _view(
    pixels: Tensor, given: list[dict[str, Tensor]], options: Augmentation,
    generator: torch.Generator, side: int, zoom: float,
) -> Batch:  # fmt: skip
    """Resample each image by a random similarity, in a window of `side` pixels."""
    return _resample(pixels, given, options, _similarities(len(pixels), options, generator, zoom), (side, side))


def _cropped_view(
    pixels: Tensor, given: list[dict[str, Tensor]], options: Augmentation, generator: torch.Generator
) -> Batch:
    """Resample each image by a random similarity, in a window of the shape that the images of the batch have."""
    source = pixels.shape[-1]
    areas = torch.cat([target["visible"] for target in given]).to("cpu", torch.float64)
    extent = areas[:, 2:] - areas[:, :2]
    turned = None
    if options.symmetries:
        upright = bool(torch.rand((), generator=generator) < 0.5)
        turned = (extent[:, 0] > extent[:, 1]) == upright
        extent = torch.where(turned[:, None], extent.flip(1), extent)
    width, height = (32 * math.ceil(float(longest) / 32) for longest in extent.amax(0))
    maps = _similarities(len(pixels), options, generator, 1.0, turned)
    # The window is centred on the image, which lies in the upper left corner of its square, at the same scale.
    maps[:, :2, :2] *= source / torch.tensor([[width], [height]], dtype=torch.float64)
    centre = (areas[:, :2] + areas[:, 2:]) / source - 1
    maps[:, :2, 2] -= (maps[:, :2, :2] @ centre[:, :, None])[:, :, 0]
    return _resample(pixels, given, options, maps, (height, width))


def _resample(
    pixels: Tensor, given: list[dict[str, Tensor]], options: Augmentation, forward: Tensor, size: tuple[int, int]
) -> Batch:
    """Map images and targets by `[B, 3, 3]` affine maps into windows of `(height, width)` pixels."""
    # `grid_sample` needs, for each pixel of the window, its place in the source.
    inverse = torch.linalg.inv(forward)
    grid = _grid(inverse[:, :2].to(pixels), *size)
    out = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    targets = _move(given, forward.to(torch.float32), pixels.shape[-1], size, options.visible)
    return out, targets


def _grid(maps: Tensor, height: int, width: int) -> Tensor:
    """Map the pixels' centres by `[B, 2, 3]` affine maps, to `[B, height, width, 2]`.

    Equal to `F.affine_grid`, but several times faster: a map is the sum of a function of x and one of y.
    """
    # With `align_corners=False`, -1 and 1 are the image's edges; the outer pixels' centres lie half a pixel inside.
    across, down = (((2 * torch.arange(side, device=maps.device) + 1) / side - 1)[:, None] for side in (width, height))
    of_x, of_y = across * maps[:, None, :, 0], down * maps[:, None, :, 1] + maps[:, None, :, 2]
    return of_x[:, None] + of_y[:, :, None]


def _similarities(
    count: int, options: Augmentation, generator: torch.Generator, zoom: float, turned: Tensor | None = None
) -> Tensor:
    """Draw `[count, 3, 3]` float64 maps from the source's to the window's coordinates, both in [-1, 1].

    With `turned` `[count]` it is given which images lie on their side afterwards.
    """
    draw = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    # Uniform in the logarithm: enlarging and shrinking are equally likely.
    scale = zoom * torch.exp((2 * draw[:, 0] - 1) * math.log(options.zoom))
    turn = (draw[:, 1] * 8).floor().long() if options.symmetries else torch.zeros(count, dtype=torch.long)
    if turned is not None:
        turn = turn // 2 * 2 + turned.long()
    angle = (turn % 4) * (math.pi / 2)
    # Rounded, because the cosine of pi / 2 is 6e-17 in floating point.
    cosine, sine = angle.cos().round(), angle.sin().round()
    mirror = torch.where(turn >= 4, -1.0, 1.0).double()
    matrix = torch.zeros(count, 3, 3, dtype=torch.float64)
    matrix[:, 0, 0], matrix[:, 0, 1] = scale * cosine * mirror, -scale * sine
    matrix[:, 1, 0], matrix[:, 1, 1] = scale * sine * mirror, scale * cosine
    # An image larger than the window may also be shifted until its border shows.
    largest = 2 * options.shift + (scale - 1).clamp(min=0)
    matrix[:, :2, 2] = (2 * draw[:, 2:4] - 1) * largest[:, None]
    matrix[:, 2, 2] = 1.0
    return matrix


def _move(
    given: list[dict[str, Tensor]], maps: Tensor, source: int, window: tuple[int, int], visible: float
) -> list[dict[str, Tensor]]:
    """Map the boxes and rectangles of each image by its map of `maps` `[B, 3, 3]`, and clip them to the window.

    Boxes of which too little is left are dropped.
    """
    # The boxes of all images are mapped together, because a few operations on many boxes take less time.
    unclipped, boxes, counts = _map_together([target["boxes"] for target in given], maps, source, window)
    _, areas, area_counts = _map_together([target["visible"] for target in given], maps, source, window)
    size, full_size = boxes[:, 2:] - boxes[:, :2], unclipped[:, 2:] - unclipped[:, :2]
    is_kept = (size.prod(1) >= visible * full_size.prod(1)) & (size.amin(1) >= 2)
    moved = zip(given, boxes.split(counts), is_kept.split(counts), areas.split(area_counts), strict=True)
    return [
        {
            "boxes": box[kept].to(target["boxes"]),
            "labels": target["labels"][kept.to(target["labels"].device)],
            "visible": area,
        }
        for target, box, kept, area in moved
    ]


def _map_together(
    rectangles: list[Tensor], maps: Tensor, source: int, window: tuple[int, int]
) -> tuple[Tensor, Tensor, list[int]]:
    """Map the rectangles `[n, 4]` of each image from the source's pixels to those of a window of `(height, width)`.

    Returns:
        all rectangles in the order of the images, mapped; the same clipped to the window; their number per image.
    """
    counts = [len(each) for each in rectangles]
    maps = maps.repeat_interleave(torch.tensor(counts), 0)
    bounds = torch.tensor(window[::-1], dtype=torch.float32)
    unit = torch.cat(rectangles).cpu() * (2 / source) - 1
    # Two opposite corners are enough: flips and quarter turns keep a rectangle parallel to the axes.
    corners = unit.view(-1, 2, 2) @ maps[:, :2, :2].mT + maps[:, None, :2, 2]
    corners = (corners + 1) * (bounds / 2)
    mapped = torch.cat([corners.amin(1), corners.amax(1)], 1)
    return mapped, mapped.clamp(min=0).minimum(bounds.repeat(2)), counts


def _mosaic(
    pixels: Tensor, given: list[dict[str, Tensor]], options: Augmentation, generator: torch.Generator, count: int
) -> Batch:  # fmt: skip
    """Compose `count` images, each of four quarters, each a view of an image of the batch."""
    half = pixels.shape[-1] // 2
    quarters, parts = [], []
    for quarter in range(4):
        pick = torch.randperm(len(pixels), generator=generator)[:count]
        # With a zoom of 1 a quarter would show a full image, and every object at half its size.
        view, targets = _view(
            pixels[pick.to(pixels.device)], [given[i] for i in pick], options, generator, half, zoom=math.sqrt(2)
        )
        offset = view.new_tensor([quarter % 2, quarter // 2]).repeat(2) * half
        quarters.append(view)
        parts.append([t | {key: t[key] + offset.to(t[key]) for key in ("boxes", "visible")} for t in targets])
    rows = [torch.cat(quarters[:2], 3), torch.cat(quarters[2:], 3)]
    merged = [{key: torch.cat([part[i][key] for part in parts]) for key in parts[0][0]} for i in range(count)]
    return torch.cat(rows, 2), merged


def _recolour(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation of each image by its own factors; shift values to [0, 1].

    All three are linear in the colour (r, g, b), so they are one 3 x 3 matrix and one offset per image.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, generator=generator) - 1)
    brightness, contrast, saturation = factors.to(images)
    to_luma = images.new_tensor([LUMA])
    saturate = saturation * torch.eye(3).to(images) + (1 - saturation) * to_luma
    mean = to_luma @ images.mean((2, 3))[:, :, None]
    # The pixels are still centred at grey; adding GREY here moves them back to [0, 1].
    offset = brightness * ((1 - contrast) * mean + GREY)
    colours = torch.baddbmm(offset, brightness * contrast * saturate, images.flatten(2))
    return colours.clamp_(0, 1).view_as(images)


def augment_scenes(images: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Augment a batch of scenes by a random resized crop, flips or symmetries, and colour.

    The crop has between 1 / zoom² and 1 of the image's area, and a ratio of width to height between 3/4 and 4/3; it
    lies anywhere in the image and is enlarged to the image's size. With `symmetries` one of the eight flips and
    quarter turns follows, else a flip from left to right with probability 1/2. `shift`, `visible` and `crop` have
    no effect.

    Args:
        images: uint8 `[B, 3, S, S]`.
        options: the strengths.
        generator: a CPU generator, the only source of random numbers.

    Returns:
        float32 `[B, 3, S, S]` in [0, 1].

    Raises:
        ValueError: `mosaic` is not 0; four scenes in one would have four classes.
    """
    if options.mosaic:
        raise ValueError(f"mosaic is {options.mosaic:g}: scenes cannot be put together from four; set it to 0")
    pixels = images.to(torch.float32).div_(255).sub_(GREY)
    maps = _crops(len(pixels), options, generator)
    # Beyond the border nothing is sampled but half a pixel at most, which repeats the border.
    views = F.grid_sample(
        pixels, _grid(maps.to(pixels), *pixels.shape[-2:]), mode="bilinear", padding_mode="border", align_corners=False
    )
    return _recolour(views, options.colour, generator)


def _crops(count: int, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Draw `[count, 2, 3]` float64 maps from the window's to the source's coordinates, both in [-1, 1]."""
    draw = torch.rand(count, 7, generator=generator, dtype=torch.float64)
    smallest = options.zoom**-2
    area = smallest + (1 - smallest) * draw[:, 0]
    # Without zoom nothing is cut, so a crop has the image's shape, too.
    ratio = torch.exp((2 * draw[:, 1] - 1) * min(math.log(4 / 3), 2 * math.log(options.zoom)))
    # A crop that would be wider or higher than the image has its full width or height.
    size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1)
    centre = (2 * draw[:, 2:4] - 1) * (1 - size)
    # The eight symmetries are two flips and an exchange of the axes, each with probability 1/2.
    flips = draw[:, 4:] < 0.5
    if not options.symmetries:
        flips[:, 1:] = False
    scale = torch.diag_embed(torch.where(flips[:, :2], -size, size))
    scale = torch.where(flips[:, 2, None, None], scale.flip(2), scale)
    return torch.cat([scale, centre[:, :, None]], dim=2)
