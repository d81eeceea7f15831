"""A convolution and its partner (BPL): the module that `extend` puts into a network and `fuse` takes out again.

Knows only torch. Pruning and file formats must recognise such a pair, so it is not part of `paperlib.partners`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Convolution = nn.Conv2d | nn.ConvTranspose2d
TWIN = "partner"
"""Name of the partner that has the shape of its original; partners of other shapes have other names."""
SAMPLE_IMAGES, SAMPLE_SIDE = 8, 32


class PartneredConv(nn.Module):
    """A convolution and its partners on one input, each with its batch norm, and the sum of their outputs.

    It replaces the convolution; the place of the batch norm, `norm_name`, holds an `nn.Identity` meanwhile.

    Args:
        conv, norm: the convolution and its batch norm, as the network had them.
        partners: name -> another convolution, without a bias, and its own batch norm. Its kernel is centred on that of
            `conv` and no larger. A single one of the same shape is called `TWIN`.
        norm_name: name of the batch norm in the network that was extended.

    Attributes:
        partner, partner_norm: the twin, where there is one.
        partner_names: names of the partners; the batch norm of each is called `<name>_norm`.
        sample: a small part of the last training batch that came in, [b, C, h, w]; for `diversity(..., "output")`.
    """

    partner: Convolution
    partner_norm: nn.BatchNorm2d

    def __init__(
        self, conv: Convolution, norm: nn.BatchNorm2d, partners: Mapping[str, tuple[Convolution, nn.BatchNorm2d]],
        norm_name: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv, self.norm = conv, norm
        for name, (partner, partner_norm) in partners.items():
            self.add_module(name, partner)
            self.add_module(f"{name}_norm", partner_norm)
        self.partner_names = tuple(partners)
        self.norm_name = norm_name
        self.sample: Tensor | None = None
        self.training = conv.training

    def branches(self) -> list[tuple[Convolution, nn.BatchNorm2d]]:
        """Return each convolution with its batch norm, the original first."""
        partners = [(getattr(self, name), getattr(self, f"{name}_norm")) for name in self.partner_names]
        return [(self.conv, self.norm), *partners]

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to the sum of all normalised outputs, [B, C_out, H', W']."""
        # A tracer of torch.fx hands over a stand-in that is no tensor.
        if self.training and torch.is_grad_enabled() and isinstance(x, Tensor):
            self.sample = x[:SAMPLE_IMAGES, :, :SAMPLE_SIDE, :SAMPLE_SIDE].detach().clone()
        total = self.norm(self.conv(x))
        for partner, partner_norm in self.branches()[1:]:
            total = total + partner_norm(partner(x))
        return total


def centre_kernels(filters: Tensor, kernel_size: tuple[int, ...]) -> Tensor:
    """Pad kernels [..., h, w] with zeros on all sides to `kernel_size`, from which they differ by even numbers."""
    rows, columns = ((full - side) // 2 for full, side in zip(kernel_size, filters.shape[-2:], strict=True))
    return F.pad(filters, (columns, columns, rows, rows))


def find_partners(module: nn.Module) -> dict[str, PartneredConv]:
    """Return the convolutions of `module` that have a partner, by name, in the order of `named_modules()`."""
    return {name: each for name, each in module.named_modules() if isinstance(each, PartneredConv)}


def partner_layers(module: nn.Module) -> set[str]:
    """Return the names of the layers that fusion takes out of `module`: each partner and its batch norm."""
    partners = [f"{name}.{partner}" for name, pair in find_partners(module).items() for partner in pair.partner_names]
    return {name for partner in partners for name in (partner, f"{partner}_norm")}


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
