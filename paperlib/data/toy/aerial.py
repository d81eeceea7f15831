"""`toy-aerial`, the embedded data set: aerial scenes with the ten VHR-10 classes, drawn from a seed.

It stands in for Section 4.1's data where nothing may be downloaded. Each image is a function of (seed, split,
index) and of nothing else: the same three give the same bytes, whatever was drawn before.
"""

from __future__ import annotations

from math import pi, sin

import numpy as np
from PIL import Image, ImageFilter

from paperlib.data.toy.canvas import CLASSES, EXTENT, FINER, FIRST_OBJECT, Canvas, Colour, Surface
from paperlib.data.toy.places import EMPTY_PLACES, PLACES

__all__ = ["CLASSES", "SIZES", "draw_scene", "draw_split"]

SIZES: dict[str, int] = {"train": 320, "val": 80, "test": 120}
"""Number of images of each split."""
SIDE = 160
"""Side of an image in pixels, unless asked for otherwise."""
EMPTY_EVERY = 20
"""One image in so many shows scenery without objects."""
VISIBLE_RATIO = 0.25
"""Part of an object that must show for it to be annotated."""
VISIBLE_PIXELS = 12
"""Square scene units of an object that must show for it to be annotated."""

Scene = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Image uint8 [side, side, 3], boxes float32 [N, 4] in xyxy pixels, labels int64 [N] in 1 … 10."""


def draw_scene(seed: int, split: str, index: int, *, side: int = SIDE) -> Scene:
    """Draw one image with its annotation.

    Boxes are the exact bounds of the visible pixels; labels are positions in `CLASSES`, from one. An object of which
    less than a quarter, or fewer than `VISIBLE_PIXELS` square scene units, shows is not annotated.

    Raises:
        ValueError: an unknown split, a negative seed or index, or a side below one.
    """
    image, owners, areas, labels = _render(seed, split, index, side)
    boxes, kept = _annotate(owners, areas, VISIBLE_PIXELS * (side / EXTENT) ** 2)
    return image, boxes, np.array([labels[i] for i in kept], dtype=np.int64)


def draw_split(split: str, *, count: int | None = None, seed: int = 0, side: int = SIDE) -> list[Scene]:
    """Draw the first `count` images of a split (by default `SIZES[split]`), each as `draw_scene` does.

    Raises:
        ValueError: as `draw_scene`, or a count below one.
    """
    _check_arguments(seed, split, 0, side)
    if count is not None and count < 1:
        raise ValueError(f"toy-aerial: count must be at least 1, got {count}")
    return [draw_scene(seed, split, index, side=side) for index in range(count or SIZES[split])]


def _check_arguments(seed: int, split: str, index: int, side: int) -> None:
    if split not in SIZES:
        raise ValueError(f"toy-aerial: unknown split {split!r}, expected one of {', '.join(SIZES)}")
    for name, value, least in (("seed", seed, 0), ("index", index, 0), ("side", side, 1)):
        if value < least:
            raise ValueError(f"toy-aerial: {name} must be at least {least}, got {value}")


def _render(seed: int, split: str, index: int, side: int) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Return image, owner of each pixel (`FIRST_OBJECT` + i for object i), uncovered area of each object, labels."""
    _check_arguments(seed, split, index, side)
    # The split's position in SIZES is a part of the seed, so a new split may only be added at the end.
    stream = np.random.SeedSequence((seed, list(SIZES).index(split), index))
    # PCG64 by name, because NumPy may change the generator behind `default_rng`.
    generator = np.random.Generator(np.random.PCG64(stream))
    canvas = Canvas(side, generator)
    # Places take turns, so that every split holds every class.
    turn, rest = divmod(index, EMPTY_EVERY)
    if rest == EMPTY_EVERY - 1:
        EMPTY_PLACES[turn % len(EMPTY_PLACES)](canvas)
    else:
        PLACES[index % len(PLACES)](canvas)
    image, owners = canvas.image_and_owners()
    return expose(image, owners, generator), owners, [area // FINER**2 for area in canvas.areas], canvas.labels


def _annotate(owners: np.ndarray, areas: list[int], least: float) -> tuple[np.ndarray, list[int]]:
    """Return boxes [N, 4] of the objects visible enough, and their numbers."""
    seen = np.bincount(owners.ravel(), minlength=256)[FIRST_OBJECT:]
    kept = [i for i, area in enumerate(areas) if seen[i] >= max(1, least, VISIBLE_RATIO * area)]
    boxes = np.zeros((len(kept), 4), dtype=np.float32)
    for bounds, i in zip(boxes, kept, strict=True):
        rows, columns = np.nonzero(owners == FIRST_OBJECT + i)
        # xyxy are edges of pixels: right and bottom lie behind the last pixel.
        bounds[:] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return boxes, kept


# --- from flat colours to a photograph ---------------------------------------------------------------

# Per surface, how far (RGB, of 255) broad, patchy, tufty, striped and grainy noise move the colour at most.
_TEXTURE: dict[int, tuple[Colour, ...]] = {
    Surface.GRASS: ((30, 17, 8), (13, 10, 6), (14, 13, 9), (0, 0, 0), (15, 17, 11)),
    Surface.LAWN: ((12, 9, 5), (8, 8, 5), (9, 9, 6), (0, 0, 0), (12, 13, 9)),
    Surface.CROP: ((18, 12, 6), (8, 8, 5), (11, 11, 7), (13, 12, 7), (12, 12, 9)),
    Surface.SOIL: ((24, 19, 14), (12, 10, 8), (13, 11, 9), (6, 5, 4), (11, 10, 8)),
    Surface.SAND: ((16, 14, 11), (10, 9, 8), (8, 8, 6), (0, 0, 0), (11, 10, 9)),
    Surface.WATER: ((8, 15, 17), (3, 5, 6), (8, 10, 11), (2, 3, 3), (7, 8, 8)),
    Surface.PAVED: ((9, 9, 9), (7, 7, 7), (9, 9, 8), (0, 0, 0), (9, 9, 9)),
    Surface.ROAD: ((9, 9, 9), (6, 6, 6), (8, 8, 8), (0, 0, 0), (8, 8, 8)),
    Surface.BUILT: ((5, 5, 5), (7, 7, 7), (6, 6, 6), (0, 0, 0), (9, 9, 9)),
    Surface.TREE: ((10, 12, 6), (8, 10, 6), (16, 20, 12), (0, 0, 0), (24, 30, 18)),
}
_OBJECT_TEXTURE = ((3, 3, 3), (6, 6, 6), (6, 6, 6), (0, 0, 0), (8, 8, 8))
_SWING = np.array([_TEXTURE.get(v, _OBJECT_TEXTURE) for v in range(256)], dtype=np.int16).transpose(1, 0, 2)


def _noise(generator: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """Draw smooth noise, int16 [side, side] in -128 … 127, about `cells` bumps across; integer arithmetic only."""
    coarse = generator.integers(0, 256, (cells + 2, cells + 2), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(smooth).astype(np.int16) - 128


def _tufts(generator: np.random.Generator, side: int) -> np.ndarray:
    """Draw isotropic noise int16 [side, side] with bumps of two to three units: blades, waves, stains."""
    speckle = Image.fromarray(generator.integers(0, 256, (side, side), dtype=np.uint8))
    smooth = speckle.filter(ImageFilter.GaussianBlur(1.1 * side / EXTENT))
    return ((np.asarray(smooth).astype(np.int16) - 128) * 3).clip(-128, 127)


def _stripes(generator: np.random.Generator, side: int) -> np.ndarray:
    """Draw parallel furrows or ripples, int16 [side, side], in some direction, at least 2.5 units apart."""
    table = np.array([round(127 * sin(2 * pi * i / 256)) for i in range(256)], dtype=np.int16)
    step = generator.integers(-70, 71, 2)
    along = np.arange(side) * EXTENT // side
    return table[(along[:, None] * step[0] + along[None, :] * step[1]) & 255]


def expose(image: np.ndarray, owners: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Add texture, light, haze, blur and sensor noise to a drawing.

    The arithmetic is in integers, so that every machine gives the same bytes.
    """
    side, random = len(image), generator.random
    broad, patchy = _noise(generator, 4, side), _noise(generator, 20, side)
    tufty = _tufts(generator, side)
    grainy = generator.integers(-128, 128, (side, side), dtype=np.int16)
    shift = np.zeros(image.shape, dtype=np.int16)
    for swing, field in zip(_SWING, (broad, patchy, tufty, _stripes(generator, side), grainy), strict=True):
        shift += swing[owners] * field[:, :, None] >> 7
    gain, cast = 215 + int(85 * random()), [int(-8 + 16 * random()) for _ in range(3)]
    lift = np.array(cast, dtype=np.int32) + int(-14 + 40 * random()) + 118
    light = (_noise(generator, 2, side) >> 4)[:, :, None]
    # Contrast (`gain` / 256) changes the distance from a medium grey of 118.
    values = (image.astype(np.int32) + shift + light - 118) * gain // 256 + lift
    photo = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    photo = photo.filter(ImageFilter.GaussianBlur(0.3 + 0.3 * random() ** 2))
    swing = 3 + int(7 * random() ** 2)
    # The mean of two uniform draws is closer to a sensor's bell-shaped noise than one draw.
    first, second = generator.integers(-swing, swing + 1, (2, *image.shape), dtype=np.int16)
    return (np.asarray(photo) + (first + second) // 2).clip(0, 255).astype(np.uint8)
