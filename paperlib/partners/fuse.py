"""Fusion: each convolution and its partners become one convolution again, exactly (BPL).

With a = gamma / sqrt(var + eps) and b = gamma' / sqrt(var' + eps) per output channel, the pair computes the
convolution with W_f = a W + b P, plus the bias beta + beta' - a mean - b mean'. Kernels of other shapes (ACNet) are
padded with zeros to that of W, and more partners add more terms.
"""

from __future__ import annotations

import copy
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from paperlib.pairs import AbsorbedNorm, Convolution, PartneredConv, centre_kernels, find_partners
from paperlib.partners.filters import from_filters, to_filters

CANCELLED = 1e-14
"""A fused filter whose norm is below this share of its two terms' is rounding error, and counts as 0."""


@torch.no_grad()
def fuse(module: nn.Module, *, norms: bool = True) -> nn.Module:
    """Return a copy of an extended network without partners, which computes the same in evaluation mode.

    The arithmetic is done in float64.

    Args:
        module: a network that `extend` returned, trained or pruned since then; untouched.
        norms: leave each fused convolution a batch norm, so that the network has the class, the names and the cost
            that it had before it was extended, and can be saved, trained and pruned again. The scale factor is
            sqrt(gamma^2 + gamma'^2), the deviation of the sum of uncorrelated outputs, reduced in proportion where
            the kernels cancel each other; a pair with gamma' = 0 gets |gamma|. Otherwise the convolution has a
            bias and no batch norm: the fastest form, for export, which can be neither saved nor pruned.

    Raises:
        ValueError: the network was never extended, is only a part of the one that was, or is in half precision.
    """
    pairs = find_partners(module)
    if not pairs:
        raise ValueError(f"{type(module).__name__} has no partners to fuse; it was never extended")
    fused = copy.deepcopy(module)
    for name, pair in pairs.items():
        # Half precision has three decimal digits: what is fused in it would no longer equal the pair.
        dtype = pair.conv.weight.dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {dtype}; fuse a network in float32 or float64")
        if not _has_stand_in(module, pair.norm_name):
            raise ValueError(f"{name}: its batch norm {pair.norm_name} is missing; fuse the network that was extended")
        conv, norm = _Fold(pair).with_norm() if norms else _Fold(pair).with_bias()
        fused.set_submodule(name, conv, strict=True)
        fused.set_submodule(pair.norm_name, norm, strict=True)
    return fused


@torch.no_grad()
def lost_energy(pair: PartneredConv) -> float:
    """Return 1 - ||a W + b P||^2 / (||a W||^2 + ||b P||^2): the share of the kernels that cancels in fusion.

    It is 0 for orthogonal partners, 1 for opposite ones, and negative where they support each other: -1 at least for a
    pair, 1 - n for n convolutions.
    """
    fold = _Fold(pair)
    return 1 - float(_squares(fold.filters).sum() / fold.energy.sum())


def _has_stand_in(module: nn.Module, name: str) -> bool:
    return isinstance(dict(module.named_modules()).get(name), nn.Identity)


class _Fold:
    """The sum of a pair as one convolution, in float64.

    Attributes:
        filters: W_f, one filter for each output channel, [C_out, C_in / groups, k, k].
        energy: ||a W||^2 + ||b P||^2, [C_out]; ||W_f||^2 is less where they cancel each other.
        shift: what the means and the bias of the convolution contribute, [C_out]: a mean + b mean' - a bias.
        beta: beta + beta', [C_out].
    """

    def __init__(self, pair: PartneredConv) -> None:
        self.pair = pair
        scales = [_scale(norm) for _, norm in pair.branches()]
        kernels = [centre_kernels(_kernels(conv), pair.conv.kernel_size) for conv, _ in pair.branches()]
        terms = [_columns(scale) * kernel for scale, kernel in zip(scales, kernels, strict=True)]
        means = [_exact(_running(norm)[0]) for _, norm in pair.branches()]
        self.filters = _add(terms)
        self.energy = _add([_squares(term) for term in terms])
        # Partners have no bias.
        self.bias = _exact(pair.conv.bias) if pair.conv.bias is not None else torch.zeros_like(means[0])
        means[0] = means[0] - self.bias
        self.shift = _add([scale * mean for scale, mean in zip(scales, means, strict=True)])
        self.beta = _add([_exact(norm.bias) for _, norm in pair.branches()])

    def with_bias(self) -> tuple[Convolution, nn.Module]:
        """Return the convolution with a bias, and a stand-in for the place of its batch norm."""
        conv = copy.deepcopy(self.pair.conv)
        if conv.bias is None:
            conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels), conv.weight.requires_grad)
        conv.weight.copy_(from_filters(conv, self.filters))
        conv.bias.copy_(self.beta - self.shift)
        return conv, AbsorbedNorm().train(conv.training)

    def with_norm(self) -> tuple[Convolution, nn.BatchNorm2d]:
        """Return the convolution and a batch norm whose gamma is the scale of the fused output.

        The running mean is the mean of the new convolution's output, which follows from those of the pair; so the
        network is in the right place also when training goes on. Channels that emit a constant keep their kernel,
        from which they can recover, with gamma 0.
        """
        conv, norm = copy.deepcopy(self.pair.conv), copy.deepcopy(self.pair.norm)
        gamma, alive = self._gamma()
        divisor = torch.where(alive, gamma, 1.0)
        filters = torch.where(_columns(alive), self.filters / _columns(divisor), _kernels(conv))
        conv.weight.copy_(from_filters(conv, filters))
        norm.weight.copy_(gamma)
        norm.bias.copy_(torch.where(alive, self.beta, self.beta - self.shift))
        mean, variance = _running(norm)
        mean.copy_(torch.where(alive, self.bias + self.shift / divisor, _exact(mean)))
        variance.copy_(torch.where(alive, 1 - norm.eps, _exact(variance)))
        return conv, norm

    def _gamma(self) -> tuple[Tensor, Tensor]:
        """Return the scale factor of each channel, and whether the channel emits more than a constant."""
        # If gamma' = 0, both sums run over the same values: their quotient is exactly 1, and gamma stays as it was.
        remaining = _squares(self.filters) / torch.where(self.energy > 0, self.energy, 1.0)
        alive = remaining > CANCELLED**2
        size = reduce(torch.hypot, [_exact(norm.weight) for _, norm in self.pair.branches()])
        return torch.where(alive, size * remaining.sqrt(), 0.0), alive


def _add(terms: list[Tensor]) -> Tensor:
    return cast(Tensor, sum(terms[1:], start=terms[0]))


def _scale(norm: nn.BatchNorm2d) -> Tensor:
    """Return gamma / sqrt(var + eps), [C]."""
    return _exact(norm.weight) / (_exact(_running(norm)[1]) + norm.eps).sqrt()


def _kernels(conv: Convolution) -> Tensor:
    return to_filters(conv, _exact(conv.weight))


def _squares(filters: Tensor) -> Tensor:
    """Return the sum of squares of each filter, [C_out]."""
    return filters.square().sum((1, 2, 3))


def _columns(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _running(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return running mean and variance, [C] each; `extend` takes no batch norm without them."""
    return norm.get_buffer("running_mean"), norm.get_buffer("running_var")


def _exact(values: Tensor) -> Tensor:
    """Return the values in float64 on the CPU: some accelerators have no float64."""
    return values.detach().cpu().double()
