"""What a training minimises: an objective on the outputs, and a regulariser on the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class Objective(Protocol):
    """Computes the losses of a batch. A function does; an object may have any of the following, too.

    `teacher`: a module, moved to the device of the training. It belongs to the identity of the training.
    `describe()`: the settings as plain data for JSON, which belong to the identity.
    `start_training(steps)`: called once, before all else, with the number of optimiser steps of the training. What
    an earlier training left behind, other than parameters, is reset here.
    `parameters()`: what is optimised along with the network, with gradients averaged over processes. An objective
    with parameters needs a state.
    `state_dict()` and `load_state_dict(state)`: all that changes from step to step, parameters included: a flat dict
    of tensors and JSON values. It belongs to the identity, is written with the state of the training and restored to
    the bit when a killed training resumes. The objective averages its own statistics over processes.
    `epoch_values()`: numbers since the last call, which go into the epoch's row of the history, such as a ratio of
    selected instances. It is called after each epoch, before the state is written.
    """

    def __call__(self, network: nn.Module, images: Tensor, targets: Any, /) -> dict[str, Tensor]:
        """Return the losses by name, whose sum is minimised; the targets are what that network takes."""
        ...


class Regulariser(Protocol):
    """A term on the weights instead of the outputs, such as that of Eq. 4.

    A method `convert_for_saving(module)`, if there is one, returns the network that is validated and written to files
    instead of `module`: one that trains with partners is saved without them. A method `after_epoch(module)`, if there
    is one, changes the weights after each epoch, before they are validated, and those of the running mean likewise.
    A method `epoch_values(module)`, if there is one, returns numbers for the epoch's row of the history.
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
        self.objective_parameters = nn.ParameterList(trained_parameters(objective))

    def forward(self, images: Tensor, targets: Any) -> dict[str, Tensor]:
        """Compute the losses of one batch of images `[B, 3, H, W]`."""
        return self._objective[0](self.detector, images, targets)


def trained_parameters(objective: Objective) -> list[nn.Parameter]:
    """Return the parameters of an objective that are trained; a teacher's, which are frozen, are not.

    Raises:
        ValueError: it has parameters, but no state in which they could be saved.
    """
    trained = [each for each in getattr(objective, "parameters", list)() if each.requires_grad]
    if trained and not hasattr(objective, "state_dict"):
        raise ValueError(f"objective {type(objective).__name__}: it has parameters() but no state_dict()")
    return trained


def split_state(objective: Objective) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of an objective's state, and its JSON values."""
    state: Mapping[str, Any] = getattr(objective, "state_dict", dict)()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}
