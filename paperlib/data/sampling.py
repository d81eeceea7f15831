"""The order in which an epoch draws images: those of rare classes more often (LVIS), or those of one shape together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from paperlib.data.interface import ImageSet

POOL = 16
"""Batches among which images are exchanged for others of their shape."""


def draw_order(dataset: ImageSet, repeat_below: float, generator: torch.Generator) -> Tensor:
    """Draw as many indices as a data set has images, int64 `[N]`, in random order.

    Args:
        dataset: the images.
        repeat_below: 0 draws every image once. Otherwise an image is drawn in proportion to its repeat factor, and an
            epoch stays as long: then some images are left out.
        generator: a CPU generator, the only source of random numbers.
    """
    if not repeat_below:
        return torch.randperm(len(dataset), generator=generator)
    factors = torch.tensor(repeat_factors(dataset.labels_by_image(), repeat_below), dtype=torch.float64)
    # A factor of 1.3 is one copy, and with probability 0.3 another.
    copies = (factors + torch.rand(len(factors), generator=generator, dtype=torch.float64)).floor().long()
    pool = torch.arange(len(factors)).repeat_interleave(copies)
    return pool[torch.randperm(len(pool), generator=generator)][: len(factors)]


def repeat_factors(labels: Sequence[Sequence[int]], repeat_below: float) -> list[float]:
    """Return per image the largest of its classes' factors, sqrt(repeat_below / frequency), and 1 at least.

    Args:
        labels: the labels of each image.
        repeat_below: the frequency from which on a class is not rare, between 0 and 1. A class's frequency is the
            fraction of images that show it.
    """
    images = Counter(label for each in labels for label in set(each))
    factor = {label: max(1.0, (repeat_below * len(labels) / count) ** 0.5) for label, count in images.items()}
    return [max((factor[label] for label in each), default=1.0) for each in labels]


def group_shapes(order: Tensor, sides: Sequence[tuple[int, int]], size: int, generator: torch.Generator) -> Tensor:
    """Exchange images so that those of a batch have similar shapes; return the order, without an incomplete batch.

    Args:
        order: indices of images, int64 `[N]`.
        sides: width and height of each image.
        size: images in a batch.
        generator: a CPU generator, by which the batches are shuffled.
    """
    batches = len(order) // size
    # How long an image is, whether upright or on its side, because quarter turns exchange the two.
    lengths = torch.tensor([max(each) / min(each) for each in sides], dtype=torch.float64)
    pools = order[: batches * size].split(POOL * size)
    grouped = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
    return grouped.view(batches, size)[torch.randperm(batches, generator=generator)].flatten()
