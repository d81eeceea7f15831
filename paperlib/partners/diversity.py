"""Diversity: how alike a convolution and its partner are, as a loss that keeps them different (BPL).

The paper's formula is not public. The loss of its public code is smallest, 0, where every partner is a negative
multiple of its original: such a pair cancels and emits a constant. The default here, `orthogonal`, is smallest where
the two are orthogonal, and largest for equal and for opposite ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from os.path import commonprefix
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.pairs import TWIN, PartneredConv, find_partners
from paperlib.partners.filters import to_filters

Kind = Literal["orthogonal", "public", "absolute", "output", "none"]
KINDS: tuple[str, ...] = get_args(Kind)


def diversity(module: nn.Module, kind: Kind = "orthogonal") -> Tensor:
    """Return the diversity loss of an extended network, a scalar with gradient; 0 if nothing has a partner.

    Args:
        module: a network that `extend` returned.
        kind: what is compared.
            `orthogonal`: cos^2 of each filter and its partner, averaged over the filters of a pair, then over pairs.
            `absolute`: the same with |cos|.
            `output`: the same with cos^2 of the two feature maps, centred as by their batch norms, on a sample of the
            last training batch. Unlike the kernels' angle it sees how the inputs are correlated.
            `public`: the sum over stages of cos + 1, with one cosine between all kernels of a stage and all their
            partners, as in the public code (which multiplies it by 0.01). Stages are the parts of the network in
            which the names of the pairs first differ, such as `layer1` to `layer4` of a ResNet.
            `none`: 0.

    Raises:
        ValueError: an unknown kind; `output` before a training pass; or partners that have another shape.
    """
    check_kind(kind)
    pairs = find_partners(module)
    if not pairs or kind == "none":
        return next(module.parameters(), torch.zeros(())).new_zeros(())
    if name := next((name for name, pair in pairs.items() if pair.partner_names != (TWIN,)), None):
        raise ValueError(f"the partners of {name} are not of its shape, which diversity {kind!r} compares; choose none")
    if kind == "public":
        return torch.stack([_stage_cosine(stage) + 1 for stage in _stages(pairs)]).sum()
    if kind == "output":
        return torch.stack([_output_cosines(name, pair).square().mean() for name, pair in pairs.items()]).mean()
    cosines = [filter_cosines(pair) for pair in pairs.values()]
    alike = [cosine.square() if kind == "orthogonal" else cosine.abs() for cosine in cosines]
    return torch.stack([values.mean() for values in alike]).mean()


def check_kind(kind: str) -> None:
    """Raise ValueError unless `kind` is one of `KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"diversity {kind!r} is not known; choose one of: {', '.join(KINDS)}")


def filter_cosines(pair: PartneredConv) -> Tensor:
    """Return the cosine between each filter and its partner, [C_out]; 0 where one of the two is 0."""
    return F.cosine_similarity(*_flat_filters(pair), dim=1)


def _flat_filters(pair: PartneredConv) -> tuple[Tensor, Tensor]:
    own = to_filters(pair.conv, pair.conv.weight).flatten(1)
    return own, to_filters(pair.partner, pair.partner.weight).flatten(1)


def _stages(pairs: dict[str, PartneredConv]) -> Iterable[list[PartneredConv]]:
    """Group pairs by the first part of their names that is not common to all of them."""
    paths = [name.split(".") for name in pairs]
    depth = len(commonprefix(paths)) + 1  # on lists it compares their elements
    stages: dict[tuple[str, ...], list[PartneredConv]] = {}
    for path, pair in zip(paths, pairs.values(), strict=True):
        stages.setdefault(tuple(path[:depth]), []).append(pair)
    return stages.values()


def _stage_cosine(pairs: list[PartneredConv]) -> Tensor:
    own = torch.cat([pair.conv.weight.flatten() for pair in pairs])
    return F.cosine_similarity(own, torch.cat([pair.partner.weight.flatten() for pair in pairs]), dim=0)


def _output_cosines(name: str, pair: PartneredConv) -> Tensor:
    """Return the correlation of the two feature maps of each output channel, [C_out]."""
    sample = pair.sample
    # A sample from before the network was pruned no longer fits.
    if sample is None or sample.shape[1] != pair.conv.in_channels:
        raise ValueError(f"{name} has seen no training batch yet, and diversity 'output' compares feature maps")
    sample = sample.to(pair.conv.weight.dtype)
    maps = [layer(sample).transpose(0, 1).flatten(1) for layer in (pair.conv, pair.partner)]
    return F.cosine_similarity(*(rows - rows.mean(1, keepdim=True) for rows in maps), dim=1)
