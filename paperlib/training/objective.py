"""What a training minimises: an objective on the outputs, and a regulariser on the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

Objective = Callable[[nn.Module, Tensor, Any], dict[str, Tensor]]
"""Computes a dict of losses from `(network, images, targets)`; the targets are what that network takes."""


class Regulariser(Protocol):
    """A term on the weights instead of the outputs, such as that of Eq. 4.

    A method `convert_for_saving(module)`, if there is one, returns the network that is validated and written to files
    instead of `module`: one that trains with partners is saved without them.
    """

    def before_step(self, module: nn.Module, learning_rate: float) -> None:
        """Change the gradients, once per optimiser step, after they are unscaled."""
        ...

    def after_step(self, module: nn.Module, learning_rate: float) -> None:
        """Change the weights, once per optimiser step, after it."""
        ...

    def penalty(self, module: nn.Module) -> Tensor:
        """Return the value of the term, for the log."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data for JSON."""
        ...


def own_loss(network: nn.Module, images: Tensor, targets: Any) -> dict[str, Tensor]:
    """Compute the network's own losses: the objective of ordinary training."""
    return network(images, targets)


class LossModule(nn.Module):
    """Detector and objective as one module, because mixed precision and data parallelism wrap a forward pass."""

    def __init__(self, detector: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.detector = detector
        self._objective = (objective,)  # in a tuple, so that a teacher is not registered as a submodule

    def forward(self, images: Tensor, targets: Any) -> dict[str, Tensor]:
        """Compute the losses of one batch of images `[B, 3, H, W]`."""
        return self._objective[0](self.detector, images, targets)
