"""Sparse training: the L1 term on batch norm's scale factors (Section 3.1, Eq. 4)."""

from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paperlib.pruning.channel_graph import trace_channels

Method = Literal["subgradient", "proximal"]

# Only names are remembered: they stay valid if parameters are replaced, and they keep no network alive.
_norm_names: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()


class Sparsity:
    """The regulariser of Eq. 4: `strength` * sum |gamma| over the prunable batch norms.

    `subgradient`, the paper's way, adds strength * sign(gamma) to gamma's gradient. Adam then divides by the
    gradient's own size: a channel without task gradient moves by about the learning rate in each step, whatever the
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
        for gamma in _gamma_parameters(module):
            if gamma.requires_grad:
                pull = self.strength * gamma.sign()
                gamma.grad = pull if gamma.grad is None else gamma.grad.add_(pull)

    @torch.no_grad()
    def after_step(self, module: nn.Module, learning_rate: float) -> None:
        """Change the weights once per optimiser step, after it; `learning_rate` is the one that the step used."""
        if self.method != "proximal":
            return
        for gamma in _gamma_parameters(module):
            if gamma.requires_grad:
                # Soft thresholding is the proximal operator of the L1 norm.
                gamma.copy_(F.softshrink(gamma, learning_rate * self.strength))

    @torch.no_grad()
    def penalty(self, module: nn.Module) -> Tensor:
        """Compute the term of Eq. 4, strength * sum |gamma|, as a scalar without gradient, for the log."""
        return self.strength * torch.cat([gamma.abs() for gamma in _gamma_parameters(module)]).sum()

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {"strength": self.strength, "method": self.method}


def absolute_gammas(module: nn.Module) -> dict[str, Tensor]:
    """Return |gamma| `[C]` of each prunable batch norm, by name of the convolution before it; detached copies."""
    prunable = trace_channels(module).prunable
    return {name: module.get_parameter(f"{norm}.weight").detach().abs() for name, norm in prunable.items()}


@torch.no_grad()
def init_gamma(module: nn.Module, value: float = 0.5) -> None:
    """Set the scale factors of all batch norms to `value` (Section 4.3)."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.affine:
            layer.weight.fill_(value)


def _gamma_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return gamma of each prunable batch norm; the module is traced the first time only."""
    if module not in _norm_names:
        _norm_names[module] = list(trace_channels(module).prunable.values())
    return [module.get_parameter(f"{norm}.weight") for norm in _norm_names[module]]
