"""What several processes share of a training: equal parts of every batch, and one set of batch-norm statistics."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from paperlib.data.interface import ImageSet
from paperlib.training.recipe import Recipe


def require_equal_shares(dataset: ImageSet, recipe: Recipe, processes: int) -> None:
    """Check that every process gets equally many images of a batch, since their gradients count equally.

    Raises:
        ValueError: it does not.
    """
    count = len(dataset)
    if count < processes:
        raise ValueError(f"{dataset.name}: {count} images are fewer than {processes} processes; start fewer processes")
    size = min(recipe.batch_size, count)
    if size % processes:
        raise ValueError(
            f"{dataset.name}: a batch of {size} images has no equal shares for {processes} processes; "
            f"choose a batch_size that is a multiple of {processes}, or fewer processes"
        )


def average_statistics_(detector: nn.Module, accelerator: Accelerator) -> None:
    """Replace the running statistics of batch normalisation by their means over all processes, in place.

    In a training step each process normalises by its own part of the batch.
    """
    norms = [each for each in detector.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
    measured = [each for norm in norms for each in (norm.running_mean, norm.running_var) if each is not None]
    if accelerator.num_processes > 1 and measured:
        # As one tensor, because each message has to wait for every process.
        means: Any = accelerator.reduce(torch.cat(measured), "mean")
        for each, values in zip(measured, means.split([each.numel() for each in measured]), strict=True):
            each.copy_(values)
