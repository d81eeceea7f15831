"""Scenery of the embedded data set: everything that is no object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import atan, pi

from paperlib.data.toy import shapes
from paperlib.data.toy.canvas import EXTENT, Canvas, Colour, Point, Pose, Surface, arc, box, centred_box, loop, shade

LAND = (Surface.GRASS, Surface.CROP, Surface.SOIL, Surface.SAND)
OPEN = (*LAND, Surface.PAVED)
"""Surfaces on which something can stand."""

_FIELDS: tuple[tuple[Surface, Colour], ...] = (
    (Surface.CROP, (116, 132, 72)),
    (Surface.CROP, (92, 118, 66)),
    (Surface.CROP, (158, 148, 96)),
    (Surface.GRASS, (104, 122, 72)),
    (Surface.GRASS, (128, 132, 84)),
    (Surface.SOIL, (148, 122, 94)),
    (Surface.SOIL, (122, 98, 78)),
)
_STAINS: tuple[Colour, ...] = ((40, 60, 30), (196, 180, 136), (150, 150, 90), (60, 54, 44))
_ROUND = arc(0, 0, 1, steps=13)
_CENTRE = Pose(EXTENT / 2, EXTENT / 2)
# These are half lengths: the square is twice as wide as the image and covers the margin.
_EVERYWHERE = _CENTRE.points(centred_box(EXTENT, EXTENT))


@dataclass(frozen=True, slots=True)
class Ribbon:
    """A road or a river: a strip along the u axis of a pose, bent by v = bend · u²."""

    pose: Pose
    bend: float
    width: float

    def at(self, u: float, v: float = 0.0, turn: float = 0.0, size: float = 1.0) -> Pose:
        """Return the pose at `u`, `v` units beside the middle, turned from the ribbon's heading by `turn`."""
        return self.pose.at(u, self.bend * u * u + v, atan(2 * self.bend * u) + turn, size)

    def strip(self, low: float, high: float) -> list[Point]:
        """Return the outline of the lane between `low` and `high` units beside the middle."""
        reach = range(-160, 161, 16)
        lower = [(u, self.bend * u * u + low) for u in reach]
        return self.pose.points([*lower, *((u, self.bend * u * u + high) for u in reversed(reach))])


def random_pose(canvas: Canvas, inset: float = 0.0) -> Pose:
    """Draw a pose whose centre lies at least `inset` units inside the image."""
    dice, low, high = canvas.dice, inset, EXTENT - inset
    return Pose(dice.between(low, high), dice.between(low, high), dice.between(0, 2 * pi))


def draw_ground(canvas: Canvas, surface: Surface, colour: Colour) -> None:
    """Cover everything with one surface."""
    canvas.fill(_EVERYWHERE, canvas.dice.tint(colour), surface)


def draw_patches(canvas: Canvas, count: int) -> None:
    """Draw irregular worn, wet or lush patches of ground."""
    dice = canvas.dice
    for _ in range(count):
        blob = random_pose(canvas, -10).resized(dice.between(8, 34))
        # Every corner of the circle moves by itself.
        outline = [(u * dice.between(0.6, 1.1), v * dice.between(0.3, 0.9)) for u, v in _ROUND]
        canvas.wash(blob.points(outline), (*dice.pick(_STAINS), dice.integer(18, 46)))


def draw_trees(canvas: Canvas, count: int) -> None:
    """Draw `count` clumps of one to four trees."""
    dice = canvas.dice
    for _ in range(count):
        clump = random_pose(canvas, -5)
        for _ in range(dice.integer(1, 4)):
            radius = dice.between(2, 6)
            spot = clump.at(dice.between(-8, 8), dice.between(-8, 8))
            if canvas.is_free(spot, 1.2 * radius, 1.2 * radius, (*OPEN, Surface.TREE)):
                shapes.draw_tree(canvas, spot.x, spot.y, radius)


def draw_buildings(canvas: Canvas, count: int, align: float, largest: float = 34) -> None:
    """Draw up to `count` buildings on open ground, along `align` or across it."""
    for _ in range(count):
        spot, length = random_pose(canvas, -8), canvas.dice.between(10, largest)
        pose = Pose(spot.x, spot.y, align + canvas.dice.integer(0, 1) * pi / 2, length)
        if canvas.is_free(pose, length + 5, length * 0.6 + 5, OPEN):
            shapes.draw_building(canvas, pose, length * 0.6)


def draw_countryside(canvas: Canvas) -> None:
    """Draw fields in a crooked grid, hedges, woods and a farm."""
    dice = canvas.dice
    # The grid reaches beyond the image, because it is turned.
    grid, u = _CENTRE.at(0, 0, dice.between(0, pi)), -130.0
    draw_ground(canvas, Surface.GRASS, (108, 122, 76))
    while u < 120:
        wide, v, skew = dice.between(34, 90), -130.0 + dice.between(-30, 0), dice.between(-8, 8)
        right = u + wide - 1
        while v < 130:
            high = dice.between(30, 90)
            surface, colour = dice.pick(_FIELDS)
            corners = [(u, v), (right, v + skew), (right, v + high + skew - 1), (u, v + high - 1)]
            canvas.fill(grid.points(corners), dice.tint(colour, 18), surface)
            v += high
        if dice.chance(0.5):
            for step in range(26):
                hedge = grid.at(u + dice.between(-1, 1), -130 + 10 * step + dice.between(-3, 3))
                shapes.draw_tree(canvas, hedge.x, hedge.y, dice.between(1.5, 3.5))
        u += wide
    draw_buildings(canvas, dice.integer(0, 3), grid.angle, 20)
    draw_trees(canvas, dice.integer(2, 8))


