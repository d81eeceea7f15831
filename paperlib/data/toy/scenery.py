"""Scenery of the embedded data set: everything that is no object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import atan, pi

from paperlib.data.toy import shapes as draw
from paperlib.data.toy.canvas import EXTENT, Canvas, Colour, Point, Pose, Surface, arc, box

LAND = (Surface.GRASS, Surface.CROP, Surface.SOIL, Surface.SAND)
OPEN = (*LAND, Surface.PAVED)

_FIELDS: tuple[tuple[Surface, Colour], ...] = (
    (Surface.CROP, (116, 132, 72)),
    (Surface.CROP, (92, 118, 66)),
    (Surface.CROP, (158, 148, 96)),
    (Surface.GRASS, (104, 122, 72)),
    (Surface.GRASS, (128, 132, 84)),
    (Surface.SOIL, (148, 122, 94)),
    (Surface.SOIL, (122, 98, 78)),
)
_CENTRE = Pose(EXTENT / 2, EXTENT / 2)
_EVERYWHERE = _CENTRE.points(box(-EXTENT, -EXTENT, EXTENT, EXTENT))


@dataclass(frozen=True, slots=True)
class Ribbon:
    """A road or a river: a strip along the u axis of a pose, bent by v = bend · u²."""

    pose: Pose
    bend: float
    width: float

    def at(self, u: float, v: float = 0.0, turn: float = 0.0, size: float = 1.0) -> Pose:
        """The pose at arc parameter `u`, `v` units beside the middle, turned from the ribbon's heading by `turn`."""
        return self.pose.at(u, self.bend * u * u + v, atan(2 * self.bend * u) + turn, size)

    def strip(self, low: float, high: float) -> list[Point]:
        """The outline of the lane between `low` and `high` units beside the middle."""
        reach = range(-160, 161, 16)
        lower = [(u, self.bend * u * u + low) for u in reach]
        return self.pose.points([*lower, *((u, self.bend * u * u + high) for u in reversed(reach))])


def somewhere(canvas: Canvas, inset: float = 0.0) -> Pose:
    """A random pose whose centre lies at least `inset` units inside the image."""
    dice, low, high = canvas.dice, inset, EXTENT - inset
    return Pose(dice.between(low, high), dice.between(low, high), dice.between(0, 2 * pi))


def ground(canvas: Canvas, surface: Surface, colour: Colour) -> None:
    """Cover everything with one surface."""
    with canvas.on(surface):
        canvas.fill(_EVERYWHERE, canvas.dice.tint(colour))


def patches(canvas: Canvas, count: int) -> None:
    """Irregular worn, wet or lush patches of ground."""
    for _ in range(count):
        blob = somewhere(canvas, -10).at(0, 0, 0, canvas.dice.between(8, 34))
        outline = [(u * canvas.dice.between(0.6, 1.1), v * canvas.dice.between(0.3, 0.9)) for u, v in _ROUND]
        canvas.wash(blob.points(outline), (*canvas.dice.pick(_STAINS), canvas.dice.count(18, 46)))


_ROUND = arc(0, 0, 1, 0, 2 * pi, 13)
_STAINS: tuple[Colour, ...] = ((40, 60, 30), (196, 180, 136), (150, 150, 90), (60, 54, 44))


def trees(canvas: Canvas, count: int, where: tuple[Surface, ...] = OPEN) -> None:
    """`count` clumps of one to four trees."""
    for _ in range(count):
        clump = somewhere(canvas, -5)
        for _ in range(canvas.dice.count(1, 4)):
            radius = canvas.dice.between(2, 6)
            spot = clump.at(canvas.dice.between(-8, 8), canvas.dice.between(-8, 8))
            if canvas.free(spot, 1.2 * radius, 1.2 * radius, (*where, Surface.TREE)):
                draw.tree(canvas, spot.x, spot.y, radius)


def buildings(canvas: Canvas, count: int, align: float, largest: float = 34) -> None:
    """Up to `count` buildings on open ground, along `align` or across it."""
    for _ in range(count):
        spot, length = somewhere(canvas, -8), canvas.dice.between(10, largest)
        pose, width = Pose(spot.x, spot.y, align + canvas.dice.count(0, 1) * pi / 2, length), length * 0.6
        if canvas.free(pose, length + 5, width + 5, OPEN):
            draw.building(canvas, pose, width)


