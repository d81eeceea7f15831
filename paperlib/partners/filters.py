"""Convolution weights by output channel, whatever the kind of convolution."""

from __future__ import annotations

from torch import Tensor, nn

from paperlib.pairs import Convolution


def to_filters(conv: Convolution, weight: Tensor) -> Tensor:
    """Return a weight of the shape of `conv.weight` with one row for each output channel, [C_out, C_in / groups, k, k].

    The weight of a transposed convolution, [C_in, C_out / groups, k, k], has its output channels on the second axis.
    """
    if not isinstance(conv, nn.ConvTranspose2d):
        return weight
    return weight.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)


def from_filters(conv: Convolution, filters: Tensor) -> Tensor:
    """Return the weight of which `to_filters` made these filters."""
    return to_filters(conv, filters)  # the exchange of two axes within each group undoes itself
