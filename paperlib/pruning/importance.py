"""How much a channel matters: the criteria by which plans rank channels (Section 3.1, Table 5)."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Scores = dict[str, NDArray[np.float64]]
"""Per prunable convolution, one number for each output channel; the lowest are pruned first."""
Batches = Iterable[tuple[Any, Any]]
"""Pairs `(images, targets)` that a detector in training mode takes, to give a dict of losses."""


def gamma(module: nn.Module, prunable: Mapping[str, str]) -> Scores:
    """|gamma| of the batch norm after each prunable convolution (Eqs. 1-3)."""
    return {name: _float64(module.get_submodule(norm).weight.abs()) for name, norm in prunable.items()}


def l1(module: nn.Module, prunable: Mapping[str, str]) -> Scores:
    """L1 norm of each filter of each prunable convolution."""
    return {name: _float64(_filters(module.get_submodule(name)).abs().sum(1)) for name in prunable}


def l1_layerwise(module: nn.Module, prunable: Mapping[str, str]) -> Scores:
    """Place of each filter in its layer's order of L1 norms, from 1/n to 1: the rival of Table 5.

    Li et al. (2017), who proposed the criterion, rank each layer apart: sums over filters of different sizes do not
    compare. A common threshold then cuts every layer by the same share.
    """
    return {name: (norms.argsort().argsort() + 1.0) / len(norms) for name, norms in l1(module, prunable).items()}


def taylor(module: nn.Module, prunable: Mapping[str, str], calibration: Batches) -> Scores:
    """|gamma dL/dgamma + beta dL/dbeta|, summed over batches: the first-order rival of Table 5.

    Molchanov et al. (2019), in the form that they recommend for networks with batch norm: a gate z = 1 that
    multiplies the channel's normalised output gamma x + beta has dL/dz = gamma dL/dgamma + beta dL/dbeta, so closing
    it changes the loss by that much to first order. Unlike the sum over a filter's weights this sees beta, and it
    needs no activations. The size is taken per batch, lest changes of opposite sign cancel.

    Args:
        module: the detector; a copy in training mode is used, so its gradients and statistics stay as they are.
        prunable: convolution -> batch norm, by name.
        calibration: at least one batch.

    Raises:
        ValueError: there is no batch.
    """
    rehearsal = copy.deepcopy(module).train().requires_grad_(False)
    norms = [rehearsal.get_submodule(norm).requires_grad_(True) for norm in prunable.values()]
    values = [tensor for norm in norms for tensor in (norm.weight, norm.bias)]
    totals: list[torch.Tensor] | None = None
    for images, targets in calibration:
        with torch.enable_grad():
            loss = sum(rehearsal(images, targets).values())
        slopes = torch.autograd.grad(loss, values, allow_unused=True)
        terms = [v.detach() * (0.0 if s is None else s) for v, s in zip(values, slopes, strict=True)]
        changes = [(one + other).abs() for one, other in zip(terms[::2], terms[1::2], strict=True)]
        totals = changes if totals is None else [old + new for old, new in zip(totals, changes, strict=True)]
    if totals is None:
        raise ValueError("calibration holds no batch")
    return {name: _float64(total) for name, total in zip(prunable, totals, strict=True)}


IMPORTANCES: dict[str, Callable[..., Scores]] = {
    "gamma": gamma,
    "l1": l1,
    "l1-layerwise": l1_layerwise,
    "taylor": taylor,
}
CALIBRATED = ("taylor",)
"""Criteria that look at data."""


def score_channels(
    importance: str, module: nn.Module, prunable: Mapping[str, str], calibration: Batches | None = None
) -> Scores:
    """The scores of the criterion of that name for the convolutions of `prunable` (-> their batch norms).

    Raises:
        ValueError: no such criterion; calibration batches are missing, or given to a criterion that looks at weights
            alone; or a score is not finite (diverged training).
    """
    if importance not in IMPORTANCES:
        raise ValueError(f"importance {importance!r} is not known; choose one of: {', '.join(IMPORTANCES)}")
    if importance in CALIBRATED and calibration is None:
        raise ValueError(f"importance {importance!r} needs calibration: batches of (images, targets)")
    if importance not in CALIBRATED and calibration is not None:
        raise ValueError(f"importance {importance!r} takes no calibration: it looks at weights alone")
    data = () if calibration is None else (calibration,)
    scores = IMPORTANCES[importance](module, prunable, *data)
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
