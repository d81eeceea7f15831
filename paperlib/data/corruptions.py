"""Image corruptions (Section 4.5.4): darker, brighter, with partly covered objects, moved partly out of view.

Two results on the same images then differ only by the corruption. Random numbers are derived from the image's name,
so every detector sees the same pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paperlib.data.records import GREY, Dataset, Record

GAIN = 0.5
"""Darker images are multiplied by this, brighter ones divided by it."""
COVERED = 0.25
"""Part of every object's box under a grey patch."""
MOVED = 0.2
"""Part of width and height by which the view moves."""
VISIBLE = 0.5
"""An object is kept when at least this part of its box is in view."""


@dataclass(frozen=True)
class CorruptedImage:
    """An image that is corrupted when its pixels are read."""

    record: Record
    change: str

    def read_pixels(self) -> np.ndarray:
        """Compute the corrupted pixels, uint8 `[H, W, 3]`."""
        return CORRUPTIONS[self.change](self.record.read_pixels(), self.record)

    def size(self) -> tuple[int, int]:
        """Return `(width, height)` in pixels."""
        return self.record.size()

    def fingerprint(self) -> bytes:
        """Return the SHA-256 of the original and the corruption's name."""
        return hashlib.sha256(self.record.fingerprint() + self.change.encode()).digest()


def corrupt_dataset(dataset: Dataset, change: str) -> Dataset:
    """Apply one of `CORRUPTIONS` to all images of a data set.

    Raises:
        ValueError: there is no corruption of that name.
    """
    if change not in CORRUPTIONS:
        raise ValueError(f"unknown change {change!r}; known: {', '.join(CORRUPTIONS)}")
    records = [_moved(record) if change == "moved" else record for record in dataset.records]
    corrupted = [
        Record(new.name, CorruptedImage(old, change), new.boxes, new.labels)
        for new, old in zip(records, dataset.records, strict=True)
    ]
    return Dataset(f"{dataset.name}, {change}", dataset.classes, corrupted)


def _darken(pixels: np.ndarray, record: Record) -> np.ndarray:
    return (pixels * GAIN).astype(np.uint8)


def _brighten(pixels: np.ndarray, record: Record) -> np.ndarray:
    return (pixels / GAIN).clip(max=255).astype(np.uint8)


def _cover(pixels: np.ndarray, record: Record) -> np.ndarray:
    """Cover each object by a grey patch of its box's shape at a random position in the box."""
    dice, covered = _dice(record), pixels.copy()
    for left, top, right, bottom in record.boxes:
        # COVERED is a part of the area, so each side is scaled by its square root.
        width, height = np.sqrt(COVERED) * (right - left), np.sqrt(COVERED) * (bottom - top)
        x, y = dice.uniform(left, right - width), dice.uniform(top, bottom - height)
        covered[round(y) : round(y + height), round(x) : round(x + width)] = GREY
    return covered


def _move(pixels: np.ndarray, record: Record) -> np.ndarray:
    """Shift the image; the uncovered border is grey."""
    across, down = _shift(record)
    height, width = pixels.shape[:2]
    moved = np.full_like(pixels, GREY)
    into = _span(down, height), _span(across, width)
    out_of = _span(-down, height), _span(-across, width)
    moved[into] = pixels[out_of]
    return moved


def _moved(record: Record) -> Record:
    """Shift the boxes as `_move` shifts the pixels."""
    boxes = record.boxes + np.array(_shift(record) * 2)
    clipped = boxes.clip(0, np.array(record.size() * 2))
    kept = np.prod(clipped[:, 2:] - clipped[:, :2], 1) >= VISIBLE * np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    return Record(record.name, record.image, clipped[kept].astype(np.float32), record.labels[kept])


def _shift(record: Record) -> tuple[int, int]:
    """Return the shift in pixels to the right and down, in one of four diagonal directions."""
    # The generator starts again at each call, so `_move` and `_moved` draw the same shift.
    across, down = _dice(record).choice([-1, 1], 2)
    width, height = record.size()
    return int(across * round(MOVED * width)), int(down * round(MOVED * height))


def _span(shift: int, length: int) -> slice:
    return slice(max(0, shift), min(length, length + shift))


def _dice(record: Record) -> np.random.Generator:
    # The built-in `hash` of a text differs from one process to the next.
    return np.random.default_rng(int.from_bytes(hashlib.sha256(record.name.encode()).digest()[:8]))


CORRUPTIONS: dict[str, Callable[[np.ndarray, Record], np.ndarray]] = {
    "darker": _darken,
    "brighter": _brighten,
    "covered": _cover,
    "moved": _move,
}
