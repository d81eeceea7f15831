"""The one rule by which values of more than 8 bits become 8 bits."""

from __future__ import annotations

import math

import numpy as np

DEPTHS = (8, 10, 12, 14, 16, 32)
"""Bits a value that cameras and files have."""
USED = 0.25
"""A picture that uses less than this fraction of its range is stretched."""


def value_range(low: float, high: float, *, is_float: bool, place: str) -> tuple[float, float]:
    """Return which values become black (0) and white (255), given the smallest and largest value of a picture.

    Whole numbers: black is 0 and white the largest number of 8, 10, 12, 14, 16 or 32 bits, whichever is the first that
    holds all values; so a 12-bit picture in a 16-bit file is not dark, and values up to 255 stay as they are. Floats:
    black is 0 and white 1. A picture with values outside of this range, or that uses less than a quarter of it (other
    than values up to 255), is stretched: its own smallest value is black and its largest white. Nothing is clipped.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{place}: has pixels that are NaN or infinite; write numbers there first")
    white = 1.0 if is_float else next(2.0**bits - 1 for bits in DEPTHS if high < 2**bits or bits == DEPTHS[-1])
    kept = not is_float and white == 255
    if 0 <= low and high <= white and (kept or high - low >= USED * white):
        return 0.0, white
    # One value everywhere has no range of its own.
    return (low, high) if high > low else (min(0.0, low), max(white, high))


def scale_values(values: np.ndarray, place: str) -> np.ndarray:
    """Scale a picture's values `[H, W]` by `value_range` to uint8 `[H, W, 3]`.

    Raises:
        ValueError: a value is NaN or infinite. Names `place`.
    """
    is_float = values.dtype.kind == "f"
    black, white = value_range(float(values.min()), float(values.max()), is_float=is_float, place=place)
    # float32 does not represent every whole number of 32 bits.
    grey = np.rint((values.astype(np.float64) - black) * (255 / (white - black))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
