"""Model size and multiply-accumulates in the paper's conventions (see the notes on Tables 2-6)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Cost:
    """What a detector costs.

    Attributes:
        parameters: number of learnable values.
        size_mb: 4 bytes x (parameters + BN running statistics) / 10^6: the size of a Darknet weights file.
        gmacs: multiply-accumulates of convolutions and linear layers / 10^9.
        image_size: side of the square image that `gmacs` is for, in pixels.
    """

    parameters: int
    size_mb: float
    gmacs: float
    image_size: int


def cost(detector: nn.Module, image_size: int = 800) -> Cost:
    """Count parameters and multiply-accumulates of one `[1, 3, image_size, image_size]` pass.

    A detector whose work depends on what it sees states a pass to be counted in a method that its `counted_method`
    names; otherwise it is the one that its `traced_method` names, or `forward`.

    Counted on the meta device: nothing is computed, so the largest detector takes milliseconds.
    """
    parameters = sum(p.numel() for p in detector.parameters())
    norms = (m for m in detector.modules() if isinstance(m, nn.BatchNorm2d))
    statistics = sum(2 * norm.num_features for norm in norms)
    ghost = copy.deepcopy(detector).to("meta").eval()
    macs = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal macs
        # A transposed convolution spends a kernel on each input position, an ordinary one on each output position.
        places = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        channels = 1 if isinstance(module, CONVOLUTIONS) else -1
        macs += module.weight.numel() * (places.numel() // places.shape[channels])

    for module in ghost.modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        method = getattr(ghost, "counted_method", None) or getattr(ghost, "traced_method", "forward")
        getattr(ghost, method)(torch.zeros(1, 3, image_size, image_size, device="meta"))
    return Cost(parameters, 4 * (parameters + statistics) / 1e6, macs / 1e9, image_size)
