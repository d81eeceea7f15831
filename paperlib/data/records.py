"""The in-memory form of every detection data set (Section 4.1), independent of its files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from paperlib import files
from paperlib.data.augment import Augmentation, augment
from paperlib.data.pictures import LARGE, decode_image, decode_scaled, image_size
from paperlib.data.squares import hold_squares
from paperlib.progress.report import track_items

GREY = 127


class Picture(Protocol):
    """An image whose pixels are computed on demand: a part of a large file, or a corrupted image."""

    def read_pixels(self) -> np.ndarray:
        """Read the pixels, uint8 `[H, W, 3]`."""
        ...

    def size(self) -> tuple[int, int]:
        """Return `(width, height)` in pixels."""
        ...

    def fingerprint(self) -> bytes:
        """Return a digest that is equal for equal pixels."""
        ...


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image of a data set.

    Attributes:
        name: unique within the data set.
        image: a file, the pixels themselves, uint8 `[H, W, 3]`, or an object that computes them.
    """

    name: str
    image: Path | np.ndarray | Picture

    def read_pixels(self) -> np.ndarray:
        """Read the image, uint8 `[H, W, 3]`; raise `ValueError` with the file's name if it does not decode."""
        if isinstance(self.image, np.ndarray):
            return self.image
        return decode_image(self.image) if isinstance(self.image, Path) else self.image.read_pixels()

    def size(self) -> tuple[int, int]:
        """Return `(width, height)` in pixels, without decoding the image."""
        if isinstance(self.image, np.ndarray):
            return self.image.shape[1], self.image.shape[0]
        return image_size(self.image) if isinstance(self.image, Path) else self.image.size()

    def fingerprint(self) -> bytes:
        """Return the SHA-256 of the image file or of the pixels."""
        if isinstance(self.image, np.ndarray):
            return hashlib.sha256(self.image.tobytes()).digest()
        if isinstance(self.image, Path):
            return bytes.fromhex(files.remembered_digest(self.image))
        return self.image.fingerprint()


@dataclass(frozen=True, eq=False)
class Record(ImageRecord):
    """One image with its objects.

    Attributes:
        boxes: float32 `[N, 4]` xyxy pixels.
        labels: int64 `[N]` in 1..C.
    """

    boxes: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Letterboxed:
    """Images in squares of one size: scaled by the longer side, grey on the right or at the bottom.

    Attributes:
        images: uint8 `[N, 3, S, S]`.
        boxes: per image float32 `[n, 4]` xyxy pixels of the square.
        labels: per image int64 `[n]`.
        scales: `[N]` square pixels per original pixel.
        sizes: per image the original `(height, width)`.
    """

    images: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    scales: Tensor
    sizes: list[tuple[int, int]]

    def visible(self, index: int) -> Tensor:
        """Return the rectangle that an image fills in its square, `[1, 4]` xyxy pixels; the rest is grey."""
        (height, width), _ = _letterbox_size(*self.sizes[index], self.images.shape[-1])
        return torch.tensor([[0.0, 0.0, width, height]])


