"""The batches of a training: which images, in which order, how they are augmented (Section 4.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from paperlib.data.interface import ImageSet
from paperlib.data.sampling import draw_order, group_shapes
from paperlib.seeding import derive_seed
from paperlib.training.recipe import Recipe


def count_batches(dataset: ImageSet, recipe: Recipe) -> int:
    """Return the number of batches in an epoch. Images that do not fill a last batch are left out of it."""
    return max(len(dataset) // recipe.batch_size, 1)


def draw_batches(
    dataset: ImageSet, recipe: Recipe, epoch: int, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Any]]:
    """Yield the augmented batches of one epoch, as far as they belong to this process.

    Images are float32 `[B, 3, S, S]` in [0, 1] on the device, in channels-last order; targets are what the networks of
    that kind of data set take. Everything random follows from the seed of the recipe, the epoch, the number of the
    batch and the rank of the process.
    """
    rank = accelerator.process_index
    generator = torch.Generator().manual_seed(derive_seed(recipe.seed, epoch))
    order = draw_order(dataset, recipe.repeat_below, generator)
    # A data set smaller than a batch makes one small batch.
    size = min(recipe.batch_size, len(order))
    if recipe.crop_padding:
        order = group_shapes(order, dataset.sides(), size, generator)
    for number in range(count_batches(dataset, recipe)):
        # Every process takes each so many-th image of the batch.
        indices = order[number * size : (number + 1) * size][rank :: accelerator.num_processes]
        generator = torch.Generator().manual_seed(derive_seed(recipe.seed, epoch, number, rank))
        images, targets = dataset.draw_batch(
            indices, recipe.image_size, recipe.augmentation(), generator, accelerator.device
        )
        yield images.contiguous(memory_format=torch.channels_last), targets
