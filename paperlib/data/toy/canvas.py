"""The drawing surface of the embedded data set: an image, a mask of who owns each pixel, and poses to place shapes.

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
"""Width in scene units of the strip around the image in which objects may lie that its border cuts."""
FINER = 3
"""Pixels of the canvas along one pixel of the image."""
FIRST_OBJECT = 16
"""Owner of the pixels of the first object; smaller owners are surfaces."""

Colour = tuple[int, ...]
"""RGB or RGBA, 0-255."""
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
    """Random numbers from one generator; each number takes exactly one draw of `Generator.random`."""

    def __init__(self, generator: np.random.Generator) -> None:
        # The order of draws belongs to the data set: one draw more changes everything drawn after it.
        self._random = generator.random

    def between(self, low: float, high: float) -> float:
        """Draw a number in low … high."""
        return low + (high - low) * self._random()

    def integer(self, low: int, high: int) -> int:
        """Draw an integer in low … high, both included."""
        return low + int((high - low + 1) * self._random())

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random() < probability

    def pick(self, options: Sequence[T]) -> T:
        """Pick one of the options, each as likely as the others."""
        return options[int(len(options) * self._random())]

    def tint(self, colour: Colour, spread: int = 14) -> Colour:
        """Return the colour, brighter or darker by at most `spread` and slightly shifted in hue."""
        light = self.between(-spread, spread)
        return tuple(min(255, max(0, int(c + light + self.between(-5, 5)))) for c in colour)

    def pick_tint(self, colours: Sequence[Colour], spread: int = 14) -> Colour:
        """Pick one of the colours and tint it."""
        return self.tint(self.pick(colours), spread)


@dataclass(frozen=True, slots=True)
class Pose:
    """Centre (scene units), heading (radians) and length (scene units) of a shape given in local u, v."""

    x: float
    y: float
    angle: float = 0.0
    size: float = 1.0

    def points(self, local: Sequence[Point]) -> list[Point]:
        """Convert local (u, v), in lengths of the shape, to scene units."""
        c = self.size * cos(self.angle)
        s = self.size * sin(self.angle)
        return [(self.x + u * c - v * s, self.y + u * s + v * c) for u, v in local]

    def at(self, u: float, v: float, turn: float = 0.0, size: float = 1.0) -> Pose:
        """Return the pose at local (u, v), turned by `turn`, with a length of its own."""
        ((x, y),) = self.points([(u, v)])
        return Pose(x, y, self.angle + turn, size)

    def resized(self, size: float) -> Pose:
        """Return the pose with another length."""
        return Pose(self.x, self.y, self.angle, size)


def box(u0: float, v0: float, u1: float, v1: float) -> list[Point]:
    """Return the corners of an upright rectangle."""
    return [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]


def centred_box(half_length: float, half_width: float) -> list[Point]:
    """Return the corners of an upright rectangle around (0, 0)."""
    return box(-half_length, -half_width, half_length, half_width)


def loop(outline: Sequence[Point]) -> list[Point]:
    """Return an outline that ends where it starts, for a line around it."""
    return [*outline, outline[0]]


def mirrored(half: Sequence[Point]) -> list[Point]:
    """Return a closed outline from its half on one side of the u axis."""
    return [*half, *((u, -v) for u, v in reversed(half))]


def arc(u: float, v: float, radius: float, start: float = 0.0, stop: float = tau, steps: int = 12) -> list[Point]:
    """Return `steps + 1` points on a circle around (u, v), from angle `start` to angle `stop`."""
    angles = [start + (stop - start) * i / steps for i in range(steps + 1)]
    return [(u + radius * cos(a), v + radius * sin(a)) for a in angles]


def shade(colour: Colour, amount: int) -> Colour:
    """Return a colour made lighter by `amount`, or darker if it is negative."""
    return tuple(min(255, max(0, c + amount)) for c in colour)


class Canvas:
    """Colour and owner mask of one scene, `FINER` times the image, with a margin for what the border cuts.

    Attributes:
        labels: the class of each object, 1 … 10.
        areas: how many pixels of the canvas each object covered when it was drawn.
    """

    def __init__(self, side: int, generator: np.random.Generator) -> None:
        self.side = side
        self.dice = Dice(generator)
        self.labels: list[int] = []
        self.areas: list[int] = []
        self._scale = FINER * side / EXTENT
        self._margin = FINER * round(MARGIN * side / EXTENT)
        full_side = FINER * side + 2 * self._margin
        self.colour = Image.new("RGB", (full_side, full_side))
        # One byte a pixel: an image can have at most 240 objects.
        self.mask = Image.new("L", (full_side, full_side))
        # On an RGB image, the mode RGBA blends translucent colours instead of replacing pixels.
        self._brush = ImageDraw.Draw(self.colour, "RGBA")
        self._marker = ImageDraw.Draw(self.mask)
        self._object = FIRST_OBJECT
        sun = self.dice.between(0, tau)
        slant = self.dice.between(0.3, 1.0)
        # The shift of a shadow for each unit of height; it points away from the sun.
        self._sun = (slant * cos(sun), slant * sin(sun))
        self._shade: Colour = (8, 12, 28, self.dice.integer(50, 130))

    def _pixels(self, points: Sequence[Point], dx: float = 0.0, dy: float = 0.0) -> list[tuple[int, int]]:
        # Rounded here, once, so that colour and mask get the same corners.
        k, m = self._scale, self._margin
        return [(round((x + dx) * k) + m, round((y + dy) * k) + m) for x, y in points]

    def fill(self, points: Sequence[Point], colour: Colour, surface: Surface | None = None) -> None:
        """Fill a polygon (scene units) that shows `surface`, or belongs to the current object."""
        pixels = self._pixels(points)
        self._brush.polygon(pixels, colour)
        self._marker.polygon(pixels, self._object if surface is None else surface)

    def disc(self, x: float, y: float, radius: float, colour: Colour, surface: Surface | None = None) -> None:
        """Fill a disc (scene units) that shows `surface`, or belongs to the current object."""
        bounds = self._pixels([(x - radius, y - radius), (x + radius, y + radius)])
        self._brush.ellipse(bounds, colour)
        self._marker.ellipse(bounds, self._object if surface is None else surface)

    def block(self, points: Sequence[Point], height: float, colour: Colour, surface: Surface | None = None) -> None:
        """Fill a polygon that stands `height` units above the ground, with its shadow."""
        self.shadow(points, height)
        self.fill(points, colour, surface)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Paint a line, which changes the colour and leaves the owner as it is."""
        self._brush.line(self._pixels(points), colour, max(1, round(width * self._scale)))

    def wash(self, points: Sequence[Point], colour: Colour) -> None:
        """Paint a translucent polygon that belongs to nobody: stain, wake, sheen."""
        self._brush.polygon(self._pixels(points), colour)

    def shadow(self, points: Sequence[Point], height: float) -> None:
        """Cast the shadow of a flat shape `height` units above the ground."""
        dx, dy = self._sun[0] * height, self._sun[1] * height
        self._brush.polygon(self._pixels(points, dx, dy), self._shade)

    def towards_sun(self, x: float, y: float, distance: float) -> Point:
        """Return the point `distance` units from (x, y) towards the sun."""
        return x - self._sun[0] * distance, y - self._sun[1] * distance

    @contextmanager
    def new_object(self, name: str, pose: Pose) -> Iterator[None]:
        """Make what is drawn inside, within one length of `pose`, one object of class `name`."""
        self._object = FIRST_OBJECT + len(self.labels)
        self.labels.append(CLASSES.index(name) + 1)
        yield
        # Counted now, because what is drawn later may cover it.
        reach = pose.size
        low, high = self._pixels([(pose.x - reach, pose.y - reach), (pose.x + reach, pose.y + reach)])
        self.areas.append(self.mask.crop((*low, *high)).histogram()[self._object])

    def image_and_owners(self) -> tuple[np.ndarray, np.ndarray]:
        """Return colour [side, side, 3], averaged over each pixel, and owner [side, side] at each pixel's centre."""
        low, high = self._margin, self._margin + FINER * self.side
        image = self.colour.resize((self.side, self.side), Image.Resampling.BOX, box=(low, low, high, high))
        # Owners are names, of which there is no average: the mask is sampled.
        first = low + FINER // 2
        return np.asarray(image), np.asarray(self.mask)[first:high:FINER, first:high:FINER]

    def owner_at(self, x: float, y: float) -> int | None:
        """Return the owner at a point; None outside the canvas."""
        ((column, row),) = self._pixels([(x, y)])
        if not (0 <= column < self.mask.width and 0 <= row < self.mask.height):
            return None
        return int(self.mask.getpixel((column, row)))  # pyright: ignore[reportArgumentType]

    def is_free(self, pose: Pose, length: float, width: float, owners: Sequence[int | None]) -> bool:
        """Return whether a rectangle (scene units) at `pose` shows only these owners, probed at 36 points."""
        steps = [i / 5 - 0.5 for i in range(6)]
        probes = pose.resized(1.0).points([(u * length, v * width) for u in steps for v in steps])
        return all(self.owner_at(x, y) in owners for x, y in probes)