class Dataset(torch.utils.data.Dataset):
    """Annotated images of C classes.

    Indexing returns `(uint8 [3, H, W] image, {"boxes" [N, 4] xyxy pixels, "labels" [N] in 1..C, "image_id" int})`.

    Attributes:
        name: the data set's name and split, for messages.
        classes: the C class names; label k is `classes[k - 1]`.
        records: the annotated images.
        digest: SHA-256 of classes, pixels (or image files) and annotations.
        remarks: what was repaired or left out when files were read, one line each.
    """

    def __init__(self, name: str, classes: Sequence[str], records: Sequence[Record]) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.records = tuple(records)
        self.digest = _digest(self.classes, self.records)
        self.remarks: tuple[str, ...] = ()
        self._squares: dict[int, Letterboxed] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor | int]]:
        record = self.records[index]
        target = {
            "boxes": torch.tensor(record.boxes),
            "labels": torch.tensor(record.labels),
            "image_id": index,
        }
        return torch.from_numpy(record.read_pixels()).permute(2, 0, 1), target

    def __repr__(self) -> str:
        boxes = sum(len(record.labels) for record in self.records)
        return f"Dataset({self.name}: {len(self)} images, {boxes} boxes, {len(self.classes)} classes)"

    def longest_side(self) -> int:
        """Return the longest side of any image, in pixels."""
        return max(max(record.size()) for record in self.records)

    def sides(self) -> list[tuple[int, int]]:
        """Return width and height of each image in pixels."""
        return [record.size() for record in self.records]

    def box_counts(self) -> dict[str, int]:
        """Count the boxes of each class."""
        found = Counter(int(label) for record in self.records for label in record.labels)
        return {name: found[label] for label, name in enumerate(self.classes, 1)}

    counts = box_counts  # its name in the first release

    def labels_by_image(self) -> list[list[int]]:
        """Return the labels of each image's boxes."""
        return [record.labels.tolist() for record in self.records]

    def spaced_indices(self, count: int, *, min_objects: int = 0, max_objects: int | None = None) -> list[int]:
        """Return the indices of up to `count` images at equal distances, among those with so many objects."""
        fitting = [
            index
            for index, record in enumerate(self.records)
            if min_objects <= len(record.labels) and (max_objects is None or len(record.labels) <= max_objects)
        ]
        return fitting[:: max(1, len(fitting) // count)][:count]

    def subset(self, indices: Sequence[int], name: str) -> Dataset:
        """Return the data set of some of the records."""
        return Dataset(name, self.classes, [self.records[i] for i in indices])

    def letterboxed(self, side: int) -> Letterboxed:
        """Return all images in squares of `side` pixels; those of the last side are held (`hold_squares`)."""
        if side not in self._squares:
            self._squares.clear()
            images = hold_squares(self._draw_squares(side), len(self), side, self.digest)
            self._squares[side] = _describe_squares(images, self.records)
        return self._squares[side]

    def _draw_squares(self, side: int) -> Iterator[Tensor]:
        slow = not all(isinstance(record.image, np.ndarray) for record in self.records)
        # A `for` statement ends the line of progress at once if an image is broken; a generator expression does not.
        for record in track_items(self.records, f"reading {self.name}") if slow else self.records:
            yield _draw_square(record, side)

    def plain_batch(self, indices: Tensor, side: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Return images in squares, uint8 `[B, 3, side, side]`, and per image their targets.

        These are `boxes`, `labels`, and `visible` `[1, 4]`, the rectangle in pixels that is not grey padding.
        """
        boxed = self.letterboxed(side)
        targets = [
            {"boxes": boxed.boxes[index], "labels": boxed.labels[index], "visible": boxed.visible(int(index))}
            for index in indices
        ]
        return boxed.images[indices], targets

    def draw_batch(
        self, indices: Tensor, side: int, augmentation: Augmentation, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Return images, float32 `[B, 3, side, side]`, and targets as `augment` draws them (see `ImageSet`)."""
        images, targets = self.plain_batch(indices, side)
        boxes = [target["boxes"] for target in targets]
        labels = [target["labels"] for target in targets]
        visible = [target["visible"] for target in targets]
        return augment(images.to(device), boxes, labels, augmentation, generator, visible)

    def letterboxed_batches(self, side: int, size: int) -> Iterator[Letterboxed]:
        """Yield the images in squares of `side` pixels, `size` at a time in order; none of them stays in memory."""
        for start in range(0, len(self), size):
            chosen = self.records[start : start + size]
            yield _describe_squares(torch.stack([_draw_square(record, side) for record in chosen]), chosen)


def letterbox_image(image: Tensor, side: int) -> tuple[Tensor, float]:
    """Scale a `[3, H, W]` image so that its longer side measures `side`; return it and the scale."""
    height, width = image.shape[1:]
    size, scale = _letterbox_size(height, width, side)
    return (image if size == [height, width] else F.resize(image, size, antialias=True)), scale


def _draw_square(record: Record, side: int) -> Tensor:
    """Return a record's image in a square, uint8 `[3, side, side]`."""
    square = torch.full((3, side, side), GREY, dtype=torch.uint8)
    fitted = _read_fitted(record, side)
    square[:, : fitted.shape[1], : fitted.shape[2]] = fitted
    return square


def _describe_squares(images: Tensor, records: Sequence[Record]) -> Letterboxed:
    """Return squares `[N, 3, S, S]` of records with their boxes and scales."""
    side = images.shape[-1]
    sizes = [(height, width) for width, height in (record.size() for record in records)]
    scales = [side / max(size) for size in sizes]
    boxes = [torch.tensor(record.boxes) * scale for record, scale in zip(records, scales, strict=True)]
    labels = [torch.tensor(record.labels) for record in records]
    return Letterboxed(images, boxes, labels, torch.tensor(scales, dtype=torch.float64), sizes)


def _read_fitted(record: Record, side: int) -> Tensor:
    """Return a record's image as `letterbox_image` scales it."""
    if isinstance(record.image, Path):
        width, height = record.size()
        if width * height > LARGE and max(width, height) > side:
            # With all its pixels, and a copy to scale it, such a picture would take gigabytes.
            size, _ = _letterbox_size(height, width, side)
            return decode_scaled(record.image, (size[1], size[0]))
    return letterbox_image(torch.from_numpy(record.read_pixels()).permute(2, 0, 1), side)[0]


def _letterbox_size(height: int, width: int, side: int) -> tuple[list[int], float]:
    # One scale for both axes, although rounding changes the shorter side by up to half a pixel.
    scale = side / max(height, width)
    return [max(1, round(height * scale)), max(1, round(width * scale))], scale


def trim_boxes(boxes: np.ndarray, size: tuple[int, int], overhang: float) -> np.ndarray:
    """Cut boxes `[N, 4]` that stick out of an image of `(width, height)` pixels, by at most `overhang`, at its border.

    A box that would have no area left is not changed; `check_boxes` refuses it.
    """
    border = np.array([*size, *size], dtype=np.float64)
    # Comparisons with NaN are false, so NaN stays in the box and `check_boxes` refuses it.
    near = (boxes >= -overhang) & (boxes <= border + overhang)
    trimmed = np.where(near, boxes.clip(0, border), boxes)
    has_area = (trimmed[:, 2:] > trimmed[:, :2]).all(1, keepdims=True)
    return np.where(has_area, trimmed, boxes)


def turn_boxes(boxes: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Turn boxes `[N, 4]` of a stored picture of `(width, height)` pixels as its EXIF orientation turns the picture."""
    width, height = size
    left, top, right, bottom = boxes.T
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    # Orientations 5 to 8 are a flip, or none, and then a transposition: the order matters.
    swapped = orientation >= 5
    return np.stack([top, left, bottom, right] if swapped else [left, top, right, bottom], axis=1)


def check_boxes(boxes: np.ndarray, size: tuple[int, int], place: str) -> None:
    """Check that boxes `[N, 4]` lie inside an image of `(width, height)` pixels and have an area.

    Raises:
        ValueError: names `place`, the box and the fault.
    """
    for number, (left, top, right, bottom) in enumerate(boxes.tolist(), 1):
        box = f"box {number} ({left:g}, {top:g}, {right:g}, {bottom:g})"
        if not np.isfinite([left, top, right, bottom]).all():
            raise ValueError(f"{place}: {box} is not finite")
        if right < left or bottom < top:
            raise ValueError(f"{place}: {box} has its corners reversed")
        if right == left or bottom == top:
            raise ValueError(f"{place}: {box} has no area")
        if left < 0 or top < 0 or right > size[0] or bottom > size[1]:
            raise ValueError(f"{place}: {box} is not inside its image of {size[0]} x {size[1]} pixels")


def _digest(classes: Sequence[str], records: Sequence[Record]) -> str:
    total = hashlib.sha256("\n".join(classes).encode())
    for record in records:
        total.update(record.name.encode() + b"\0")
        total.update(record.fingerprint())
        # A fixed byte order gives the same digest on every machine.
        total.update(record.boxes.astype("<f4").tobytes() + record.labels.astype("<i8").tobytes())
    return total.hexdigest()
