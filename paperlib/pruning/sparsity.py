"""Sparse training: the L1 term on batch norm's scale factors (Section 3.1, Eq. 4)."""

from collections.abc import Iterator
from functools import reduce
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paperlib.pairs import find_partners
from paperlib.pruning.channel_graph import trace_channels
from paperlib.pruning.importance import largest_gammas

Method = Literal["subgradient", "proximal"]

# Only names are remembered: they stay valid if parameters are replaced, and they keep no network alive.
_norm_names: WeakKeyDictionary[nn.Module, list[tuple[str, ...]]] = WeakKeyDictionary()


class Sparsity:
    """The regulariser of Eq. 4: `strength` * sum |gamma| over the prunable batch norms.

    `subgradient`, the paper's way, adds strength * sign(gamma) to gamma's gradient. Adam then divides by the
    gradient's own size: a channel without task gradient moves by about the learning rate in each step, whatever the
    strength is, and never comes to rest at zero. `proximal` shrinks gamma after the step by learning rate *
    strength, and leaves exact zeros.

    The two scale factors of a convolution and its partner (BPL) count as one, sqrt(gamma^2 + gamma'^2): that of the
    fused convolution. The sum of both would drive gamma' to 0, where every partner begins, and so undo the partners.

    Args:
        strength: lambda of Eq. 4, at least 0.
        method: `subgradient` or `proximal`.

    Raises:
        ValueError: a negative strength or an unknown method.
    """

    def __init__(self, strength: float, method: Method = "subgradient") -> None:
        if not strength >= 0:
            raise ValueError(f"sparsity strength {strength} must be ≥ 0")
        if method not in get_args(Method):
            raise ValueError(f"sparsity method {method!r} is not known; choose one of: {', '.join(get_args(Method))}")
        self.strength = float(strength)
        self.method = method

    @torch.no_grad()
    def before_step(self, module: nn.Module, learning_rate: float) -> None:
        """Change the gradients once per optimiser step, after backward and after they are unscaled."""
        if self.method != "subgradient":
            return
        for gamma, size in _scale_factors(module):
            if gamma.requires_grad:
                pull = self.strength * _direction(gamma, size)
                gamma.grad = pull if gamma.grad is None else gamma.grad.add_(pull)

    @torch.no_grad()
    def after_step(self, module: nn.Module, learning_rate: float) -> None:
        """Change the weights once per optimiser step, after it; `learning_rate` is the one that the step used."""
        if self.method != "proximal":
            return
        for gamma, size in _scale_factors(module):
            if gamma.requires_grad:
                # Soft thresholding is the proximal operator of the L1 norm, and of a sum of norms of pairs.
                gamma.sub_(_direction(gamma, size) * size.clamp(max=learning_rate * self.strength))

    @torch.no_grad()
    def penalty(self, module: nn.Module) -> Tensor:
        """Compute the term of Eq. 4, strength * sum |gamma|, as a scalar without gradient, for the log."""
        return self.strength * torch.cat([_size_of(gammas) for gammas in _gamma_groups(module)]).sum()

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {"strength": self.strength, "method": self.method}


def absolute_gammas(module: nn.Module) -> dict[str, Tensor]:
    """Return |gamma| `[C]` of each prunable batch norm, by name of the convolution before it; detached copies."""
    graph = trace_channels(module)
    return {name: largest_gammas(module, name, graph.norms[name]) for name in graph.prunable}


@torch.no_grad()
def init_gamma(module: nn.Module, value: float = 0.5) -> None:
    """Set the scale factors of all batch norms to `value` (Section 4.3)."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.affine:
            layer.weight.fill_(value)


def _scale_factors(module: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield gamma of each prunable batch norm and its size, [C] each; a pair's is taken before either of both moves."""
    for gammas in _gamma_groups(module):
        size = _size_of(gammas)
        yield from ((gamma, size) for gamma in gammas)


def _size_of(gammas: list[nn.Parameter]) -> Tensor:
    """Return |gamma|, or sqrt(gamma^2 + gamma'^2 + ...) of a convolution with partners, [C]."""
    return reduce(torch.hypot, gammas) if len(gammas) > 1 else gammas[0].abs()


def _direction(gamma: Tensor, size: Tensor) -> Tensor:
    """Return the slope of `size` along gamma, [C]: the sign of a single gamma, and 0 where the size is 0."""
    return torch.where(size > 0, gamma / size, 0.0)


def _gamma_groups(module: nn.Module) -> list[list[nn.Parameter]]:
    """Return gamma of each prunable batch norm, with those of its partners; a module is traced the first time only."""
    if module not in _norm_names:
        partners = {
            f"{name}.norm": [f"{name}.{partner}_norm" for partner in pair.partner_names]
            for name, pair in find_partners(module).items()
        }
        left_out = set().union(*partners.values())
        graph = trace_channels(module)
        found = dict.fromkeys(read.norm for name in graph.prunable for read in graph.norms[name])
        norms = [norm for norm in found if norm not in left_out]
        _norm_names[module] = [(norm, *partners.get(norm, ())) for norm in norms]
    return [[module.get_parameter(f"{norm}.weight") for norm in names] for names in _norm_names[module]]
