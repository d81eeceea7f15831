"""The one in-memory form of a detection data set (Section 4.1), whatever files it came from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from paperlib import progress

GREY = 127


@dataclass(frozen=True, eq=False)
class Record:
    """One annotated image.

    Attributes:
        name: unique within the data set.
        image: a file, or the pixels themselves, uint8 `[H, W, 3]`.
        boxes: float32 `[N, 4]` xyxy pixels.
        labels: int64 `[N]` in 1..C.
    """

    name: str
    image: Path | np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    def pixels(self) -> np.ndarray:
        """The image, uint8 `[H, W, 3]`; a file that does not decode is a `ValueError` naming it."""
        if isinstance(self.image, np.ndarray):
            return self.image
        try:
            with Image.open(self.image) as opened:
                return np.array(opened.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{self.image}: the image does not decode ({error})") from error


@dataclass(frozen=True, eq=False)
class Letterboxed:
    """A whole data set at one square size: scaled by its longer side, grey on the right or at the bottom.

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


class Dataset(torch.utils.data.Dataset):
    """Annotated images of C classes.

    Indexing gives `(uint8 [3, H, W] image, {"boxes" [N, 4] xyxy pixels, "labels" [N] in 1..C, "image_id" int})`.

    Attributes:
        name: the data set's name and split, for people.
        classes: the C class names; label k is `classes[k - 1]`.
        records: the annotated images.
        digest: SHA-256 of classes, pixels (or image files) and annotations.
    """

    def __init__(self, name: str, classes: Sequence[str], records: Sequence[Record]) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.records = tuple(records)
        self.digest = _digest(self.classes, self.records)
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
        return torch.from_numpy(record.pixels()).permute(2, 0, 1), target

    def __repr__(self) -> str:
        boxes = sum(len(record.labels) for record in self.records)
        return f"Dataset({self.name}: {len(self)} images, {boxes} boxes, {len(self.classes)} classes)"

    def longest_side(self) -> int:
        """The longest side of any image, in pixels."""
        return max(max(image.shape[1:]) for image, _ in self)

    def counts(self) -> dict[str, int]:
        """Number of boxes per class."""
        found = Counter(int(label) for record in self.records for label in record.labels)
        return {name: found[label] for label, name in enumerate(self.classes, 1)}

    def subset(self, indices: Sequence[int], name: str) -> Dataset:
        """The data set of some of the records."""
        return Dataset(name, self.classes, [self.records[i] for i in indices])

    def letterboxed(self, side: int) -> Letterboxed:
        """All images in squares of `side` pixels; those of the side last asked for stay in memory."""
        if side not in self._squares:
            self._squares = {side: self._letterbox_all(side)}
        return self._squares[side]

    def _letterbox_all(self, side: int) -> Letterboxed:
        images = torch.full((len(self), 3, side, side), GREY, dtype=torch.uint8)
        boxes, labels, scales, sizes = [], [], [], []
        slow = any(isinstance(record.image, Path) for record in self.records)
        indices = progress.bar(range(len(self)), f"reading {self.name}") if slow else range(len(self))
        for index in indices:
            image, target = self[index]
            fitted, scale = letterbox(image, side)
            images[index, :, : fitted.shape[1], : fitted.shape[2]] = fitted
            boxes.append(target["boxes"] * scale)
            labels.append(target["labels"])
            scales.append(scale)
            sizes.append((image.shape[1], image.shape[2]))
        return Letterboxed(images, boxes, labels, torch.tensor(scales, dtype=torch.float64), sizes)


def letterbox(image: Tensor, side: int) -> tuple[Tensor, float]:
    """Scale a `[3, H, W]` image so that its longer side measures `side`; also the scale used."""
    height, width = image.shape[1:]
    scale = side / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    return (image if size == [height, width] else F.resize(image, size, antialias=True)), scale


def check_boxes(boxes: np.ndarray, size: tuple[int, int], place: str) -> None:
    """Refuse boxes that are not inside an image of `(width, height)` pixels or have no area.

    Raises:
        ValueError: names `place`, the box and the fault.
    """
    for number, (left, top, right, bottom) in enumerate(boxes.tolist(), 1):
        box = f"box {number} ({left:g}, {top:g}, {right:g}, {bottom:g})"
        if not np.isfinite([left, top, right, bottom]).all():
            raise ValueError(f"{place}: {box} is not finite")
        if right <= left or bottom <= top:
            raise ValueError(f"{place}: {box} has no area")
        if left < 0 or top < 0 or right > size[0] or bottom > size[1]:
            raise ValueError(f"{place}: {box} is not inside its image of {size[0]} x {size[1]} pixels")


def _digest(classes: Sequence[str], records: Sequence[Record]) -> str:
    total = hashlib.sha256("\n".join(classes).encode())
    for record in records:
        pixels = record.image.read_bytes() if isinstance(record.image, Path) else record.image.tobytes()
        total.update(record.name.encode() + b"\0")
        total.update(hashlib.sha256(pixels).digest())
        total.update(record.boxes.astype("<f4").tobytes() + record.labels.astype("<i8").tobytes())
    return total.hexdigest()
