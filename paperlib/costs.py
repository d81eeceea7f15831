"""Model size and multiply-accumulates in the paper's conventions (see the notes on Tables 2-6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from paperlib.pairs import partner_layers
from paperlib.structure import copy_modules, left_tensors

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SHAPE_KEEPING = (nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU, nn.Mish, nn.SiLU, nn.Hardswish)


@dataclass(frozen=True)
class Cost:
    """The cost of a detector.

    Attributes:
        parameters: number of learnable values.
        size_mb: 4 bytes x (parameters + BN running statistics) / 10^6: the size of a Darknet weights file.
        gmacs: multiply-accumulates of convolutions and linear layers / 10^9.
        image_size: side of the square image for which `gmacs` are counted, in pixels.
    """

    parameters: int
    size_mb: float
    gmacs: float
    image_size: int


def cost(detector: nn.Module, image_size: int = 800, *, example_inputs: Any = None) -> Cost:
    """Count parameters and multiply-accumulates of one `[1, C, image_size, image_size]` pass.

    Partners (BPL) are not counted: fusion leaves nothing of them. For what they add to a pass of training see
    `paperlib.partners.extend.partner_gmacs`.
    If the work of a detector depends on the content of the image, its `counted_method` names a method whose pass is
    counted. Otherwise the pass of the method that its `traced_method` names is counted, or that of `forward`.

    Args:
        detector: any network.
        image_size: side in pixels of the square image.
        example_inputs: a tensor, or a tuple of arguments, for a network that takes anything else than one such image.

    Raises:
        ValueError: the network does not accept that input.
    """
    partners = partner_layers(detector)
    macs = sum(
        count for name, count in layer_macs(detector, image_size, example_inputs).items() if name not in partners
    )
    kept = {name: module for name, module in detector.named_modules() if name not in partners}
    statistics = sum(2 * m.num_features for m in kept.values() if isinstance(m, _BatchNorm))
    own = {id(p): p.numel() for m in kept.values() for p in m.parameters(recurse=False)}
    return make_cost(sum(own.values()), statistics, macs, image_size)


def make_cost(parameters: int, statistics: int, macs: int, image_size: int) -> Cost:
    """Convert counts of learnable values, running statistics and multiply-accumulates to the paper's units."""
    return Cost(parameters, 4 * (parameters + statistics) / 1e6, macs / 1e9, image_size)


def layer_macs(detector: nn.Module, image_size: int, example_inputs: Any = None) -> dict[str, int]:
    """Count the multiply-accumulates of each convolution and linear layer in one pass, by name.

    Raises:
        ValueError: the network does not accept that input.
    """
    positions = kernel_positions(detector, image_size, example_inputs)
    # The weight of a grouped convolution is smaller by the number of groups already.
    return {name: detector.get_parameter(f"{name}.weight").numel() * count for name, count in positions.items()}


def kernel_positions(detector: nn.Module, image_size: int, example_inputs: Any = None) -> dict[str, int]:
    """Count the positions at which each convolution and linear layer applies its kernel in one pass, by name.

    The pass runs on the meta device: nothing is computed, so the largest detector takes milliseconds. Images have as
    many channels as the convolution reads that is executed first. Arguments as for `cost`.

    Raises:
        ValueError: the network does not accept that input.
    """
    if example_inputs is not None:
        inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        return _count_positions(detector, inputs, "example_inputs")
    first = next((m for m in detector.modules() if isinstance(m, nn.Conv2d)), None)
    dtype = first.weight.dtype if first else None
    channels = first.in_channels if first else 3
    image = torch.zeros((1, channels, image_size, image_size), dtype=dtype, device="meta")
    try:
        return _count_positions(detector, (image,), f"image_size {image_size}")
    except _WrongChannelsError as error:
        # The convolution that is registered first is not the one that reads the image.
        image = torch.zeros((1, error.channels, image_size, image_size), dtype=dtype, device="meta")
        return _count_positions(detector, (image,), f"image_size {image_size}")


class _WrongChannelsError(Exception):
    """The first convolution that is executed wants an image of another number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(f"an image of {channels} channels")
        self.channels = channels


def _count_positions(detector: nn.Module, inputs: tuple[Any, ...], described: str) -> dict[str, int]:
    """Run one pass on the meta device and count."""
    meta = _meta_copy(detector)
    positions: dict[str, int] = {}

    def run_layer(
        name: str, layer: Any, forward: Callable[..., Tensor], input: Tensor, *args: Any, **others: Any
    ) -> Tensor:
        if not positions and isinstance(layer, nn.Conv2d):
            check_first(layer, input)
        output = forward(input, *args, **others)
        # A transposed convolution applies its kernel at each input position, an ordinary one at each output position.
        tensor = input if isinstance(layer, _TRANSPOSED) else output
        channel_axis = 1 if isinstance(layer, CONVOLUTIONS) else -1
        positions[name] = positions.get(name, 0) + tensor.numel() // tensor.shape[channel_axis]
        return output

    def check_first(layer: nn.Conv2d, x: Tensor) -> None:
        channels = inputs[0].shape[1] if isinstance(inputs[0], Tensor) and inputs[0].dim() == 4 else 0
        wanted, rest = divmod(channels * layer.in_channels, x.shape[1])
        if channels and not rest and wanted != channels:
            raise _WrongChannelsError(wanted)

    for name, layer in meta.named_modules():
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            # Faster than hooks.
            vars(layer)["forward"] = partial(run_layer, name, layer, layer.forward)
    method = getattr(meta, "counted_method", None) or getattr(meta, "traced_method", "forward")
    try:
        with torch.no_grad():
            getattr(meta, method)(*tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs))
    except _WrongChannelsError:
        raise
    except Exception as error:  # a network of one's own may raise anything
        fault = (str(error).splitlines() or [type(error).__name__])[0]
        what = "them" if described == "example_inputs" else "this image size"
        raise ValueError(f"{described}: {type(detector).__name__} does not accept {what} ({fault})") from error
    return positions


def _meta_copy(detector: nn.Module) -> nn.Module:
    """Copy a detector to the meta device, in evaluation mode, without the layers that change no shape."""
    memo: dict[int, Any] = {}
    parts: list[nn.Module] = []
    for module in detector.modules():
        # Layers that keep the shape are slow on the meta device.
        if isinstance(module, _SHAPE_KEEPING):
            memo[id(module)] = _Unchanged(module)
        else:
            parts.append(module)
            own = (*module._parameters.values(), *module._buffers.values())
            memo |= {id(tensor): _meta_tensor(tensor) for tensor in own if tensor is not None}
    memo = {id(tensor): _meta_tensor(tensor.detach()) for tensor in left_tensors(parts)} | memo
    copy_modules(parts, memo, training=False)
    return memo[id(detector)]


_IDLE_FIELDS = vars(nn.Identity())


class _Unchanged(nn.Identity):
    """Returns its input, for a layer that keeps shapes; code that reads the layer's attributes finds them."""

    def __init__(self, layer: nn.Module) -> None:
        # In place of `super().__init__()`: all share the same empty containers, which nothing fills.
        vars(self).update(_IDLE_FIELDS, layer=layer, training=False)

    def __getattr__(self, name: str) -> Any:
        value = getattr(vars(self)["layer"], name)
        return _meta_tensor(value) if isinstance(value, Tensor) else value


def _meta_tensor(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
