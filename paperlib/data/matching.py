"""Find pairs of images that show the same ground, shifted, turned or scaled: SIFT features, ratio test, RANSAC.

The strongest features of every pair are compared, and all features where these agree on a placement. OpenCV is needed;
`pip install prune-distil[dev]` installs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

STRONGEST = 200
"""Features of an image that the first pass compares."""
FEATURES = 3000
"""Features of an image that the second pass compares."""
RATIO = 0.8
"""A match is kept if its distance is less than this times the distance of the second-best match (Lowe 2004)."""
CANDIDATE = 4
"""Agreeing matches among the strongest features from which all features are compared."""
TOLERANCE = 5.0
"""Pixels by which a match may miss the fitted shift, turn and scale."""
CELL, CELLS = 48, 5
"""Matches must lie in this many cells of this side in pixels: those of one airplane or ship in both images do not."""
SCALES = (0.2, 5.0)
"""Smallest and largest scale between two images; a wrong fit often shrinks everything to a point."""


@dataclass(frozen=True)
class Features:
    """The features of an image, strongest first.

    Attributes:
        points: float32 `[N, 2]`, in pixels.
        descriptors: float32 `[N, 128]`, of length 1.
    """

    points: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class Match:
    """Two images that may share ground: their indices and the number of matches that agree on one placement.

    Attributes:
        first, second: indices of the images.
        inliers: number of matches that agree.
        transform: float64 `[2, 3]` from pixels of the first image to pixels of the second.
        cells: number of cells of `CELL` pixels in which they lie, in the image where they are fewer.
    """

    first: int
    second: int
    inliers: int
    transform: np.ndarray
    cells: int = 0


def require_opencv() -> Any:
    """Return the module of OpenCV, or raise `RuntimeError` with the command that installs it."""
    try:
        import cv2
    except ImportError:
        raise RuntimeError("OpenCV is not installed; pip install opencv-python-headless") from None
    cv2.setNumThreads(1)
    return cv2


def find_features(pixels: np.ndarray) -> Features:
    """Find the SIFT features of an image.

    Args:
        pixels: uint8 `[H, W, 3]`.
    """
    cv2 = require_opencv()
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    # A low threshold, because aerial images have wide areas of little contrast.
    keypoints, descriptors = cv2.SIFT_create(nfeatures=FEATURES, contrastThreshold=0.02).detectAndCompute(grey, None)
    if not keypoints:
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    order = np.argsort([-point.response for point in keypoints], kind="stable")
    points = np.array([point.pt for point in keypoints], np.float32)
    # Root of the histogram: its distances are Hellinger's, which match better (Arandjelovic and Zisserman 2012).
    roots = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))
    return Features(points[order], roots[order].astype(np.float32))


def compare_images(images: Sequence[Features], first: int, second: int) -> Match:
    """Compare the strongest features of two images, and all of them if the strongest agree on a placement.

    Without `CELLS` cells of matches that agree, the result has no inliers.
    """
    found = place_images(images, first, second, STRONGEST)
    if found.inliers >= CANDIDATE:
        found = place_images(images, first, second, FEATURES)
    return found if found.cells >= CELLS else replace(found, inliers=0)


def place_images(images: Sequence[Features], first: int, second: int, limit: int) -> Match:
    """Compare at most `limit` features of each of two images; fit a shift, turn and scale to those that match."""
    cv2 = require_opencv()
    one, other = images[first], images[second]
    pairs = _match_descriptors(one.descriptors[:limit], other.descriptors[:limit])
    nothing = Match(first, second, 0, np.zeros((2, 3)))
    if len(pairs) < CANDIDATE:
        return nothing
    source, target = one.points[pairs[:, 0]], other.points[pairs[:, 1]]
    transform, inside = cv2.estimateAffinePartial2D(
        source, target, ransacReprojThreshold=TOLERANCE, maxIters=2000, confidence=0.999
    )
    if transform is None or not SCALES[0] < np.hypot(*transform[0, :2]) < SCALES[1]:
        return nothing
    ends = source[inside[:, 0] > 0], target[inside[:, 0] > 0]
    # Several matches that end in one point count once: repeated patterns give such matches.
    return Match(first, second, _count_cells(ends, 3), transform, _count_cells(ends, CELL))


def _count_cells(ends: tuple[np.ndarray, np.ndarray], side: int) -> int:
    """Return in how many cells of that side points lie, in the image where they are fewer."""
    return min(len(np.unique(np.floor(points / side), axis=0)) for points in ends)


def _match_descriptors(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the matches that pass the ratio test, `[M, 2]`: indices of the descriptors."""
    if len(one) < 2 or len(other) < 2:
        return np.zeros((0, 2), np.int64)
    # PyTorch multiplies matrices much faster than NumPy on some processors.
    (closest, next_best), best = (part.T for part in (torch.from_numpy(one) @ torch.from_numpy(other).T).topk(2, 1))
    # The squared distance of two vectors of length 1 is 2 - 2 cos.
    kept = 1 - closest < RATIO**2 * (1 - next_best)
    return torch.stack([kept.nonzero()[:, 0], best[0][kept]], 1).numpy()