def draw_park(canvas: Canvas) -> None:
    """Draw lawns, gravel paths and trees."""
    dice = canvas.dice
    draw_ground(canvas, Surface.GRASS, dice.pick([(98, 122, 68), (122, 130, 80), (86, 112, 64)]))
    draw_patches(canvas, 9)
    for _ in range(dice.integer(0, 2)):
        path = Ribbon(random_pose(canvas), dice.between(-0.006, 0.006), 3)
        canvas.fill(path.strip(-1.5, 1.5), dice.tint((186, 172, 144)), Surface.SAND)
    if dice.chance(0.4):
        lawn = random_pose(canvas, 30).resized(dice.between(34, 60))
        canvas.fill(lawn.points(centred_box(0.5, 0.32)), dice.tint((92, 134, 66)), Surface.LAWN)
        pitch = loop(centred_box(0.46, 0.28))
        shapes.paint_lines(canvas, lawn, 0.5, pitch, [(0, -0.28), (0, 0.28)], arc(0, 0, 0.08))
    draw_trees(canvas, dice.integer(3, 12))


def draw_town(canvas: Canvas) -> Ribbon:
    """Draw a street, houses along it, yards and a swimming pool; return the street."""
    dice = canvas.dice
    surface, colour = dice.pick([(Surface.GRASS, (118, 124, 88)), (Surface.PAVED, (160, 156, 148))])
    draw_ground(canvas, surface, colour)
    for _ in range(4):
        yard = random_pose(canvas)
        surface = dice.pick([Surface.GRASS, Surface.SOIL])
        yard = yard.resized(dice.between(20, 50))
        canvas.fill(yard.points(centred_box(0.5, 0.4)), dice.tint((126, 130, 92), 24), surface)
    draw_patches(canvas, 6)
    street = draw_road(canvas, random_pose(canvas, 40), dice.between(11, 16))
    draw_buildings(canvas, dice.integer(8, 18), street.pose.angle)
    if dice.chance(0.4):
        pool = random_pose(canvas, 10).resized(7)
        if canvas.is_free(pool, 10, 6, OPEN):
            canvas.wash(pool.points(centred_box(0.6, 0.4)), (196, 192, 180, 255))
            canvas.wash(pool.points(centred_box(0.45, 0.26)), (70, 170, 190, 255))
    draw_trees(canvas, dice.integer(6, 16))
    return street


def draw_road(canvas: Canvas, pose: Pose, width: float) -> Ribbon:
    """Draw a road through `pose` with verges, edge lines and dashes; return it."""
    dice = canvas.dice
    ribbon, half = Ribbon(pose, dice.between(-0.0012, 0.0012), width), width / 2
    canvas.fill(ribbon.strip(-half - 2, half + 2), dice.tint((150, 140, 116)), Surface.SOIL)
    asphalt = dice.pick_tint([(108, 108, 110), (132, 130, 126), (90, 92, 96)])
    canvas.fill(ribbon.strip(-half, half), asphalt, Surface.ROAD)
    for v in (0.9 * half, -0.9 * half):
        edge = ribbon.strip(v, v)
        # The outline of a strip without width runs along the same line twice.
        canvas.stroke(edge[: len(edge) // 2], 0.4, (214, 214, 206, 150))
    for dash in range(-130, 130, 9):
        shapes.paint_lines(canvas, ribbon.at(dash), 0.5, [(0, 0), (4, 0)])
    return ribbon


def draw_water(canvas: Canvas, outline: Callable[[float], list[Point]]) -> None:
    """Fill `outline(inset)` with sand, shallows and deep water."""
    dice = canvas.dice
    deep = dice.pick_tint([(48, 84, 104), (58, 92, 92), (44, 70, 96), (84, 104, 92)], 10)
    # The bottom shows through shallow water: red and green gain more than blue.
    shallow = (*shade(deep[:2], 24), *shade(deep[2:], 12))
    canvas.fill(outline(-dice.between(1.5, 7)), dice.tint((186, 172, 140)), Surface.SAND)
    for step in (0, 2, 4, 7):
        colour = tuple(c + (d - c) * step // 7 for c, d in zip(shallow, deep, strict=True))
        canvas.fill(outline(step), colour, Surface.WATER)


def draw_shore(canvas: Canvas, room: float = 0.0) -> Pose:
    """Draw land and sea; return the pose on the waterline whose u axis points to the open water."""
    dice = canvas.dice
    dice.pick([draw_countryside, draw_park, draw_town])(canvas)
    angle, quay = dice.between(0, 2 * pi), dice.chance(0.5)
    waterline = _CENTRE.at(0, 0, angle).at(-dice.between(10, 45) - room, 0)
    # A quay is straight, a beach is not.
    rough = [(0 if quay else dice.between(-3, 3), -170 + 10 * i) for i in range(35)]
    draw_water(canvas, lambda inset: waterline.points([*((u + inset, v) for u, v in rough), (300, 170), (300, -170)]))
    if quay:
        wharf = waterline.points(box(-dice.between(12, 26), -170, 1, 170))
        canvas.fill(wharf, dice.tint((172, 170, 162)), Surface.PAVED)
        canvas.stroke(waterline.points([(1, -170), (1, 170)]), 0.8, (214, 212, 204))
    return waterline


def draw_sea(canvas: Canvas) -> None:
    """Draw open water with rocks."""
    dice = canvas.dice
    draw_water(canvas, lambda inset: _EVERYWHERE)
    for _ in range(dice.integer(0, 5)):
        rock = random_pose(canvas).resized(dice.between(2, 8))
        outline = [(dice.between(0.6, 1) * u, dice.between(0.6, 1) * v) for u, v in _ROUND]
        canvas.wash(rock.resized(1.4 * rock.size).points(outline), (200, 214, 210, 90))
        canvas.fill(rock.points(outline), dice.tint((118, 112, 98)), Surface.SOIL)
