"""`toy-aerial`, the embedded data set: aerial scenes with the ten VHR-10 classes, drawn from a seed.

It stands in for Section 4.1's data where nothing may be downloaded. Each image is a function of (seed, split, index)
and of nothing else: the same three give the same bytes, whatever was drawn before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import atan, ceil, hypot, pi, sin

import numpy as np
from PIL import Image, ImageFilter

from paperlib.data import toy_shapes as draw
from paperlib.data.toy_shapes import CLASSES, FINER, FIRST_OBJECT, Canvas, Colour, Point, Pose, Surface, box

SIZES: dict[str, int] = {"train": 320, "val": 80, "test": 120}
EMPTY_SHARE = 0.05
VISIBLE_SHARE = 0.25
VISIBLE_PIXELS = 12

Scene = tuple[np.ndarray, np.ndarray, np.ndarray]
LAND = (Surface.GRASS, Surface.CROP, Surface.SOIL, Surface.SAND)
OPEN = (*LAND, Surface.PAVED)


def draw_scene(seed: int, split: str, index: int, *, side: int = 160) -> Scene:
    """Draw one image with its annotation.

    Returns a uint8 RGB image [side, side, 3], float32 boxes [N, 4] (xmin, ymin, xmax, ymax in pixels, the exact
    bounds of the visible pixels) and int64 labels [N] in 1 … 10, the positions in `CLASSES` counted from one.
    An object of which less than a quarter, or fewer than 12 pixels (at side 160), can be seen is not annotated.

    Raises ValueError for an unknown split, a negative seed or index, or a side below one.
    """
    image, owners, whole, labels = _render(seed, split, index, side)
    boxes, kept = _annotate(owners, whole, VISIBLE_PIXELS * (side / draw.EXTENT) ** 2)
    return image, boxes, np.array([labels[i] for i in kept], dtype=np.int64)


def draw_split(split: str, *, count: int | None = None, seed: int = 0, side: int = 160) -> list[Scene]:
    """The first `count` images of a split (by default `SIZES[split]`), each as `draw_scene` returns it."""
    _check(seed, split, 0, side)
    if count is not None and count < 1:
        raise ValueError(f"toy-aerial: count must be at least 1, got {count}")
    return [draw_scene(seed, split, index, side=side) for index in range(count or SIZES[split])]


def _check(seed: int, split: str, index: int, side: int) -> None:
    if split not in SIZES:
        raise ValueError(f"toy-aerial: unknown split {split!r}, expected one of {', '.join(SIZES)}")
    for name, value, least in (("seed", seed, 0), ("index", index, 0), ("side", side, 1)):
        if value < least:
            raise ValueError(f"toy-aerial: {name} must be at least {least}, got {value}")


def _render(seed: int, split: str, index: int, side: int) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Image, owner of each pixel (`FIRST_OBJECT` + i for object i), whole area per object (pixels), labels."""
    _check(seed, split, index, side)
    stream = np.random.SeedSequence((seed, list(SIZES).index(split), index))
    generator = np.random.Generator(np.random.PCG64(stream))
    canvas = Canvas(side, generator)
    dice = canvas.dice
    dice.pick(EMPTY_PLACES if dice.chance(EMPTY_SHARE) else PLACES)(canvas)
    image, owners = canvas.reduced()
    return _expose(image, owners, generator), owners, [n // FINER**2 for n in canvas.whole], canvas.labels


def _annotate(owners: np.ndarray, whole: list[int], least: float) -> tuple[np.ndarray, list[int]]:
    """Boxes [N, 4] of the objects visible enough, and their numbers."""
    seen = np.bincount(owners.ravel(), minlength=256)[FIRST_OBJECT:]
    kept = [i for i, area in enumerate(whole) if seen[i] >= max(1, least, VISIBLE_SHARE * area)]
    boxes = np.zeros((len(kept), 4), dtype=np.float32)
    for box_, i in zip(boxes, kept, strict=True):
        visible = owners == FIRST_OBJECT + i
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        box_[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes, kept


# --- from flat colours to a photograph -------------------------------------------------------------------------

# Per surface, how far (RGB, of 255) broad, patchy, tufty, striped and grainy noise at full swing move the colour.
_TEXTURE: dict[Surface, tuple[Colour, ...]] = {
    Surface.GRASS: ((30, 17, 8), (13, 10, 6), (14, 13, 9), (0, 0, 0), (15, 17, 11)),
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
_SWING = np.array(
    [_TEXTURE.get(value, _OBJECT_TEXTURE) for value in range(256)],  # type: ignore[call-overload]
    dtype=np.int16,
).transpose(1, 0, 2)


def _noise(generator: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """Smooth noise int16 [side, side] in −128 … 127 with about `cells` bumps across; integer arithmetic only."""
    coarse = generator.integers(0, 256, (cells + 2, cells + 2), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16) - 128


def _stripes(generator: np.random.Generator, side: int) -> np.ndarray:
    """Parallel furrows or ripples, 3 to 7 units apart, in some direction."""
    table = np.array([round(127 * sin(2 * pi * i / 256)) for i in range(256)], dtype=np.int16)
    step = generator.integers(-70, 71, 2)
    along = np.arange(side) * draw.EXTENT // side
    return table[(along[:, None] * step[0] + along[None, :] * step[1]) & 255]


def _expose(image: np.ndarray, owners: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Texture, light, haze, blur and sensor noise, as int16 arithmetic."""
    side, random = len(image), generator.random
    fields = [_noise(generator, cells, side) for cells in (4, 20, 62)] + [_stripes(generator, side)]
    grain = generator.integers(-128, 128, (side, side), dtype=np.int16)
    shift = np.zeros(image.shape, dtype=np.int16)
    for swing, field in zip(_SWING, (*fields, grain), strict=True):
        shift += swing[owners] * field[:, :, None] >> 7
    gain, cast = 190 + int(90 * random()), [int(-12 + 24 * random()) for _ in range(3)]
    lift = int(-14 + 40 * random())
    light = (_noise(generator, 2, side) >> 4)[:, :, None]
    values = (image.astype(np.int32) + shift + light - 118) * gain // 256 + 118 + lift + np.array(cast)
    photo = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    photo = photo.filter(ImageFilter.GaussianBlur(0.3 + 0.6 * random() ** 2))
    swing = 3 + int(14 * random() ** 2)
    first, second = generator.integers(-swing, swing + 1, (2, *image.shape), dtype=np.int16)
    return (np.asarray(photo) + (first + second) // 2).clip(0, 255).astype(np.uint8)


# --- scenery: everything that is no object ---------------------------------------------------------------------

_FIELDS: tuple[tuple[Surface, Colour], ...] = (
    (Surface.CROP, (116, 132, 72)),
    (Surface.CROP, (92, 118, 66)),
    (Surface.CROP, (158, 148, 96)),
    (Surface.GRASS, (104, 122, 72)),
    (Surface.GRASS, (128, 132, 84)),
    (Surface.SOIL, (148, 122, 94)),
    (Surface.SOIL, (122, 98, 78)),
)
_EVERYWHERE = box(-160, -160, 160, 160)


@dataclass(frozen=True, slots=True)
class Ribbon:
    """A road or a river: a strip along the u axis of a pose, bent by v = bend · u²."""

    pose: Pose
    bend: float
    width: float

    def at(self, u: float, v: float = 0.0, turn: float = 0.0, size: float = 1.0) -> Pose:
        return self.pose.at(u, self.bend * u * u + v, atan(2 * self.bend * u) + turn, size)

    def strip(self, low: float, high: float) -> list[Point]:
        reach = range(-160, 161, 16)
        lower = [(u, self.bend * u * u + low) for u in reach]
        return self.pose.points([*lower, *((u, self.bend * u * u + high) for u in reversed(reach))])


def _somewhere(canvas: Canvas, inset: float = 0.0) -> Pose:
    """A random pose whose centre lies at least `inset` units inside the image."""
    dice, low, high = canvas.dice, inset, draw.EXTENT - inset
    return Pose(dice.between(low, high), dice.between(low, high), dice.between(0, 2 * pi))


def _ground(canvas: Canvas, surface: Surface, colour: Colour) -> None:
    with canvas.on(surface):
        canvas.fill(Pose(80, 80).points(_EVERYWHERE), canvas.dice.tint(colour))


def _trees(canvas: Canvas, count: int, where: tuple[Surface, ...] = OPEN) -> None:
    """`count` clumps of one to four trees."""
    for _ in range(count):
        clump = _somewhere(canvas, -5)
        for _ in range(canvas.dice.count(1, 4)):
            radius = canvas.dice.between(2, 6)
            spot = clump.at(canvas.dice.between(-8, 8), canvas.dice.between(-8, 8))
            if canvas.free(spot, 1.2 * radius, 1.2 * radius, (*where, Surface.TREE)):
                draw.tree(canvas, spot.x, spot.y, radius)


def _buildings(canvas: Canvas, count: int, align: float, largest: float = 34) -> None:
    for _ in range(count):
        spot, length = _somewhere(canvas, -8), canvas.dice.between(10, largest)
        pose, width = Pose(spot.x, spot.y, align + canvas.dice.count(0, 1) * pi / 2, length), length * 0.6
        if canvas.free(pose, length + 5, width + 5, OPEN):
            draw.building(canvas, pose, width)


def countryside(canvas: Canvas) -> None:
    """Fields in a crooked grid, hedges, woods and a farm."""
    dice = canvas.dice
    grid, u = Pose(80, 80, dice.between(0, pi)), -130.0
    _ground(canvas, Surface.GRASS, (108, 122, 76))
    while u < 120:
        wide, v, skew = dice.between(34, 90), -130.0 + dice.between(-30, 0), dice.between(-8, 8)
        while v < 130:
            high = dice.between(30, 90)
            surface, colour = dice.pick(_FIELDS)
            with canvas.on(surface):
                corners = [(u, v), (u + wide - 1, v + skew), (u + wide - 1, v + high + skew - 1), (u, v + high - 1)]
                canvas.fill(grid.points(corners), dice.tint(colour, 18))
            v += high
        if dice.chance(0.5):
            for step in range(26):
                hedge = grid.at(u + dice.between(-1, 1), -130 + 10 * step + dice.between(-3, 3))
                draw.tree(canvas, hedge.x, hedge.y, dice.between(1.5, 3.5))
        u += wide
    _buildings(canvas, dice.count(0, 3), grid.angle, 20)
    _trees(canvas, dice.count(2, 8))


def park(canvas: Canvas) -> None:
    """Lawns, gravel paths and trees."""
    dice = canvas.dice
    _ground(canvas, Surface.GRASS, dice.pick([(98, 122, 68), (122, 130, 80), (86, 112, 64)]))
    for _ in range(dice.count(0, 2)):
        path = Ribbon(_somewhere(canvas), dice.between(-0.006, 0.006), 3)
        with canvas.on(Surface.SAND):
            canvas.fill(path.strip(-1.5, 1.5), dice.tint((186, 172, 144)))
    if dice.chance(0.4):
        lawn = _somewhere(canvas, 30).at(0, 0, 0, dice.between(34, 60))
        canvas.fill(lawn.points(box(-0.5, -0.32, 0.5, 0.32)), dice.tint((92, 134, 66)))
        pitch = box(-0.46, -0.28, 0.46, 0.28)
        for line in ([*pitch, pitch[0]], [(0, -0.28), (0, 0.28)], draw.arc(0, 0, 0.08, 0, 2 * pi)):
            canvas.stroke(lawn.points(line), 0.5, draw.PAINT)


def town(canvas: Canvas) -> Ribbon:
    """A street, houses along it, yards and a swimming pool; returns the street."""
    dice = canvas.dice
    surface, colour = dice.pick([(Surface.GRASS, (118, 124, 88)), (Surface.PAVED, (160, 156, 148))])
    _ground(canvas, surface, colour)
    for _ in range(4):
        yard = _somewhere(canvas)
        with canvas.on(dice.pick([Surface.GRASS, Surface.SOIL])):
            size = dice.between(20, 50)
            canvas.fill(yard.at(0, 0, 0, size).points(box(-0.5, -0.4, 0.5, 0.4)), dice.tint((126, 130, 92), 24))
    street = road(canvas, _somewhere(canvas, 40), dice.between(11, 16))
    _buildings(canvas, dice.count(8, 18), street.pose.angle)
    if dice.chance(0.4):
        pool = _somewhere(canvas, 10).at(0, 0, 0, 7)
        if canvas.free(pool, 10, 6, OPEN):
            canvas.wash(pool.points(box(-0.6, -0.4, 0.6, 0.4)), (196, 192, 180, 255))
            canvas.wash(pool.points(box(-0.45, -0.26, 0.45, 0.26)), (70, 170, 190, 255))
    _trees(canvas, dice.count(3, 10))
    return street


def road(canvas: Canvas, pose: Pose, width: float) -> Ribbon:
    dice = canvas.dice
    ribbon, half = Ribbon(pose, dice.between(-0.0012, 0.0012), width), width / 2
    with canvas.on(Surface.SOIL):
        canvas.fill(ribbon.strip(-half - 2, half + 2), dice.tint((150, 140, 116)))
    with canvas.on(Surface.ROAD):
        canvas.fill(ribbon.strip(-half, half), dice.tint(dice.pick([(108, 108, 110), (132, 130, 126), (90, 92, 96)])))
    for v in (0.9 * half, -0.9 * half):
        edge = ribbon.strip(v, v)
        canvas.stroke(edge[: len(edge) // 2], 0.4, (214, 214, 206, 150))
    for dash in range(-130, 130, 9):
        here = ribbon.at(dash)
        canvas.stroke(here.points([(0, 0), (4, 0)]), 0.5, draw.PAINT)
    return ribbon


def water(canvas: Canvas, outline: Callable[[float], list[Point]]) -> None:
    """Fill `outline(inset)` with sand, shallows and deep water."""
    dice = canvas.dice
    deep = dice.tint(dice.pick([(48, 84, 104), (58, 92, 92), (44, 70, 96), (84, 104, 92)]), 10)
    shallow = tuple(c + extra for c, extra in zip(deep, (24, 24, 12), strict=True))
    with canvas.on(Surface.SAND):
        canvas.fill(outline(-dice.between(1.5, 7)), dice.tint((186, 172, 140)))
    with canvas.on(Surface.WATER):
        canvas.fill(outline(0), shallow)
        for step in (2, 4, 7):
            canvas.fill(outline(step), tuple(c + (d - c) * step // 7 for c, d in zip(shallow, deep, strict=True)))


def shore(canvas: Canvas, room: float = 0.0) -> Pose:
    """Land and sea; returns the pose on the waterline whose u axis points to the open water."""
    dice = canvas.dice
    dice.pick([countryside, park, town])(canvas)
    angle, quay = dice.between(0, 2 * pi), dice.chance(0.5)
    centre = Pose(80, 80, angle).at(-dice.between(10, 45) - room, 0)
    rough = [(0 if quay else dice.between(-3, 3), -170 + 10 * i) for i in range(35)]
    water(canvas, lambda inset: centre.points([*((u + inset, v) for u, v in rough), (300, 170), (300, -170)]))
    if quay:
        with canvas.on(Surface.PAVED):
            canvas.fill(centre.points(box(-dice.between(12, 26), -170, 1, 170)), dice.tint((172, 170, 162)))
        canvas.stroke(centre.points([(1, -170), (1, 170)]), 0.8, (214, 212, 204))
    return centre


def sea(canvas: Canvas) -> None:
    """Open water with rocks and buoys."""
    water(canvas, lambda inset: Pose(80, 80).points(_EVERYWHERE))
    for _ in range(canvas.dice.count(0, 5)):
        rock = _somewhere(canvas).at(0, 0, 0, canvas.dice.between(2, 8))
        outline = [(canvas.dice.between(0.6, 1) * u, canvas.dice.between(0.6, 1) * v) for u, v in _ROCK]
        canvas.wash(rock.at(0, 0, 0, 1.4 * rock.size).points(outline), (200, 214, 210, 90))
        with canvas.on(Surface.SOIL):
            canvas.fill(rock.points(outline), canvas.dice.tint((118, 112, 98)))


_ROCK = draw.arc(0, 0, 1, 0, 2 * pi, 9)


# --- places: scenery with objects where one would look for them ------------------------------------------------


def _try(canvas: Canvas, length: float, width: float, where: tuple[Surface, ...], tries: int = 20) -> Pose | None:
    """A free pose of that length, or None after `tries` attempts; centres may lie right at the border."""
    for _ in range(tries):
        spot = _somewhere(canvas, 2)
        if canvas.free(spot, length, width, where):
            return Pose(spot.x, spot.y, spot.angle, length)
    return None


def _traffic(canvas: Canvas, street: Ribbon, count: int) -> None:
    dice = canvas.dice
    for _ in range(count):
        lane, size = dice.pick([-1, 1]), dice.between(7, 11) if dice.chance(0.7) else dice.between(12, 15)
        pose = street.at(dice.between(-80, 80), lane * street.width / 4, dice.between(-0.06, 0.06), size)
        if canvas.free(pose, size + 1, 0.5 * size, (Surface.ROAD,)):
            draw.vehicle(canvas, pose.at(0, 0, pi if lane > 0 else 0, size))


def _parking(canvas: Canvas) -> None:
    """A car park: marked bays in two rows, some of them taken, neighbours sometimes touching."""
    dice, bays, size = canvas.dice, canvas.dice.count(4, 8), canvas.dice.between(8.5, 11)
    pitch = size * dice.between(0.5, 0.62)
    spot = _try(canvas, bays * pitch + 6, 3.4 * size, OPEN)
    if spot is None:
        return
    lot, half = Pose(spot.x, spot.y, spot.angle), bays * pitch / 2
    with canvas.on(Surface.ROAD):
        canvas.fill(lot.points(box(-half - 3, -1.7 * size, half + 3, 1.7 * size)), dice.tint((126, 126, 128)))
    taken = dice.between(0.0, 0.7)
    for side in (-1, 1):
        for bay in range(bays + 1):
            u = -half + bay * pitch
            canvas.stroke(lot.points([(u, side * 0.5 * size), (u, side * 1.6 * size)]), 0.4, draw.PAINT)
            if bay < bays and dice.chance(taken):
                draw.vehicle(canvas, lot.at(u + pitch / 2, side * 1.05 * size, side * pi / 2, size))


def _tanks(canvas: Canvas) -> None:
    """A tank farm: one to eight tanks of one size on a grid, inside a bund."""
    dice, diameter = canvas.dice, canvas.dice.between(9, 22)
    columns, rows = dice.count(1, 4 if diameter < 15 else 3), dice.count(1, 2)
    pitch = diameter * dice.between(1.02, 1.4)
    length, width = columns * pitch + 4, rows * pitch + 4
    spot = _try(canvas, length, width, OPEN)
    if spot is None:
        return
    yard = Pose(spot.x, spot.y, spot.angle)
    with canvas.on(Surface.PAVED):
        canvas.fill(yard.points(box(-length / 2, -width / 2, length / 2, width / 2)), dice.tint((164, 156, 142)))
    for i in range(columns * rows):
        u, v = (i % columns - (columns - 1) / 2) * pitch, (i // columns - (rows - 1) / 2) * pitch
        if dice.chance(0.85):
            draw.storage_tank(canvas, yard.at(u, v, dice.between(0, pi), diameter))


_TENNIS: tuple[tuple[Colour, Colour], ...] = (
    ((72, 108, 76), (96, 136, 92)),
    ((76, 112, 82), (64, 98, 140)),
    ((166, 98, 70), (176, 106, 76)),
    ((76, 116, 84), (160, 94, 74)),
    ((70, 96, 128), (58, 106, 156)),
)
_BASKETBALL: tuple[tuple[Colour, Colour], ...] = (
    ((190, 130, 84), (150, 60, 48)),
    ((172, 104, 76), (60, 108, 84)),
    ((122, 124, 128), (170, 76, 60)),
    ((204, 160, 108), (64, 86, 140)),
    ((116, 106, 142), (196, 150, 70)),
)


def _courts(canvas: Canvas, court: Callable[..., None], most: int, ratio: float, palette: tuple) -> None:
    """One to `most` courts side by side, touching or a step apart."""
    dice, size, count = canvas.dice, canvas.dice.between(21, 34), canvas.dice.count(1, most)
    pitch = ratio * size * dice.pick([1.0, 1.0, 1.12])
    spot, colours = _try(canvas, size + 3, count * pitch + 3, (*LAND, Surface.PAVED, Surface.TREE)), dice.pick(palette)
    for i in range(count if spot else 0):
        court(canvas, spot.at(0, (i - (count - 1) / 2) * pitch / spot.size, 0, size), colours)


def _tennis(canvas: Canvas) -> None:
    _courts(canvas, draw.tennis_court, 4, 0.5, _TENNIS)


def _basketball(canvas: Canvas) -> None:
    _courts(canvas, draw.basketball_court, 2, 0.56, _BASKETBALL)


def _large(canvas: Canvas, shape: Callable[[Canvas, Pose], None], low: float, high: float, width: float) -> None:
    size = canvas.dice.between(low, high)
    spot = _try(canvas, size, width * size, (*OPEN, Surface.TREE), 40)
    if spot:
        shape(canvas, spot.at(0, 0, 0, size))


def _ships(canvas: Canvas, count: int, largest: float = 46) -> None:
    for _ in range(count):
        size = canvas.dice.between(13, largest)
        spot = _try(canvas, 1.1 * size, 0.4 * size, (Surface.WATER,))
        if spot:
            draw.ship(canvas, spot)


def sports(canvas: Canvas) -> None:
    dice = canvas.dice
    dice.pick([park, park, countryside, town])(canvas)
    first, second = (0.9, 0.4) if dice.chance(0.5) else (0.3, 0.9)
    if dice.chance(first):
        _large(canvas, draw.ground_track_field, 42, 80, 0.56)
    if dice.chance(second):
        _large(canvas, draw.baseball_diamond, 28, 56, 1.0)
    for chance, group in ((0.6, _tennis), (0.6, _basketball), (0.4, _parking)):
        if dice.chance(chance):
            group(canvas)
    _trees(canvas, dice.count(2, 8))


def _apron(canvas: Canvas) -> Pose:
    """Grass, a runway, and concrete slabs with yellow lead-in lines; returns a pose on the apron, u along it."""
    dice = canvas.dice
    _ground(canvas, Surface.GRASS, dice.pick([(122, 128, 82), (104, 122, 76), (148, 138, 100)]))
    axis, edge = _somewhere(canvas, 50), dice.between(18, 50)
    with canvas.on(Surface.PAVED):
        canvas.fill(axis.points(box(-220, -edge, 220, 220)), dice.tint((166, 166, 162), 22))
    for _ in range(40):
        u, v = 14 * dice.count(-9, 8), 14 * dice.count(-5, 9) - edge
        canvas.wash(axis.points(box(u, max(v, -edge), u + 14, v + 14)), (*dice.pick([(0, 0, 0), (255, 250, 240)]), 14))
    for joint in range(-182, 183, 14):
        canvas.stroke(axis.points([(joint, -edge), (joint, 220)]), 0.3, (90, 92, 94, 70))
        canvas.stroke(axis.points([(-220, joint + 182 - edge), (220, joint + 182 - edge)]), 0.3, (90, 92, 94, 70))
    with canvas.on(Surface.ROAD):
        canvas.fill(axis.points(box(-220, -edge - 44, 220, -edge - 18)), dice.tint((104, 106, 110)))
    for dash in range(-210, 210, 18):
        canvas.stroke(axis.points([(dash, -edge - 31), (dash + 10, -edge - 31)]), 0.9, draw.WHITE)
    for v in (-edge - 42, -edge - 20):
        canvas.stroke(axis.points([(-220, v), (220, v)]), 0.6, draw.PAINT)
    canvas.stroke(axis.points([(-220, -edge + 6), (220, -edge + 6)]), 0.6, (206, 172, 70))
    return axis


def airport(canvas: Canvas) -> None:
    """A row of stands along the apron, stray planes, service vehicles, a hangar."""
    dice, axis = canvas.dice, _apron(canvas)
    size, turn = dice.between(18, 44), dice.pick([0.5, 1.5]) * pi
    row, tilt = dice.between(-5, 25), dice.pick([0.0, 0.0, 0.6])
    for i in range(-4, 5):
        lead, length = axis.at(1.12 * size * i, row), size * dice.between(0.85, 1.1)
        canvas.stroke(lead.points([(0, -30), (0, 0.4 * size)]), 0.5, (206, 172, 70))
        if dice.chance(0.55):
            stand = lead.at(0, dice.between(-3, 3), turn + tilt + dice.between(-0.08, 0.08), length)
            draw.airplane(canvas, stand)
    for _ in range(dice.count(0, 2)):
        length = dice.between(18, 46)
        spot = _try(canvas, length, length, OPEN)
        if spot:
            draw.airplane(canvas, spot)
    _buildings(canvas, dice.count(0, 3), axis.angle, 50)
    for _ in range(dice.count(0, 3)):
        spot = _try(canvas, dice.between(7, 13), 6, (Surface.PAVED,))
        if spot:
            draw.vehicle(canvas, spot)


def coast(canvas: Canvas) -> None:
    dice = canvas.dice
    waterline = shore(canvas, 15)
    v = dice.between(-80, -30)
    while v < 80 and dice.chance(0.85):
        size = dice.between(34, 62)
        pier = waterline.at(0.5 * size - 3, v, dice.between(-0.12, 0.12), size)
        if canvas.free(pier.at(0.06, 0), 0.8 * size, 0.5 * size, (Surface.WATER,)):
            draw.harbor(canvas, pier)
        v += 0.7 * size + dice.between(2, 40)
    _ships(canvas, dice.count(0, 4))
    if dice.chance(0.45):
        _tanks(canvas)


def river(canvas: Canvas) -> None:
    dice = canvas.dice
    dice.pick([countryside, park, town])(canvas)
    stream = Ribbon(_somewhere(canvas, 40), dice.between(-0.003, 0.003), dice.between(22, 56))
    half = stream.width / 2
    water(canvas, lambda inset: stream.strip(inset - half, half - inset))
    crossing = stream.at(dice.between(-20, 20), 0, pi / 2 + dice.between(-0.3, 0.3))
    wide = dice.between(8, 14)
    _crossing(canvas, crossing, wide, 1.12 * stream.width + dice.between(4, 10))
    if stream.width > 34:
        _ships(canvas, dice.count(0, 3), 0.8 * stream.width)
    for group in (_tanks, _basketball):
        if dice.chance(0.25):
            group(canvas)
    if dice.chance(0.2):
        _large(canvas, draw.baseball_diamond, 28, 40, 1.0)


def _crossing(canvas: Canvas, axis: Pose, width: float, length: float) -> None:
    """A road along `axis`, carried by a bridge over what lies at its origin, and its traffic."""
    dice, half = canvas.dice, width / 2
    paint = dice.tint((118, 118, 118))
    with canvas.on(Surface.ROAD):
        for end in (-1, 1):
            canvas.fill(axis.points(box(end * 0.4 * length, -half, end * 260, half)), paint)
    canvas.stroke(axis.points([(-260, 0), (260, 0)]), 0.4, draw.PAINT)
    draw.bridge(canvas, axis.at(0, 0, 0, length), width + 2)
    for _ in range(dice.count(0, 4)):
        lane, size = dice.pick([-1, 1]), dice.between(7, 10)
        draw.vehicle(canvas, axis.at(dice.between(-75, 75), lane * half / 2, pi if lane > 0 else 0, size))


def highway(canvas: Canvas) -> None:
    dice = canvas.dice
    dice.pick([countryside, town])(canvas)
    motorway = road(canvas, _somewhere(canvas, 45), dice.between(18, 28))
    _traffic(canvas, motorway, dice.count(1, 4))
    crossing = motorway.at(dice.between(-20, 20), 0, pi / 2 + dice.between(-0.35, 0.35))
    _crossing(canvas, crossing, dice.between(9, 13), 1.3 * motorway.width + dice.between(4, 14))
    _trees(canvas, dice.count(0, 5))


def suburb(canvas: Canvas) -> None:
    street = town(canvas)
    _traffic(canvas, street, canvas.dice.count(1, 4))
    for chance, group in ((0.6, _parking), (0.45, _basketball), (0.45, _tennis)):
        if canvas.dice.chance(chance):
            group(canvas)


def works(canvas: Canvas) -> None:
    dice = canvas.dice
    _ground(canvas, dice.pick([Surface.PAVED, Surface.SOIL]), dice.pick([(160, 154, 142), (150, 138, 118)]))
    street = road(canvas, _somewhere(canvas, 30), dice.between(10, 14))
    _buildings(canvas, dice.count(2, 6), street.pose.angle, 44)
    for _ in range(dice.count(1, 3)):
        _tanks(canvas)
    _traffic(canvas, street, dice.count(0, 3))
    _trees(canvas, dice.count(0, 4))


PLACES: tuple[Callable[[Canvas], object], ...] = (
    *(sports,) * 7, *(airport,) * 4, *(coast,) * 5, *(river,) * 4, *(highway,) * 2, *(suburb,) * 2, *(works,) * 3,
)  # fmt: skip
EMPTY_PLACES: tuple[Callable[[Canvas], object], ...] = (countryside, park, town, shore, sea)
