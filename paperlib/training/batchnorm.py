"""Batch normalisation in training: a summary of its scale factors, and its statistics measured again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from paperlib.data.interface import ImageSet
from paperlib.seeding import seeded_rng

FEWEST_IMAGES, MOST_IMAGES = 32, 128
"""By which batch statistics are measured again."""


def gamma_statistics(detector: nn.Module) -> dict[str, float]:
    """Return quantiles of |gamma| over all batch norms, and the fraction below 0.01."""
    norms = [m.weight.detach().abs() for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return {}
    gamma = torch.cat(norms).float().cpu()
    low, middle, high = gamma.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    return {
        "gamma_p10": low,
        "gamma_p50": middle,
        "gamma_p90": high,
        "gamma_below_0.01": float((gamma < 0.01).float().mean()),
    }


def recalibrate_batch_norm_(detector: nn.Module, dataset: ImageSet, image_size: int) -> None:
    """Measure the means and variances of batch normalisation again, in place, on training images without augmentation.

    Averaged weights vary less than the weights that they are the average of, so statistics gathered along with the
    latter are too wide. The error compounds from layer to layer, and under Eq. 4 a detector with good weights can then
    find nothing. Each pass is one of training, losses included: a detector of two stages sees the regions that it
    learns from. One image of eight is enough, at least 32 and at most 128: without backward passes that takes about a
    twentieth of the time of an epoch.

    Args:
        detector: trained on `dataset`.
        dataset: the training images.
        image_size: side of the square images, in pixels.
    """
    parameter = next(detector.parameters())
    indices = torch.tensor(dataset.spaced_indices(min(max(len(dataset) // 8, FEWEST_IMAGES), MOST_IMAGES)))

    def batches() -> Iterator[list[tuple[Tensor, Any]]]:
        for part in indices.split(16):
            images, targets = dataset.plain_batch(part, image_size)
            batch = images.to(parameter.device).to(parameter.dtype) / 255
            # In a list, because update_bn passes only the first item of a list to the model.
            yield [(batch.to(memory_format=torch.channels_last), targets)]

    with seeded_rng(0):
        update_bn(batches(), _PairArgument(detector))


class _PairArgument(nn.Module):
    """A detector that takes images and targets as one argument, as update_bn calls it."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pair: tuple[Tensor, Any]) -> dict[str, Tensor]:
        return self.detector(*pair)
