"""What a training needs of a data set, whatever its images are annotated with."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from paperlib.data.augment import Augmentation


class ImageSet(Protocol):
    """Images of C classes with annotations: boxes (`records.Dataset`) or one class per image (scenes).

    Attributes:
        name: the data set's name and split, for messages.
        classes: the C class names.
        digest: equal for equal classes, pixels and annotations.
    """

    name: str
    classes: tuple[str, ...]
    digest: str

    def __len__(self) -> int: ...

    def labels_by_image(self) -> list[list[int]]:
        """Return the labels that each image has, with repetitions."""
        ...

    def sides(self) -> list[tuple[int, int]]:
        """Return width and height of each image in pixels."""
        ...

    def spaced_indices(self, count: int) -> list[int]:
        """Return the indices of up to `count` images at equal distances."""
        ...

    def plain_batch(self, indices: Tensor, side: int) -> tuple[Tensor, Any]:
        """Return images in squares, uint8 `[B, 3, side, side]`, and their targets as networks take them."""
        ...

    def draw_batch(
        self, indices: Tensor, side: int, augmentation: Augmentation, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Any]:
        """Return augmented images, float32 `[B, 3, side, side]` in [0, 1] on `device`, and the targets of these.

        With `augmentation.crop` they have fewer rows or columns.

        Args:
            indices: int64 `[B]`, on the CPU.
            side: side of the squares in pixels.
            augmentation: its strengths.
            generator: a CPU generator, the only source of random numbers.
            device: where the images are augmented.
        """
        ...
