"""What training asks of a network's weights: a summary of the scale factors, fitting statistics."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from paperlib.data.records import Dataset
from paperlib.detectors.base import Targets
from paperlib.seeding import seeded_rng


def gamma_statistics(detector: nn.Module) -> dict[str, float]:
    """Quantiles of |gamma| over all batch norms, and the share below 0.01."""
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


def recalibrate_batch_norm_(detector: nn.Module, dataset: Dataset, image_size: int, images: int = 128) -> None:
    """Measure batch normalisation's means and variances anew, in place, on training images as they are.

    Averaged weights vary less than the weights they are the average of, so statistics gathered along with the latter
    are too wide; that compounds from layer to layer, and under Eq. 4 a detector of good weights can find nothing.
    Each pass is one of training, losses included: a detector of two stages sees the regions that it learns from.
    """
    boxed = dataset.letterboxed(image_size)
    parameter = next(detector.parameters())
    chosen = torch.tensor(dataset.spaced_indices(images))

    def batches() -> Iterator[list[tuple[Tensor, Targets]]]:
        for part in chosen.split(16):
            batch = boxed.images[part].to(parameter.device).to(parameter.dtype) / 255
            targets = [{"boxes": boxed.boxes[i], "labels": boxed.labels[i]} for i in part]
            yield [(batch.to(memory_format=torch.channels_last), targets)]  # in a list, of which update_bn takes one

    with seeded_rng(0):
        update_bn(batches(), _OnPairs(detector))


class _OnPairs(nn.Module):
    """A detector that takes images and targets as one argument."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pair: tuple[Tensor, Targets]) -> dict[str, Tensor]:
        return self.detector(*pair)
