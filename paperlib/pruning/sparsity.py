"""Sparse training: the L1 term on batch norm's scale factors (Section 3.1, Eq. 4)."""

from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paperlib.pruning.channel_graph import trace_channels

Method = Literal["subgradient", "proximal"]

_norms: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()


class Sparsity:
    """The regulariser of Eq. 4: `strength` * sum |gamma| over the prunable batch norms.

    `subgradient`, the paper's way, adds strength * sign(gamma) to gamma's gradient. Adam then divides by the
    gradient's own size: a channel without task gradient moves by about the learning rate a step whatever the
    strength is, and never comes to rest at zero. `proximal` shrinks gamma after the step by learning rate *
    strength, and leaves exact zeros.

    Args:
        strength: lambda of Eq. 4, at least 0.
        method: `subgradient` or `proximal`.

    Raises:
        ValueError: a negative strength or an unknown method.
    """

    def __init__(self, strength: float, method: Method = "subgradient") -> None:
        if not strength >= 0:
            raise ValueError(f"sparsity strength {strength} is not at least 0")
        if method not in get_args(Method):
            raise ValueError(f"sparsity method {method!r} is not known; choose one of: {', '.join(get_args(Method))}")
        self.strength = float(strength)
        self.method = method

    @torch.no_grad()
    def before_step(self, module: nn.Module, learning_rate: float) -> None:
        """Once per optimiser step, after backward and after gradients are unscaled."""
        if self.method != "subgradient":
            return
        for gamma in _gamma_parameters(module).values():
            if gamma.requires_grad:
                pull = self.strength * gamma.sign()
                gamma.grad = pull if gamma.grad is None else gamma.grad.add_(pull)

    @torch.no_grad()
    def after_step(self, module: nn.Module, learning_rate: float) -> None:
        """Once per optimiser step, after it; `learning_rate` is the one that the step used."""
        if self.method != "proximal":
            return
        for gamma in _gamma_parameters(module).values():
            if gamma.requires_grad:
                gamma.copy_(F.softshrink(gamma, learning_rate * self.strength))

    @torch.no_grad()
    def penalty(self, module: nn.Module) -> Tensor:
        """The term itself, strength * sum |gamma|, as a scalar without gradient: for the log."""
        return self.strength * torch.cat([gamma.abs() for gamma in _gamma_parameters(module).values()]).sum()

    def describe(self) -> dict[str, Any]:
        """The settings as plain data."""
        return {"strength": self.strength, "method": self.method}


def absolute_gammas(module: nn.Module) -> dict[str, Tensor]:
    """|gamma| of each prunable batch norm, by name of the convolution before it; detached copies."""
    return {name: gamma.detach().abs() for name, gamma in _gamma_parameters(module).items()}


@torch.no_grad()
def init_gamma(module: nn.Module, value: float = 0.5) -> None:
    """Start the scale factors of all batch norms at `value` (Section 4.3)."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.affine:
            layer.weight.fill_(value)


def _gamma_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Gamma of each prunable batch norm; the module is traced the first time only.

    Only names are remembered: they outlive parameters that are replaced, and keep no network alive.
    """
    if module not in _norms:
        _norms[module] = trace_channels(module).prunable
    return {name: module.get_submodule(norm).weight for name, norm in _norms[module].items()}
