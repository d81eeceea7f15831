"""Large images cut into overlapping tiles (Section 4.1: DOTA, 800 x 800), and detections of tiles merged again.

The paper gives only the size of the tiles. Overlap and the treatment of cut objects and empty tiles are our choice, in
`Tiling`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from paperlib.data.records import Dataset, Record
from paperlib.data.row_reader import read_part
from paperlib.files import remembered_digest

Part = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the full image."""


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        side: of a tile, in pixels; a smaller image is one tile.
        overlap: of neighbouring tiles, in pixels; an object no larger than this lies completely in some tile.
        visible: an object cut by a tile's edge is kept when at least this fraction of its box is in the tile.
        empty: fraction of the tiles without objects that is kept for training.
    """

    side: int = 800
    overlap: int = 200
    visible: float = 0.5
    empty: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.side:
            raise ValueError(f"tiles of {self.side} pixels cannot overlap by {self.overlap}")
        for name in ("visible", "empty"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, {getattr(self, name)} is not")

    def tile_bounds(self, width: int, height: int) -> list[Part]:
        """Return the tiles of an image, row by row; the last of a row and of a column end at the image's border."""
        return [
            (left, top, min(left + self.side, width), min(top + self.side, height))
            for top in self._starts(height)
            for left in self._starts(width)
        ]

    def _starts(self, length: int) -> list[int]:
        last = max(0, length - self.side)
        return [*range(0, last, self.side - self.overlap), last]


@dataclass(frozen=True)
class FilePart:
    """A part of an image file, which is read row by row: the full image is never in memory."""

    file: Path
    part: Part

    def read_pixels(self) -> np.ndarray:
        """Read the pixels, uint8 `[H, W, 3]`; raise `ValueError` with the file's name if it does not decode."""
        return read_part(self.file, *self.part)

    def size(self) -> tuple[int, int]:
        """Return `(width, height)` in pixels."""
        left, top, right, bottom = self.part
        return right - left, bottom - top

    def fingerprint(self) -> bytes:
        """Return the SHA-256 of file and part."""
        return hashlib.sha256(bytes.fromhex(remembered_digest(self.file)) + repr(self.part).encode()).digest()


class Tiles(Dataset):
    """Tiles of large images.

    Attributes:
        full_images: the images that were cut.
        tiling: how they were cut.
        locations: per tile, the index of its image in `full_images` and its part of that image.
    """

    def __init__(self, full_images: Dataset, tiling: Tiling, tiles: Sequence[tuple[int, Part, Record]]) -> None:
        self.full_images = full_images
        self.tiling = tiling
        self.locations = [(index, part) for index, part, _ in tiles]
        super().__init__(full_images.name, full_images.classes, [record for *_, record in tiles])


def cut_into_tiles(full_images: Dataset, tiling: Tiling, *, thin: bool = False) -> Tiles:
    """Cut every image of a data set; `thin` keeps only the fraction `tiling.empty` of the tiles without objects."""
    tiles = [
        (index, part, _tile(record, part, tiling.visible))
        for index, record in enumerate(full_images.records)
        for part in tiling.tile_bounds(*record.size())
    ]
    if thin:
        empty = [record.name for *_, record in tiles if not len(record.labels)]
        # The selection depends on the names only, so it is the same on every machine.
        order = sorted(empty, key=lambda name: hashlib.sha256(name.encode()).digest())
        dropped = set(order[round(tiling.empty * len(order)) :])
        tiles = [tile for tile in tiles if tile[2].name not in dropped]
    return Tiles(full_images, tiling, tiles)


def _tile(record: Record, part: Part, visible: float) -> Record:
    left, top, right, bottom = part
    if isinstance(record.image, Path):
        image = FilePart(record.image, part)
    else:
        image = record.read_pixels()[top:bottom, left:right]
    offset = np.array([left, top, left, top])
    clipped = np.clip(record.boxes - offset, 0, [right - left, bottom - top] * 2)
    inside = np.prod(clipped[:, 2:] - clipped[:, :2], 1) / np.prod(record.boxes[:, 2:] - record.boxes[:, :2], 1)
    # If `visible` is 0, the first condition alone would keep boxes outside the tile.
    kept = (inside >= visible) & (inside > 0)
    return Record(f"{record.name}@{left},{top}", image, clipped[kept].astype(np.float32), record.labels[kept])


