"""The in-memory form of every scene data set: images that each belong to one class, for block-wise partner learning."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from paperlib.data.augment import Augmentation, augment_scenes
from paperlib.data.records import ImageRecord
from paperlib.data.squares import hold_squares
from paperlib.progress.report import track_items

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SceneRecord(ImageRecord):
    """One image of a place.

    Attributes:
        label: 0..C-1. It counts from zero, because a scene has no background class as detection has.
    """

    label: int


class SceneDataset(torch.utils.data.Dataset):
    """Images that each belong to one of C classes.

    Indexing returns `(uint8 [3, H, W] image, label in 0..C-1)`.

    Attributes:
        name: the data set's name and split, for messages.
        classes: the C class names; label k is `classes[k]`.
        records: the images.
        digest: SHA-256 of classes, pixels (or image files) and labels.
    """

    def __init__(self, name: str, classes: Sequence[str], records: Sequence[SceneRecord]) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.records = tuple(records)
        self.digest = _digest(self.classes, self.records)
        self._squares: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        record = self.records[index]
        return torch.from_numpy(record.read_pixels()).permute(2, 0, 1), record.label

    def __repr__(self) -> str:
        return f"SceneDataset({self.name}: {len(self)} images, {len(self.classes)} classes)"

    def counts(self) -> dict[str, int]:
        """Count the images of each class."""
        found = Counter(record.label for record in self.records)
        return {name: found[label] for label, name in enumerate(self.classes)}

    def usual_side(self) -> int:
        """Return a side to which no image is cut smaller than it is: the longest shorter side, a multiple of 32."""
        return 32 * -(-max(min(record.size()) for record in self.records) // 32)

    def subset(self, indices: Sequence[int], name: str) -> SceneDataset:
        """Return the data set of some of the records."""
        return SceneDataset(name, self.classes, [self.records[i] for i in indices])

    def squares(self, side: int) -> tuple[Tensor, Tensor]:
        """Return all images in squares of `side` pixels; those of the last side are held (`hold_squares`).

        An image is cut to the largest square around its centre, which is then scaled. If any had to be scaled up, one
        line of the log says how many.

        Returns:
            Images uint8 `[N, 3, S, S]` and labels int64 `[N]` in 0..C-1.
        """
        if side not in self._squares:
            self._squares.clear()
            images = hold_squares(self._draw_squares(side), len(self), side, self.digest)
            if enlarged := sum(min(record.size()) < side for record in self.records):
                _log.warning("%s: %d of %d images were scaled up to %d pixels", self.name, enlarged, len(self), side)
            self._squares[side] = images, torch.tensor([record.label for record in self.records])
        return self._squares[side]

    def sides(self) -> list[tuple[int, int]]:
        """Return width and height of each image in pixels."""
        return [record.size() for record in self.records]

    def labels_by_image(self) -> list[list[int]]:
        """Return the label of each image, in a list of its own."""
        return [[record.label] for record in self.records]

    def _draw_squares(self, side: int) -> Iterator[Tensor]:
        slow = not all(isinstance(record.image, np.ndarray) for record in self.records)
        # A `for` statement ends the line of progress at once if an image is broken; a generator expression does not.
        for record in track_items(self.records, f"reading {self.name}") if slow else self.records:
            yield crop_square(torch.from_numpy(record.read_pixels()).permute(2, 0, 1), side)

    def spaced_indices(self, count: int) -> list[int]:
        """Return the indices of up to `count` images at equal distances."""
        return list(range(len(self)))[:: max(1, len(self) // count)][:count]

    def plain_batch(self, indices: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Return images in squares, uint8 `[B, 3, side, side]`, and their labels, int64 `[B]` in 0..C-1."""
        images, labels = self.squares(side)
        return images[indices], labels[indices]

    def draw_batch(
        self, indices: Tensor, side: int, augmentation: Augmentation, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return images, float32 `[B, 3, side, side]`, and labels as `augment_scenes` draws them (see `ImageSet`)."""
        images, labels = self.plain_batch(indices, side)
        return augment_scenes(images.to(device), augmentation, generator), labels.to(device)


def crop_square(image: Tensor, side: int) -> Tensor:
    """Return the largest square around the centre of a `[3, H, W]` image, scaled to `side` pixels."""
    # Cut before it is scaled, because a long and narrow image would become very large.
    square = F.center_crop(image, [min(image.shape[1:])] * 2)
    return square if square.shape[1] == side else F.resize(square, [side, side], antialias=True)


def _digest(classes: Sequence[str], records: Sequence[SceneRecord]) -> str:
    # The first word keeps a scene data set apart from a detection data set of the same files.
    total = hashlib.sha256("\n".join(("scenes", *classes)).encode())
    for record in records:
        total.update(record.name.encode() + b"\0" + record.fingerprint() + record.label.to_bytes(4, "little"))
    return total.hexdigest()