def countryside(canvas: Canvas) -> None:
    """Fields in a crooked grid, hedges, woods and a farm."""
    dice = canvas.dice
    grid, u = _CENTRE.at(0, 0, dice.between(0, pi)), -130.0
    ground(canvas, Surface.GRASS, (108, 122, 76))
    while u < 120:
        wide, v, skew = dice.between(34, 90), -130.0 + dice.between(-30, 0), dice.between(-8, 8)
        while v < 130:
            high = dice.between(30, 90)
            surface, colour = dice.pick(_FIELDS)
            with canvas.on(surface):
                corners = [
                    (u, v),
                    (u + wide - 1, v + skew),
                    (u + wide - 1, v + high + skew - 1),
                    (u, v + high - 1),
                ]
                canvas.fill(grid.points(corners), dice.tint(colour, 18))
            v += high
        if dice.chance(0.5):
            for step in range(26):
                hedge = grid.at(u + dice.between(-1, 1), -130 + 10 * step + dice.between(-3, 3))
                draw.tree(canvas, hedge.x, hedge.y, dice.between(1.5, 3.5))
        u += wide
    buildings(canvas, dice.count(0, 3), grid.angle, 20)
    trees(canvas, dice.count(2, 8))


def park(canvas: Canvas) -> None:
    """Lawns, gravel paths and trees."""
    dice = canvas.dice
    ground(canvas, Surface.GRASS, dice.pick([(98, 122, 68), (122, 130, 80), (86, 112, 64)]))
    patches(canvas, 9)
    for _ in range(dice.count(0, 2)):
        path = Ribbon(somewhere(canvas), dice.between(-0.006, 0.006), 3)
        with canvas.on(Surface.SAND):
            canvas.fill(path.strip(-1.5, 1.5), dice.tint((186, 172, 144)))
    if dice.chance(0.4):
        lawn = somewhere(canvas, 30).at(0, 0, 0, dice.between(34, 60))
        with canvas.on(Surface.LAWN):
            canvas.fill(lawn.points(box(-0.5, -0.32, 0.5, 0.32)), dice.tint((92, 134, 66)))
        pitch = box(-0.46, -0.28, 0.46, 0.28)
        for line in ([*pitch, pitch[0]], [(0, -0.28), (0, 0.28)], arc(0, 0, 0.08, 0, 2 * pi)):
            canvas.stroke(lawn.points(line), 0.5, draw.PAINT)
    trees(canvas, dice.count(3, 12))


def town(canvas: Canvas) -> Ribbon:
    """A street, houses along it, yards and a swimming pool; returns the street."""
    dice = canvas.dice
    surface, colour = dice.pick([(Surface.GRASS, (118, 124, 88)), (Surface.PAVED, (160, 156, 148))])
    ground(canvas, surface, colour)
    for _ in range(4):
        yard = somewhere(canvas)
        with canvas.on(dice.pick([Surface.GRASS, Surface.SOIL])):
            size = dice.between(20, 50)
            canvas.fill(yard.at(0, 0, 0, size).points(box(-0.5, -0.4, 0.5, 0.4)), dice.tint((126, 130, 92), 24))
    patches(canvas, 6)
    street = road(canvas, somewhere(canvas, 40), dice.between(11, 16))
    buildings(canvas, dice.count(8, 18), street.pose.angle)
    if dice.chance(0.4):
        pool = somewhere(canvas, 10).at(0, 0, 0, 7)
        if canvas.free(pool, 10, 6, OPEN):
            canvas.wash(pool.points(box(-0.6, -0.4, 0.6, 0.4)), (196, 192, 180, 255))
            canvas.wash(pool.points(box(-0.45, -0.26, 0.45, 0.26)), (70, 170, 190, 255))
    trees(canvas, dice.count(6, 16))
    return street


def road(canvas: Canvas, pose: Pose, width: float) -> Ribbon:
    """A road through `pose` with verges, edge lines and dashes."""
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
    waterline = _CENTRE.at(0, 0, angle).at(-dice.between(10, 45) - room, 0)
    rough = [(0 if quay else dice.between(-3, 3), -170 + 10 * i) for i in range(35)]
    water(canvas, lambda inset: waterline.points([*((u + inset, v) for u, v in rough), (300, 170), (300, -170)]))
    if quay:
        with canvas.on(Surface.PAVED):
            canvas.fill(waterline.points(box(-dice.between(12, 26), -170, 1, 170)), dice.tint((172, 170, 162)))
        canvas.stroke(waterline.points([(1, -170), (1, 170)]), 0.8, (214, 212, 204))
    return waterline


def sea(canvas: Canvas) -> None:
    """Open water with rocks and buoys."""
    water(canvas, lambda inset: _EVERYWHERE)
    for _ in range(canvas.dice.count(0, 5)):
        rock = somewhere(canvas).at(0, 0, 0, canvas.dice.between(2, 8))
        outline = [(canvas.dice.between(0.6, 1) * u, canvas.dice.between(0.6, 1) * v) for u, v in _ROUND]
        canvas.wash(rock.at(0, 0, 0, 1.4 * rock.size).points(outline), (200, 214, 210, 90))
        with canvas.on(Surface.SOIL):
            canvas.fill(rock.points(outline), canvas.dice.tint((118, 112, 98)))
