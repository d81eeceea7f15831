"""The multiply-accumulates of a pruned ResNet as BPL's paper counts them, from which its 73.97 % follow exactly."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import cast

from torch import nn

from paperlib.costs import kernel_positions


def count_resnet_macs(
    resnet: nn.Module, keep: Fraction, *, image_size: int = 256, third_inputs: bool = True, norms: bool = False
) -> int:
    """Count the multiply-accumulates of a ResNet of which every layer keeps the same ratio of its filters.

    A layer of n filters loses floor(n (1 - keep)); the projections of the residual stream and the classifier lose none.
    The stream stays whole, except where the stem feeds it and where the classifier reads it.

    Args:
        resnet: an unpruned ResNet with torchvision's names; also one without weights.
        keep: ratio of filters to keep, in (0, 1]; as a fraction, because 512 filters times 0.7 in floating point may
            be less than the whole number that it stands for.
        image_size: side of the image in pixels.
        third_inputs: whether the last convolution of a block also loses the inputs that the second no longer gives, as
            `apply_plan` does; in the public code it reads them all.
        norms: add two for each element that a batch norm gives, as the tool `thop` does, without the second batch norm
            of a block, which is fused by then: the convention by which the published 73.97 % come out.

    Raises:
        ValueError: the ratio is out of its range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep {keep} is not in (0, 1]")
    total = 0
    for name, positions in kernel_positions(resnet, image_size).items():
        layer = cast(nn.Conv2d | nn.Linear, resnet.get_submodule(name))
        outputs, inputs, *kernel = layer.weight.shape
        last = name.split(".")[-1]
        if last.startswith("conv"):
            outputs = _kept_filters(outputs, keep)
        reads_pruned = name in ("layer1.0.conv1", "layer1.0.downsample.0", "fc") or last == "conv2"
        if reads_pruned or (last == "conv3" and third_inputs):
            inputs = _kept_filters(inputs, keep)
        total += positions * outputs * inputs * math.prod(kernel)
        if norms and last not in ("conv2", "fc"):
            total += 2 * positions * outputs
    return total


def _kept_filters(count: int, keep: Fraction) -> int:
    return count - math.floor(count * (1 - keep))
