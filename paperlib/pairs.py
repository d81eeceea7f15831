"""A convolution and its partner (BPL): the module that `extend` puts into a network and `fuse` takes out again.

Knows only torch. Pruning and file formats must recognise such a pair, so it is not part of `paperlib.partners`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Convolution = nn.Conv2d | nn.ConvTranspose2d
SAMPLE_IMAGES, SAMPLE_SIDE = 8, 32


class PartneredConv(nn.Module):
    """Two convolutions of the same shape on one input, each with its batch norm, and the sum of their outputs.

    It replaces the convolution; the place of the batch norm, `norm_name`, holds an `nn.Identity` meanwhile.

    Args:
        conv, norm: the convolution and its batch norm, as the network had them.
        partner, partner_norm: the second convolution, without a bias, and its own batch norm.
        norm_name: name of the batch norm in the network that was extended.

    Attributes:
        sample: a small part of the last training batch that came in, [b, C, h, w]; for `diversity(..., "output")`.
    """

    def __init__(
        self, conv: Convolution, norm: nn.BatchNorm2d, partner: Convolution, partner_norm: nn.BatchNorm2d,
        norm_name: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv, self.norm = conv, norm
        self.partner, self.partner_norm = partner, partner_norm
        self.norm_name = norm_name
        self.sample: Tensor | None = None
        self.training = conv.training

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to the sum of both normalised outputs, [B, C_out, H', W']."""
        # A tracer of torch.fx hands over a stand-in that is no tensor.
        if self.training and torch.is_grad_enabled() and isinstance(x, Tensor):
            self.sample = x[:SAMPLE_IMAGES, :, :SAMPLE_SIDE, :SAMPLE_SIDE].detach().clone()
        return self.norm(self.conv(x)) + self.partner_norm(self.partner(x))


def find_partners(module: nn.Module) -> dict[str, PartneredConv]:
    """Return the convolutions of `module` that have a partner, by name, in the order of `named_modules()`."""
    return {name: each for name, each in module.named_modules() if isinstance(each, PartneredConv)}


def partner_layers(module: nn.Module) -> set[str]:
    """Return the names of the layers that fusion takes out of `module`: each partner and its batch norm."""
    return {f"{name}.{layer}" for name in find_partners(module) for layer in ("partner", "partner_norm")}


class AbsorbedNorm(nn.Identity):
    """The place of a batch norm that was fused into its convolution: see `fuse(..., norms=False)`."""


def require_fused(module: nn.Module) -> None:
    """Raise ValueError if a convolution of `module` has a partner: partners are for training alone."""
    if name := next(iter(find_partners(module)), None):
        raise ValueError(f"{name} still has a partner, which only training can use; fuse it first: pl.fuse(detector)")


def require_saveable(module: nn.Module) -> None:
    """Raise ValueError if `module` could not be rebuilt from a file: it has partners, or batch norms are missing."""
    require_fused(module)
    if name := next((name for name, each in module.named_modules() if isinstance(each, AbsorbedNorm)), None):
        raise ValueError(f"{name} was fused into its convolution, and no file holds that; save pl.fuse(detector)")
