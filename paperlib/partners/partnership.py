"""The diversity loss as a regulariser of training (BPL)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from paperlib.pairs import find_partners
from paperlib.partners.diversity import Kind, check_kind, diversity
from paperlib.partners.fuse import fuse


class Partnership:
    """The regulariser strength * `diversity` for `fit`, on a network that `extend` returned.

    Every training of an extended network needs one, with kind `none` if no loss is wanted: it fuses what is saved.
    Its gradient is added after gradients are unscaled, so that it has the same size at every precision. Eq. 4's L1
    term opposes it, because it drives gamma' to 0: use one of the two at a time.

    Args:
        strength: weight of the diversity loss, at least 0; 0.01 in the public code.
        kind: a kind of `diversity`.

    Raises:
        ValueError: a negative strength or an unknown kind.
    """

    def __init__(self, strength: float = 0.01, kind: Kind = "orthogonal") -> None:
        if not strength >= 0:
            raise ValueError(f"diversity strength {strength} must be >= 0")
        check_kind(kind)
        self.strength = float(strength)
        self.kind: Kind = kind

    def before_step(self, module: nn.Module, learning_rate: float) -> None:
        """Add the gradient of the loss to the kernels' gradients, once per optimiser step, after unscaling.

        Raises:
            ValueError: nothing in `module` has a partner, or `output` is used by several processes.
        """
        pairs = find_partners(module).values()
        if not pairs:
            raise ValueError(f"{type(module).__name__} has no partners; extend it before training with Partnership")
        # Each process keeps a sample of its own batch, and from unequal gradients their weights would drift apart.
        if self.kind == "output" and distributed.is_available() and distributed.is_initialized():
            raise ValueError("diversity 'output' works in one process only; choose another kind")
        kernels = [conv.weight for pair in pairs for conv in (pair.conv, pair.partner) if conv.weight.requires_grad]
        if self.strength == 0 or self.kind == "none" or not kernels:
            return
        with torch.enable_grad():
            loss = self.strength * diversity(module, self.kind)
        for kernel, slope in zip(kernels, torch.autograd.grad(loss, kernels), strict=True):
            kernel.grad = slope if kernel.grad is None else kernel.grad.add_(slope)

    def after_step(self, module: nn.Module, learning_rate: float) -> None:
        """Do nothing: the loss acts through gradients alone."""

    def convert_for_saving(self, module: nn.Module) -> nn.Module:
        """Return the fused network, which `fit` writes to its files; `module` goes on with its partners."""
        return fuse(module)

    @torch.no_grad()
    def penalty(self, module: nn.Module) -> Tensor:
        """Return the value of the term, strength * diversity, as a scalar without gradient."""
        return self.strength * diversity(module, self.kind)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {"strength": self.strength, "kind": self.kind}
