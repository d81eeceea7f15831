"""What the embedded data set is drawn on: a canvas that knows who owns each pixel, and poses to place shapes.

Lengths are in scene units: an image is always `EXTENT` units wide, whatever its side in pixels. Every shape is
drawn twice with the same integer geometry, in colour and in the owner mask, both finer than the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from math import cos, sin, tau
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from paperlib.data.vhr10 import CLASSES

EXTENT = 116
"""Side of an image in scene units: the smaller, the larger its objects."""
MARGIN = 24
FINER = 3
FIRST_OBJECT = 16

Colour = tuple[int, ...]
Point = tuple[float, float]
T = TypeVar("T")


class Surface(IntEnum):
    """What a pixel shows where no object lies; values below `FIRST_OBJECT` of the owner mask."""

    GRASS = 0
    CROP = 1
    SOIL = 2
    SAND = 3
    WATER = 4
    PAVED = 5
    ROAD = 6
    BUILT = 7
    TREE = 8
    LAWN = 9


class Dice:
    """Scalar draws from one generator; only `Generator.random` is used: one draw, one number."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._random = generator.random

    def between(self, low: float, high: float) -> float:
        """A number in low … high."""
        return low + (high - low) * self._random()

    def count(self, low: int, high: int) -> int:
        """An integer in low … high, both included."""
        return low + int((high - low + 1) * self._random())

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely as the others."""
        return options[int(len(options) * self._random())]

    def tint(self, colour: Colour, spread: int = 14) -> Colour:
        """The colour, brighter or darker by at most `spread` and slightly shifted in hue."""
        light = self.between(-spread, spread)
        return tuple(min(255, max(0, int(c + light + self.between(-5, 5)))) for c in colour)


@dataclass(frozen=True, slots=True)
class Pose:
    """Centre (scene units), heading (radians) and length (scene units) of a shape given in local u, v."""

    x: float
    y: float
    angle: float = 0.0
    size: float = 1.0

    def points(self, local: Sequence[Point]) -> list[Point]:
        """Local (u, v), in lengths of the shape, to scene units."""
        c, s = self.size * cos(self.angle), self.size * sin(self.angle)
        return [(self.x + u * c - v * s, self.y + u * s + v * c) for u, v in local]

    def at(self, u: float, v: float, turn: float = 0.0, size: float = 1.0) -> Pose:
        """The pose at local (u, v), turned by `turn`, with a length of its own."""
        ((x, y),) = self.points([(u, v)])
        return Pose(x, y, self.angle + turn, size)


def box(u0: float, v0: float, u1: float, v1: float) -> list[Point]:
    """The corners of an upright rectangle."""
    return [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]


def mirrored(half: Sequence[Point]) -> list[Point]:
    """A closed outline from its half on one side of the u axis."""
    return [*half, *((u, -v) for u, v in reversed(half))]


def arc(u: float, v: float, radius: float, start: float, stop: float, steps: int = 12) -> list[Point]:
    """`steps + 1` points on a circle around (u, v), from angle `start` to angle `stop`."""
    angles = [start + (stop - start) * i / steps for i in range(steps + 1)]
    return [(u + radius * cos(a), v + radius * sin(a)) for a in angles]


class Canvas:
    """Colour and owner mask of one scene, `FINER` times the image, with a margin for what the border cuts."""

    def __init__(self, side: int, generator: np.random.Generator) -> None:
        self.side = side
        self.dice = Dice(generator)
        self.labels: list[int] = []
        self.whole: list[int] = []
        self._scale = FINER * side / EXTENT
        self._margin = FINER * round(MARGIN * side / EXTENT)
        size = (FINER * side + 2 * self._margin,) * 2
        self.colour = Image.new("RGB", size)
        self.mask = Image.new("L", size)
        self._brush, self._marker = ImageDraw.Draw(self.colour, "RGBA"), ImageDraw.Draw(self.mask)
        self._owners = self.mask.load()
        self._owner = int(Surface.GRASS)
        sun, slant = self.dice.between(0, tau), self.dice.between(0.3, 1.0)
        self._sun = (slant * cos(sun), slant * sin(sun))
        self._shade: Colour = (8, 12, 28, self.dice.count(50, 130))

    def _pixels(self, points: Sequence[Point], dx: float = 0.0, dy: float = 0.0) -> list[tuple[int, int]]:
        k, m = self._scale, self._margin
        return [(round((x + dx) * k) + m, round((y + dy) * k) + m) for x, y in points]

    def fill(self, points: Sequence[Point], colour: Colour) -> None:
        """A polygon (scene units) in colour, owned by the current surface or object."""
        pixels = self._pixels(points)
        self._brush.polygon(pixels, colour)
        self._marker.polygon(pixels, self._owner)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A disc (scene units) in colour, owned by the current surface or object."""
        bounds = self._pixels([(x - radius, y - radius), (x + radius, y + radius)])
        self._brush.ellipse(bounds, colour)
        self._marker.ellipse(bounds, self._owner)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A painted line: it changes the colour and leaves the owner as it is."""
        self._brush.line(self._pixels(points), colour, max(1, round(width * self._scale)))

    def wash(self, points: Sequence[Point], colour: Colour) -> None:
        """A translucent polygon that belongs to nobody: stain, wake, sheen."""
        self._brush.polygon(self._pixels(points), colour)

    def shadow(self, points: Sequence[Point], height: float) -> None:
        """The shadow that a flat shape `height` units above the ground casts."""
        dx, dy = self._sun[0] * height, self._sun[1] * height
        self._brush.polygon(self._pixels(points, dx, dy), self._shade)

    def lit(self, x: float, y: float, reach: float) -> Point:
        """The point `reach` units from (x, y) towards the sun."""
        return x - self._sun[0] * reach, y - self._sun[1] * reach

    @contextmanager
    def on(self, surface: Surface) -> Iterator[None]:
        """What is drawn inside shows this surface."""
        before, self._owner = self._owner, int(surface)
        yield
        self._owner = before

    @contextmanager
    def instance(self, name: str, pose: Pose) -> Iterator[None]:
        """What is drawn inside, within one length of `pose`, is one object of class `name`."""
        self.labels.append(CLASSES.index(name) + 1)
        before, self._owner = self._owner, FIRST_OBJECT + len(self.labels) - 1
        yield
        reach = pose.size
        corners = self._pixels([(pose.x - reach, pose.y - reach), (pose.x + reach, pose.y + reach)])
        self.whole.append(self.mask.crop((*corners[0], *corners[1])).histogram()[self._owner])
        self._owner = before

    def reduced(self) -> tuple[np.ndarray, np.ndarray]:
        """Colour [side, side, 3], averaged over each pixel, and owner [side, side] at each pixel's centre."""
        low, high = self._margin, self._margin + FINER * self.side
        image = self.colour.resize((self.side,) * 2, Image.Resampling.BOX, box=(low, low, high, high))
        first = low + FINER // 2
        return np.asarray(image), np.asarray(self.mask)[first:high:FINER, first:high:FINER]

    def owner(self, x: float, y: float) -> int | None:
        """Owner at a point; None outside the canvas."""
        ((column, row),) = self._pixels([(x, y)])
        inside = 0 <= column < self.mask.width and 0 <= row < self.mask.height
        return self._owners[column, row] if inside else None

    def free(self, pose: Pose, length: float, width: float, owners: Sequence[int | None]) -> bool:
        """Whether a rectangle (scene units) at `pose` shows only these owners, probed at 36 points."""
        steps = [i / 5 - 0.5 for i in range(6)]
        probes = Pose(pose.x, pose.y, pose.angle).points([(u * length, v * width) for u in steps for v in steps])
        return all(self.owner(x, y) in owners for x, y in probes)
