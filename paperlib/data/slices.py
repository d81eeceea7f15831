"""Edge cases (Section 4.5.4, Fig. 13) as named slices of any data set, computed from annotations and pixels.

The paper shows selected images. Here a slice of objects is defined by a rule, and a slice of images is the quarter of
the data set with the largest values of a measured quantity, so its relative size is the same in every data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np

from paperlib.data.records import Dataset, Record

NEAR_BORDER = 0.01
"""An object is cut by the border if it ends within this fraction of the image's longer side from it."""
SMALL = 0.04
"""An object is small if the square root of its area is below this fraction of the image's longer side."""
QUARTER = 0.25
"""Fraction of the images in a slice of images."""
COMPACT, ELONGATED = 1.5, 3.0
"""Limits of the aspect ratio r, the longer side over the shorter, between compact, longish and elongated objects."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

SliceGroup = Literal["edge cases", "shapes", "corruptions"]
"""Edge cases are the slices of Section 4.5.4, shapes those by size and aspect ratio; corruptions change the images."""
Rule = Callable[[np.ndarray, tuple[int, int]], np.ndarray]
"""Function of boxes `[N, 4]` and `(width, height)` of an image: which boxes belong to a slice, `[N]` bool."""


@dataclass(frozen=True)
class Slice:
    """A part of a data set.

    Attributes:
        name: its name in tables and figures.
        images: indices of its images.
        holds: which of their objects belong to it, and which detections; the same rule for both.
    """

    name: str
    images: Sequence[int]
    holds: Rule


def all_objects(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Select every box."""
    return np.ones(len(boxes), dtype=bool)


def cut_by_border(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Select boxes `[N, 4]` that end at the border of an image of `(width, height)` pixels."""
    near = NEAR_BORDER * max(size)
    touching = np.hstack([boxes[:, :2] <= near, boxes[:, 2:] >= np.array(size) - near])
    return np.any(touching, axis=1)


def is_small(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Select boxes `[N, 4]` that are small in an image of `(width, height)` pixels."""
    return relative_size(boxes, size) < SMALL


def relative_size(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the square root of the area of boxes `[N, 4]` as a fraction of the image's longer side, `[N]`."""
    return np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)) / max(size)


def aspect_ratio(boxes: np.ndarray) -> np.ndarray:
    """Return the longer side of boxes `[N, 4]` over the shorter, `[N]`; infinite for a box without an area."""
    sides = np.sort(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.divide(sides[:, 1], sides[:, 0], out=np.full(len(boxes), np.inf), where=sides[:, 0] > 0)


def all_images(dataset: Dataset) -> Slice:
    """Return the slice of all images and objects of a data set."""
    return Slice("all", range(len(dataset)), all_objects)


def slices_of(dataset: Dataset) -> list[Slice]:
    """Return the slices of Section 4.5.4: everything, two of objects, and five of images."""
    images = range(len(dataset))
    measured = _measured(dataset)
    count = max(1, round(QUARTER * len(dataset)))
    quarters = {
        "crowded": -measured[:, 0],
        "low contrast": measured[:, 2],
        "dark": measured[:, 1],
        "bright": -measured[:, 1],
        "cluttered background": -measured[:, 3],
    }
    parts = [
        all_images(dataset),
        Slice("cut by the border", images, cut_by_border),
        Slice("small", images, is_small),
    ]
    for name, order in quarters.items():
        # Stable, so that equal values are chosen in the order of the images on every machine.
        chosen = sorted(order.argsort(kind="stable")[:count].tolist())
        parts.append(Slice(name, chosen, all_objects))
    return parts


def shape_slices(dataset: Dataset) -> list[Slice]:
    """Return slices of objects by size and by aspect ratio r, and those that are hard to regress beside the others.

    Sizes are split into thirds of the data set's own objects, so that each third has enough objects in every data set.
    """
    sizes = [relative_size(record.boxes, record.size()) for record in dataset.records]
    low, high = np.quantile(np.concatenate(sizes), [1 / 3, 2 / 3])

    def is_hard(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return (relative_size(boxes, size) < low) | (aspect_ratio(boxes) > ELONGATED)

    rules: dict[str, Rule] = {
        "smallest third": lambda boxes, size: relative_size(boxes, size) < low,
        "middle third": lambda boxes, size: (low <= relative_size(boxes, size)) & (relative_size(boxes, size) < high),
        "largest third": lambda boxes, size: relative_size(boxes, size) >= high,
        "r < 1.5": lambda boxes, _: aspect_ratio(boxes) < COMPACT,
        "r 1.5–3": lambda boxes, _: (aspect_ratio(boxes) >= COMPACT) & (aspect_ratio(boxes) <= ELONGATED),
        "r > 3": lambda boxes, _: aspect_ratio(boxes) > ELONGATED,
        "small or elongated": is_hard,
        "neither small nor elongated": lambda boxes, size: ~is_hard(boxes, size),
    }
    return [Slice(name, range(len(dataset)), rule) for name, rule in rules.items()]


def measure_image(record: Record) -> tuple[float, float, float, float]:
    """Return the number of objects, the mean and standard deviation of the luminance, and the clutter of an image.

    Clutter is the mean change of luminance from one pixel to the next outside the objects.
    """
    luminance = record.read_pixels().astype(np.float32) @ LUMA
    background = np.ones(luminance.shape, dtype=bool)
    for left, top, right, bottom in record.boxes.round().astype(int):
        background[top:bottom, left:right] = False
    # `np.gradient` needs at least two pixels along each axis.
    down, across = np.gradient(luminance) if min(luminance.shape) > 1 else (luminance * 0, luminance * 0)
    steps = np.hypot(down, across)[background]
    clutter = float(steps.mean()) if len(steps) else 0.0
    return float(len(record.labels)), float(luminance.mean()), float(luminance.std()), clutter


_known: WeakKeyDictionary[Dataset, np.ndarray] = WeakKeyDictionary()


def _measured(dataset: Dataset) -> np.ndarray:
    """Measure all images, `[images, 4]`, once per data set: every model of a comparison needs them."""
    if dataset not in _known:
        _known[dataset] = np.array([measure_image(record) for record in dataset.records])
    return _known[dataset]
