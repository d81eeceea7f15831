"""How much a channel matters: the criteria by which plans rank channels (Section 3.1, Table 5)."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from paperlib.pairs import centre_kernels, find_partners
from paperlib.pruning.walk_base import NormRead

Scores = dict[str, NDArray[np.float64]]
"""Per prunable convolution, one number for each output channel; the lowest are pruned first."""
Prunable = Mapping[str, Sequence[NormRead]]
"""Prunable convolutions and the batch norms that read them; what a norm scores counts where it is largest."""
Batches = Iterable[tuple[Any, Any]]
"""Pairs `(images, targets)` for which a detector in training mode returns a dict of losses."""


def gamma_importance(module: nn.Module, prunable: Prunable) -> Scores:
    """Score channels by |gamma| of the batch norm after each prunable convolution (Eqs. 1-3)."""
    return {name: _to_float64(largest_gammas(module, name, norms)) for name, norms in prunable.items()}


def largest_gammas(module: nn.Module, name: str, norms: Sequence[NormRead]) -> Tensor:
    """Return for each output of a convolution the largest |gamma| among the norms that read it; detached, [C_out]."""
    gammas = {read.norm: module.get_parameter(f"{read.norm}.weight").detach() for read in norms}
    return _pick_largest(module, name, norms, gammas).abs()


def l1_importance(module: nn.Module, prunable: Prunable) -> Scores:
    """Score channels by the L1 norm of each filter of each prunable convolution."""
    return {name: _to_float64(_filter_rows(module, name).abs().sum(1)) for name in prunable}


def l1_layerwise_importance(module: nn.Module, prunable: Prunable) -> Scores:
    """Score channels by the rank of their L1 norm within the layer, from 1/n to 1: the rival of Table 5.

    Li et al. (2017), who proposed the criterion, rank each layer separately: sums over filters of different sizes are
    not comparable. A common threshold then removes the same fraction of every layer.
    """
    return _rank_in_layers(l1_importance(module, prunable))


def l2_layerwise_importance(module: nn.Module, prunable: Prunable) -> Scores:
    """Score channels by the rank of the L2 norm of their filter within the layer, from 1/n to 1.

    So does the public code of partner learning, and so does soft filter pruning (He et al. 2018).
    """
    norms = {name: _to_float64(_filter_rows(module, name).square().sum(1)) for name in prunable}
    return _rank_in_layers(norms)


@torch.no_grad()
def fused_importance(module: nn.Module, prunable: Prunable) -> Scores:
    """Score channels by the L2 norm of their filter after its batch norm is folded in: gamma / sqrt(var + eps) W.

    That of a convolution with partners (BPL) is the norm of the fused filter: 0 where they cancel each other.
    """
    folded = {name: _fold_filters(module, name, norms) for name, norms in prunable.items()}
    for name, pair in find_partners(module).items():
        own, *partners = (f"{name}.{each}" for each in ("conv", *pair.partner_names))
        if own in folded:
            for partner in partners:
                folded[own] = folded[own] + centre_kernels(folded[partner], pair.conv.kernel_size)
            folded |= dict.fromkeys(partners, folded[own])
    return {name: _to_float64(filters.flatten(1).norm(dim=1)) for name, filters in folded.items()}


def fpgm_importance(module: nn.Module, prunable: Prunable) -> Scores:
    """Score channels by the rank, within the layer, of the sum of their filter's distances to all its others.

    The filters next to the layer's geometric median are pruned first, because the others can replace them (He et al.
    2019).
    """
    rows = {name: _filter_rows(module, name).detach().double() for name in prunable}
    # The usual way of computing distances by a matrix product loses half of the digits.
    mode = "donot_use_mm_for_euclid_dist"
    return _rank_in_layers({name: _to_float64(torch.cdist(r, r, compute_mode=mode).sum(1)) for name, r in rows.items()})


@torch.no_grad()
def hrank_importance(module: nn.Module, prunable: Prunable, calibration: Batches) -> Scores:
    """Score channels by the rank, within the layer, of the mean matrix rank of their feature maps (Lin et al. 2020).

    A feature map is the rectified output of the batch norm, as the next layer of a network with ReLU sees it.

    Args:
        module: the network; a copy in evaluation mode is used.
        prunable: convolution -> the batch norms that read it.
        calibration: at least one batch of images; targets are not used.

    Raises:
        ValueError: there is no batch.
    """
    observed = copy.deepcopy(module).eval()
    names = dict.fromkeys(read.norm for norms in prunable.values() for read in norms)
    # A norm that only training calls emits nothing.
    totals = {norm: torch.zeros_like(module.get_parameter(f"{norm}.weight"), dtype=torch.float64) for norm in names}
    for norm in totals:

        def add_ranks(_: nn.Module, _inputs: Any, maps: Tensor, norm: str = norm) -> None:
            totals[norm] += torch.linalg.matrix_rank(maps.float().relu()).double().sum(0)

        observed.get_submodule(norm).register_forward_hook(add_ranks)
    batches = 0
    for images, _ in calibration:
        observed(images)
        batches += 1
    if not batches:
        raise ValueError("calibration holds no batch")
    # All channels of a layer have seen the same maps, so the order of the sums is that of the means.
    found = {name: _pick_largest(module, name, norms, totals) for name, norms in prunable.items()}
    return _rank_in_layers({name: _to_float64(total) for name, total in found.items()})


def taylor_importance(module: nn.Module, prunable: Prunable, calibration: Batches) -> Scores:
    """Score channels by |gamma dL/dgamma + beta dL/dbeta|, summed over batches: the first-order rival of Table 5.

    Molchanov et al. (2019), in the form that they recommend for networks with batch norm: a gate z = 1 that
    multiplies the channel's normalised output gamma x + beta has dL/dz = gamma dL/dgamma + beta dL/dbeta, so closing
    it changes the loss by that much to first order. Unlike the sum over a filter's weights this includes beta, and it
    needs no activations. The absolute value is taken per batch, so that changes of opposite sign do not cancel.

    Args:
        module: the detector; a copy in training mode is used, so its gradients and statistics stay as they are.
        prunable: convolution -> the batch norms that read it.
        calibration: at least one batch.

    Raises:
        ValueError: there is no batch.
    """
    trained = copy.deepcopy(module).train().requires_grad_(False)
    values: list[nn.Parameter] = []
    names = dict.fromkeys(read.norm for norms in prunable.values() for read in norms)
    for norm in names:
        trained.get_submodule(norm).requires_grad_(True)
        values += [trained.get_parameter(f"{norm}.weight"), trained.get_parameter(f"{norm}.bias")]
    totals: list[Tensor] = []
    for images, targets in calibration:
        with torch.enable_grad():
            loss = _total_loss(trained, images, targets)
        slopes = torch.autograd.grad(loss, values, allow_unused=True)
        # A batch norm that the loss does not depend on has no gradient.
        terms = [v.detach() * (0.0 if s is None else s) for v, s in zip(values, slopes, strict=True)]
        changes = [(of_gamma + of_beta).abs() for of_gamma, of_beta in zip(terms[::2], terms[1::2], strict=True)]
        totals = [old + new for old, new in zip(totals, changes, strict=True)] if totals else changes
    if prunable and not totals:
        raise ValueError("calibration holds no batch")
    by_norm = dict(zip(names, totals, strict=True))
    return {name: _to_float64(_pick_largest(module, name, norms, by_norm)) for name, norms in prunable.items()}


IMPORTANCES: dict[str, Callable[..., Scores]] = {
    "gamma": gamma_importance,
    "l1": l1_importance,
    "fused": fused_importance,
    "l1-layerwise": l1_layerwise_importance,
    "l2-layerwise": l2_layerwise_importance,
    "fpgm": fpgm_importance,
    "hrank": hrank_importance,
    "taylor": taylor_importance,
}
CALIBRATED = ("hrank", "taylor")
"""Criteria that need data."""
LAYERWISE = ("l1-layerwise", "l2-layerwise", "fpgm", "hrank")
"""Criteria that rank each layer separately: a ratio takes the same fraction of every layer, rounded down."""


def _total_loss(module: nn.Module, images: Any, targets: Any) -> Tensor:
    try:
        loss: Any = sum(module(images, targets).values())
        return loss
    except (TypeError, AttributeError) as error:
        kind = type(module).__name__
        raise ValueError(
            f"importance needs losses: in training mode {kind}(images, targets) must return a dict of them ({error})"
        ) from error


def _rank_in_layers(scores: Scores) -> Scores:
    """Replace the scores of each layer of n channels by their ranks over n; equal scores keep their order."""
    # The argsort of an argsort gives ranks.
    return {
        name: (values.argsort(kind="stable").argsort(kind="stable") + 1.0) / len(values)
        for name, values in scores.items()
    }


def output_filters(module: nn.Module, name: str) -> Tensor:
    """Return the weights of the convolution at `name` with one entry per output channel, [C_out, ...]."""
    conv: Any = module.get_submodule(name)
    if not isinstance(conv, _ConvTransposeNd):
        return conv.weight
    return conv.weight.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)


def _filter_rows(module: nn.Module, name: str) -> Tensor:
    return output_filters(module, name).flatten(1)


def _pick_largest(module: nn.Module, name: str, norms: Sequence[NormRead], values: Mapping[str, Tensor]) -> Tensor:
    """Return for each output of a convolution the value of largest size that a norm has for it, 0 if none reads it."""
    if isinstance(norms[0].outputs, slice):  # a norm that reads all outputs has no others beside it
        return values[norms[0].norm]
    found = values[norms[0].norm].new_zeros(len(output_filters(module, name)))
    for read in norms:
        others = values[read.norm][read.channels]
        known = found[read.outputs]
        found[read.outputs] = torch.where(others.abs() <= known.abs(), known, others)
    return found


def _fold_filters(module: nn.Module, name: str, norms: Sequence[NormRead]) -> Tensor:
    scales = {read.norm: _norm_scale(module.get_submodule(read.norm)) for read in norms}
    scale = _pick_largest(module, name, norms, scales)
    filters = output_filters(module, name).double()
    return scale.view(-1, *[1] * (filters.dim() - 1)) * filters


def _norm_scale(norm: Any) -> Tensor:
    """Return the factor by which a norm multiplies each channel, [C], with running statistics if it has any."""
    if getattr(norm, "running_var", None) is None:
        return norm.weight.double()
    return norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()


def _to_float64(values: Tensor) -> NDArray[np.float64]:
    return values.detach().cpu().double().numpy()
