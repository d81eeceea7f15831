"""Model size and multiply-accumulates in the paper's conventions (see the notes on Tables 2-6)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from paperlib.structure import shallow_copy

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_SHAPELESS = (nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU, nn.Mish, nn.SiLU, nn.Hardswish)


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
    """Count parameters and multiply-accumulates of one `[1, C, image_size, image_size]` pass.

    A detector whose work depends on what it sees states a pass to be counted in a method that its `counted_method`
    names; otherwise it is the one that its `traced_method` names, or `forward`.

    Raises:
        ValueError: the network cannot take an image of that size.
    """
    places = kernel_positions(detector, image_size)
    macs = sum(detector.get_submodule(name).weight.numel() * count for name, count in places.items())
    norms = (m for m in detector.modules() if isinstance(m, nn.BatchNorm2d))
    statistics = sum(2 * norm.num_features for norm in norms)
    return make_cost(sum(p.numel() for p in detector.parameters()), statistics, macs, image_size)


def make_cost(parameters: int, statistics: int, macs: int, image_size: int) -> Cost:
    """Counts of learnable values, running statistics and multiply-accumulates in the paper's units."""
    return Cost(parameters, 4 * (parameters + statistics) / 1e6, macs / 1e9, image_size)


def kernel_positions(detector: nn.Module, image_size: int) -> dict[str, int]:
    """How often each convolution and linear layer uses each of its weights in one pass, by name.

    Counted on the meta device: nothing is computed, so the largest detector takes milliseconds. Images have as many
    channels as the first convolution reads.

    Raises:
        ValueError: the network cannot take an image of that size.
    """
    # What the memo of a deep copy names is taken for copied already: weights stay where they are, and layers that
    # change no shape, which are slow on the meta device, drop out.
    nothing, ghosts = nn.Identity(), {}
    for module in detector.modules():
        if isinstance(module, _SHAPELESS):
            ghosts[id(module)] = nothing
        elif isinstance(module, (*CONVOLUTIONS, nn.Linear)) and not module._modules:
            ghosts[id(module)] = _ghost_layer(module)
        else:
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            ghosts |= {id(tensor): _ghost(tensor) for tensor in own}
    ghost = copy.deepcopy(detector, ghosts).eval()
    places: dict[str, int] = {}

    def count(name: str, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        # A transposed convolution spends a kernel on each input position, an ordinary one on each output position.
        at = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        channels = 1 if isinstance(module, CONVOLUTIONS) else -1
        places[name] = places.get(name, 0) + at.numel() // at.shape[channels]

    for name, module in ghost.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            module.register_forward_hook(partial(count, name))
    first = next((m for m in ghost.modules() if isinstance(m, nn.Conv2d)), None)
    shape = (1, first.in_channels if first else 3, image_size, image_size)
    dtype = first.weight.dtype if first else None
    method = getattr(ghost, "counted_method", None) or getattr(ghost, "traced_method", "forward")
    try:
        with torch.no_grad():
            getattr(ghost, method)(torch.zeros(shape, dtype=dtype, device="meta"))
    except RuntimeError as error:
        fault = str(error).splitlines()[0]
        raise ValueError(f"image_size {image_size}: {type(detector).__name__} cannot take it ({fault})") from error
    return places


def _ghost_layer(layer: nn.Module) -> nn.Module:
    ghost = shallow_copy(layer)
    for own in (ghost._parameters, ghost._buffers):
        own.update({name: _ghost(tensor) for name, tensor in own.items() if tensor is not None})
    return ghost


def _ghost(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
