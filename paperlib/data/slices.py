"""Edge cases (Section 4.5.4, Fig. 13) as named slices of any data set, computed from annotations and pixels.

The paper shows hand-picked images. Here a slice of objects has a stated rule, and a slice of images is the quarter of
the data set that has most of a measured quantity, so that each is as large in every data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from paperlib.data.records import Dataset, Record

NEAR_BORDER = 0.01
"""An object counts as cut by the border if it ends within this share of the image's longer side from it."""
SMALL = 0.04
"""An object is small if the square of its area has sides below this share of the image's longer side."""
SHARE = 0.25
"""Share of the images that a slice of images holds."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

Rule = Callable[[np.ndarray, tuple[int, int]], np.ndarray]
"""Which boxes `[N, 4]` of an image of `(width, height)` pixels belong, `[N]` bool."""


@dataclass(frozen=True)
class Slice:
    """A part of a data set.

    Attributes:
        name: for people.
        images: indices of its images.
        holds: which of their objects belong, and which detections; the same rule for both.
    """

    name: str
    images: Sequence[int]
    holds: Rule


def all_objects(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Every box."""
    return np.ones(len(boxes), dtype=bool)


def cut_by_border(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes that end at the image's border."""
    near = NEAR_BORDER * max(size)
    return (boxes[:, :2] <= near).any(1) | (boxes[:, 2:] >= np.array(size) - near).any(1)


def is_small(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes that are small beside their image."""
    return np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)) < SMALL * max(size)


def all_images(dataset: Dataset) -> Slice:
    """All of a data set."""
    return Slice("all", range(len(dataset)), all_objects)


def slices_of(dataset: Dataset) -> list[Slice]:
    """All; objects cut by the border, small ones; images that are crowded, low in contrast, dark, bright, cluttered."""
    images = range(len(dataset))
    measured = _measured(dataset)
    count = max(1, round(SHARE * len(dataset)))
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
        chosen = sorted(order.argsort(kind="stable")[:count].tolist())
        parts.append(Slice(name, chosen, all_objects))
    return parts


def measure_image(record: Record) -> tuple[float, float, float, float]:
    """Number of objects, mean and standard deviation of the luminance, and clutter.

    Clutter is the mean step of luminance from one pixel to the next where there is no object.
    """
    luminance = record.read_pixels().astype(np.float32) @ LUMA
    background = np.ones(luminance.shape, dtype=bool)
    for left, top, right, bottom in record.boxes.round().astype(int):
        background[top:bottom, left:right] = False
    down, across = np.gradient(luminance) if min(luminance.shape) > 1 else (luminance * 0, luminance * 0)
    steps = np.hypot(down, across)[background]
    clutter = float(steps.mean()) if len(steps) else 0.0
    return float(len(record.labels)), float(luminance.mean()), float(luminance.std()), clutter


_known: WeakKeyDictionary[Dataset, np.ndarray] = WeakKeyDictionary()


def _measured(dataset: Dataset) -> np.ndarray:
    """`[images, 4]`, measured once: every model of a comparison asks again."""
    if dataset not in _known:
        _known[dataset] = np.array([measure_image(record) for record in dataset.records])
    return _known[dataset]
