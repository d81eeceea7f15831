"""Training with partners: how it starts, the regulariser that it needs, and what it leaves behind (BPL)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, distributed, nn

from paperlib.pairs import TWIN, find_partners
from paperlib.partners.diversity import Kind, check_kind, diversity, filter_cosines
from paperlib.partners.extend import PartnerShape, check_copy_noise, check_shape, extend
from paperlib.partners.fuse import fuse, lost_energy
from paperlib.pruning.sparsity import Sparsity

COSINE, LOST_ENERGY = "cosine ", "lost energy "
"""How the columns of a training's history begin that `Partnership.epoch_values` fills, one for each pair."""


class Partnership:
    """The regulariser strength * `diversity` for `fit`, on a network that `extend` returned.

    Every training of an extended network needs one, with kind `none` if no loss is wanted: it fuses what is saved.
    Its gradient is added after gradients are unscaled, so that it has the same size at every precision.

    Args:
        strength: weight of the diversity loss, at least 0; 0.01 in the public code.
        kind: a kind of `diversity`.
        preserve: how `Workbench` starts such a training; see `extend`.
        sparsity: the term of Eq. 4, for a network that will be pruned afterwards. It counts the scale factors of a
            convolution and its partners as one; the sum of their absolute values would drive gamma' to 0.
        shape: what partners `Workbench` gives; see `extend`. Those of another shape than their originals have no
            diversity loss: they need kind `none`.
        copy_noise: how `Workbench` starts such a training, instead of `preserve`; see `extend`.

    Raises:
        ValueError: a negative strength, an unknown kind or shape, a kind that this shape does not have, or noise as
            `extend` refuses it.
    """

    def __init__(
        self, strength: float = 0.01, kind: Kind = "orthogonal", *, preserve: bool = True,
        sparsity: Sparsity | None = None, shape: PartnerShape = "twin", copy_noise: float | None = None,
    ) -> None:  # fmt: skip
        if not strength >= 0:
            raise ValueError(f"diversity strength {strength} must be >= 0")
        check_kind(kind)
        check_shape(shape)
        check_copy_noise(copy_noise, preserve, shape)
        if shape != "twin" and kind != "none":
            raise ValueError(f"diversity {kind!r} compares kernels of one shape; {shape} partners need kind 'none'")
        self.strength = float(strength)
        self.kind: Kind = kind
        self.preserve = preserve
        self.sparsity = sparsity
        self.shape: PartnerShape = shape
        self.copy_noise = copy_noise

    def with_term(self, term: object | None) -> Partnership:
        """Return the same with this term of Eq. 4; None: with its own, if it has one.

        Raises:
            ValueError: it is a regulariser of another kind.
        """
        if term is None:
            return self
        if not isinstance(term, Sparsity):
            raise ValueError(f"{type(term).__name__}: a training with partners takes no other regulariser than Eq. 4's")
        changed = copy.copy(self)
        changed.sparsity = term
        return changed

    def extend(self, module: nn.Module, seed: int) -> nn.Module:
        """Return `module` with partners, as a training with this seed starts; see `extend`."""
        return extend(module, preserve=self.preserve, seed=seed, shape=self.shape, copy_noise=self.copy_noise)

    def before_step(self, module: nn.Module, learning_rate: float) -> None:
        """Add the gradients of the loss and of Eq. 4's term, once per optimiser step, after unscaling.

        Raises:
            ValueError: nothing in `module` has a partner, or `output` is used by several processes.
        """
        pairs = find_partners(module).values()
        if not pairs:
            raise ValueError(f"{type(module).__name__} has no partners; extend it before training with Partnership")
        # Each process keeps a sample of its own batch, and from unequal gradients their weights would drift apart.
        if self.kind == "output" and distributed.is_available() and distributed.is_initialized():
            raise ValueError("diversity 'output' works in one process only; choose another kind")
        if self.sparsity:
            self.sparsity.before_step(module, learning_rate)
        kernels = [conv.weight for pair in pairs for conv, _ in pair.branches() if conv.weight.requires_grad]
        if self.strength == 0 or self.kind == "none" or not kernels:
            return
        with torch.enable_grad():
            loss = self.strength * diversity(module, self.kind)
        for kernel, slope in zip(kernels, torch.autograd.grad(loss, kernels), strict=True):
            kernel.grad = slope if kernel.grad is None else kernel.grad.add_(slope)

    def after_step(self, module: nn.Module, learning_rate: float) -> None:
        """Take the proximal step of Eq. 4's term, if there is one; the diversity loss acts through gradients alone."""
        if self.sparsity:
            self.sparsity.after_step(module, learning_rate)

    def convert_for_saving(self, module: nn.Module) -> nn.Module:
        """Return the fused network, which `fit` writes to its files; `module` goes on with its partners."""
        return fuse(module)

    @torch.no_grad()
    def penalty(self, module: nn.Module) -> Tensor:
        """Return strength * diversity, plus Eq. 4's term, as a scalar without gradient."""
        loss = self.strength * diversity(module, self.kind)
        return loss + self.sparsity.penalty(module) if self.sparsity else loss

    @torch.no_grad()
    def epoch_values(self, module: nn.Module) -> dict[str, float]:
        """Return, by name of each pair, the mean cosine of its filters and the share of their energy lost in fusion.

        There is a cosine only for partners of the same shape.
        """
        values: dict[str, float] = {}
        for name, pair in find_partners(module).items():
            if pair.partner_names == (TWIN,):
                values[f"{COSINE}{name}"] = float(filter_cosines(pair).mean())
            values[f"{LOST_ENERGY}{name}"] = lost_energy(pair)
        return values

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        sparsity = self.sparsity.describe() if self.sparsity else None
        start: dict[str, Any] = {"preserve": self.preserve, "shape": self.shape}
        if self.copy_noise is not None:
            start["copy_noise"] = self.copy_noise
        return {"strength": self.strength, "kind": self.kind, **start, "sparsity": sparsity}