def merge_detections(
    found: Sequence[dict[str, Tensor]], parts: Sequence[Part], size: tuple[int, int],
    *, agreement: float = 0.5, edge: float = 2.0,
) -> dict[str, Tensor]:  # fmt: skip
    """Merge the detections of one image's tiles.

    Two detections of one class in different tiles are one object if they agree in the common part of both tiles: cut
    to it, their IoU is at least `agreement`. Pairs are merged best first, as in non-maximum suppression, and never two
    detections of one tile. A merged detection has the highest score of its group. Each side of its box comes from the
    best detection whose side does not end at an edge of its tile.

    Args:
        found: per tile, `boxes [N, 4]` xyxy pixels of the tile, `labels [N]`, `scores [N]`.
        parts: the tiles' bounds in the full image.
        size: `(width, height)` of the full image.
        agreement: the smallest IoU at which two detections are merged.
        edge: distance in pixels from a tile's edge within which a side counts as cut.

    Returns:
        `boxes` in pixels of the full image, `labels`, `scores`, highest scores first.
    """
    offsets = [torch.tensor([left, top, left, top]) for left, top, _, _ in parts]
    boxes = torch.cat([tile["boxes"] + offset for tile, offset in zip(found, offsets, strict=True)])
    labels = torch.cat([tile["labels"] for tile in found])
    scores = torch.cat([tile["scores"] for tile in found])
    tile = torch.repeat_interleave(torch.tensor([len(answer["labels"]) for answer in found]))
    groups = _groups(boxes, labels, scores, tile, parts, agreement)
    saw = _uncut(boxes, tile, parts, size, edge)
    if not groups:
        return {"boxes": boxes, "labels": labels, "scores": scores}
    best = torch.tensor([group[0] for group in groups])
    merged = torch.stack([_joined(boxes[group], saw[group]) for group in groups])
    order = scores[best].argsort(descending=True, stable=True)
    return {"boxes": merged[order], "labels": labels[best][order], "scores": scores[best][order]}


def _groups(
    boxes: Tensor, labels: Tensor, scores: Tensor, tile: Tensor, parts: Sequence[Part], agreement: float
) -> list[list[int]]:
    """Group the detections of one object, by index; within a group the highest score comes first."""
    group_of, tile_of = {index: [index] for index in range(len(boxes))}, tile.tolist()
    for one, other in _agreeing_pairs(boxes, labels, scores, tile, parts, agreement):
        first, second = group_of[one], group_of[other]
        if first is second or {tile_of[i] for i in first} & {tile_of[i] for i in second}:
            continue
        # Changed in place, because all members of `first` refer to the same list.
        first += second
        group_of |= dict.fromkeys(second, first)
    distinct = {id(group): group for group in group_of.values()}.values()
    return [sorted(group, key=lambda index: (-float(scores[index]), index)) for group in distinct]


def _agreeing_pairs(
    boxes: Tensor, labels: Tensor, scores: Tensor, tile: Tensor, parts: Sequence[Part], agreement: float
) -> Iterator[tuple[int, int]]:
    """Return pairs of detections that agree in the common part of their tiles, the best pairs first."""
    pairs = []
    members = [(tile == index).nonzero()[:, 0] for index in range(len(parts))]
    for one, other in combinations(range(len(parts)), 2):
        common, mine, theirs = _intersection(parts[one], parts[other]), members[one], members[other]
        if common is None or not len(mine) or not len(theirs):
            continue
        low, high = torch.tensor(common[:2] * 2), torch.tensor(common[2:] * 2)
        here, there = boxes[mine].clamp(low, high), boxes[theirs].clamp(low, high)
        overlap = box_iou(here, there) * (labels[mine, None] == labels[theirs])
        # Without an area the IoU is 0/0.
        overlap[:, box_area(there) <= 0] = 0
        for i, j in (overlap >= agreement).nonzero().tolist():
            a, b = int(mine[i]), int(theirs[j])
            pairs.append((-float(overlap[i, j]), -float(scores[a] + scores[b]), a, b))
    return ((a, b) for *_, a, b in sorted(pairs))


def _intersection(one: Part, other: Part) -> Part | None:
    left, top, right, bottom = *map(max, one[:2], other[:2]), *map(min, one[2:], other[2:])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _uncut(boxes: Tensor, tile: Tensor, parts: Sequence[Part], size: tuple[int, int], edge: float) -> Tensor:
    """Return `[N, 4]`: whether a side of a box is where the object ends, not where its tile ends."""
    edges = torch.tensor(parts, dtype=boxes.dtype).reshape(-1, 4)
    border = edges == torch.tensor([0, 0, *size])
    return ((boxes - edges[tile]).abs() > edge) | border[tile]


def _joined(boxes: Tensor, saw: Tensor) -> Tensor:
    """Merge the boxes of a group, best first, into one."""
    furthest = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
    # `argmax` returns the first of equal values, here the best detection; it does not accept bool.
    first_that_saw = saw.int().argmax(0)
    return torch.where(saw.any(0), boxes[first_that_saw, torch.arange(4)], furthest)
