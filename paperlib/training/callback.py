"""What `fit(..., on_epoch=…)` is told after every epoch, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from paperlib import files

TOLD = "told.json"
"""The file, in the folder of a training, that holds the last epoch that was told."""


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch.

    Attributes:
        epoch: its number, from 1.
        epochs: the number of epochs of the training.
        losses: mean of each loss over the batches, by name.
        metrics: of the validation data, from 0 to 1, by name; empty if this epoch was not validated.
        learning_rate: of the last batch.
        seconds: duration, with the validation.
    """

    epoch: int
    epochs: int
    losses: Mapping[str, float]
    metrics: Mapping[str, float]
    learning_rate: float
    seconds: float

    @property
    def loss(self) -> float:
        """Return the sum of the losses."""
        return sum(self.losses.values())


OnEpoch = Callable[[EpochReport], object]
"""Called with each finished epoch; what it returns is ignored, and what it raises ends the training."""


def tell_once(on_epoch: OnEpoch, report: EpochReport, folder: Path) -> None:
    """Call `on_epoch`, unless it was told this epoch before the training was interrupted.

    A training continues from its last state, which may be some epochs older than the interruption. These epochs are
    computed again, with the same numbers.
    """
    path = folder / TOLD
    if report.epoch <= _last_told(path):
        return
    # Written before the call: if that ends the training, continuing it must not repeat the call.
    files.write_json_atomically(path, {"epoch": report.epoch})
    on_epoch(report)


def _last_told(path: Path) -> int:
    try:
        return int(files.read_json(path)["epoch"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return 0  # nothing was told, or the file is damaged
