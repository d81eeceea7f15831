"""How much a channel matters: the criteria by which plans rank channels (Section 3.1, Table 5)."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paperlib.pruning.channels import ChannelGraph

Scores = dict[str, NDArray[np.float64]]
"""Per prunable convolution, one number for each output channel; the lowest are pruned first."""


def gamma(module: nn.Module, graph: ChannelGraph) -> Scores:
    """|gamma| of the batch norm after each prunable convolution (Eqs. 1-3)."""
    return {name: _float64(module.get_submodule(norm).weight.abs()) for name, norm in graph.prunable.items()}


def l1(module: nn.Module, graph: ChannelGraph) -> Scores:
    """L1 norm of each filter of each prunable convolution: the rival of Table 5."""
    return {name: _float64(_filters(module.get_submodule(name)).abs().sum(1)) for name in graph.prunable}


IMPORTANCES: dict[str, Callable[[nn.Module, ChannelGraph], Scores]] = {"gamma": gamma, "l1": l1}


def score_channels(importance: str, module: nn.Module, graph: ChannelGraph) -> Scores:
    """The scores of the criterion of that name.

    Raises:
        ValueError: no such criterion, or a score is not finite (diverged training).
    """
    if importance not in IMPORTANCES:
        raise ValueError(f"importance {importance!r} is not known; choose one of: {', '.join(IMPORTANCES)}")
    scores = IMPORTANCES[importance](module, graph)
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise ValueError(f"importance {importance!r} of {name} is not finite; did the training diverge?")
    return scores


def _filters(conv: nn.Conv2d | nn.ConvTranspose2d) -> torch.Tensor:
    """The weights of each output channel as one row."""
    transposed = isinstance(conv, nn.ConvTranspose2d) and conv.groups == 1
    weight = conv.weight.transpose(0, 1) if transposed else conv.weight
    return weight.flatten(1)


def _float64(values: torch.Tensor) -> NDArray[np.float64]:
    return values.detach().cpu().double().numpy()
