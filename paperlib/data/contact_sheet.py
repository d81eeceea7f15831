"""A contact sheet of pairs of images: the first, brought to the place of the second, beside the second."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from paperlib.data.matching import FEATURES, find_features, place_images, require_opencv

SIDE = 320
"""Side of one picture on the sheet, in pixels."""


def draw_contact_sheet(pairs: Iterable[tuple[str, np.ndarray, np.ndarray]], path: Path) -> None:
    """Write a sheet of pairs.

    Args:
        pairs: a label, and the pixels uint8 `[H, W, 3]` of both images.
        path: the PNG file.

    Raises:
        RuntimeError: OpenCV is missing.
    """
    cv2 = require_opencv()
    rows = []
    for label, first, second in pairs:
        match = place_images([find_features(first), find_features(second)], 0, 1, FEATURES)
        placed = cv2.warpAffine(first, match.transform, (second.shape[1], second.shape[0]))
        row = np.concatenate([_fit_square(placed), _fit_square(second)], axis=1)
        rows.append(cv2.putText(np.ascontiguousarray(row), label, (4, 16), 0, 0.5, (255, 255, 0), 1))
    if len(rows) % 2:
        rows.append(np.zeros_like(rows[0]))
    lines = [np.concatenate(rows[at : at + 2], axis=1) for at in range(0, len(rows), 2)]
    path.write_bytes(cv2.imencode(".png", np.concatenate(lines)[..., ::-1])[1].tobytes())


def _fit_square(pixels: np.ndarray) -> np.ndarray:
    """Return an image scaled into a black square."""
    cv2 = require_opencv()
    scale = SIDE / max(pixels.shape[:2])
    scaled = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:SIDE, :SIDE]
    square = np.zeros((SIDE, SIDE, 3), np.uint8)
    square[: scaled.shape[0], : scaled.shape[1]] = scaled
    return square
