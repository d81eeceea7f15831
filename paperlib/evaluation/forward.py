"""A network run on batches of squares, in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def run_on_squares(network: nn.Module, images: Tensor) -> Any:
    """Run a network on uint8 squares `[B, 3, S, S]`, without gradients; return its output."""
    parameter = next(network.parameters())
    with torch.inference_mode():
        batch = images.to(parameter.device).to(parameter.dtype) / 255
        return network(batch.to(memory_format=torch.channels_last))


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the block; afterwards, also after an error, restore each module's own mode."""
    # Frozen batch norms of a network in training mode, for instance, are in evaluation mode.
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
