"""A time budget for `paperlib compress`: what is shortened or left out, decided once and kept for resumed runs."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paperlib import files
from paperlib.compression.request import CompressRequest
from paperlib.costs import cost
from paperlib.progress import group
from paperlib.store.contents import read_sealed, seal_record
from paperlib.store.store import canonical_json
from paperlib.training.folder import HISTORY
from paperlib.workbench.steps import Model, Workbench

PLAN = "plan.json"
SHORTEST = 1 / 3
"""Fraction of its epochs to which a training may be shortened."""
TEACHER_COST = 0.4
"""Of an epoch of the original: what the answers of a teacher add to an epoch. A forward pass is a third of a step."""
MARGIN = 0.05
"""Fraction of the budget that is kept for evaluations and for what is not foreseen."""


@dataclass
class TimeBudget:
    """The clock of a compression and the decisions it has led to.

    A decision is written to `plan.json` when it is made. The same request on the same data finds it there, so a run
    that was interrupted does the same as one that was not. The time of finished epochs counts, whichever run made them.

    Attributes:
        request: with a budget.
        data: digests of the data, which with the request identify the plan.
        reserve: seconds that the outputs will take.
        began: when the command started, by `time.perf_counter`.
    """

    request: CompressRequest
    data: Sequence[str]
    reserve: float
    began: float

    def __post_init__(self) -> None:
        self._earlier = group.let_first(partial(_training_seconds, self.request.out))
        told = self.request.model_dump(mode="json", exclude={"out", "threads", "timing_seconds"})
        of = hashlib.sha256(canonical_json({"request": told, "data": list(self.data)}).encode()).hexdigest()
        self._plan = group.let_first(partial(_read_plan, self.request.out, of))

    def shorten_trainings(self, workbench: Workbench, given: Model) -> CompressRequest:
        """Return the request with the numbers of epochs that the budget allows; two epochs are measured first.

        Raises:
            ValueError: not even the shortest trainings fit into the budget.
        """
        if "epochs" not in self._plan:
            self._plan |= self._choose_epochs(workbench, given)
            self._write()
        return self.request.model_copy(update={key: self._plan[key] for key in ("epochs", "fine_tune_epochs")})

    def has_time(self, name: str, model: Model, trainings: int) -> bool:
        """Return whether so many short trainings of models not larger than `model` fit into what is left."""
        decisions = self._plan["decisions"]
        if name not in decisions:
            epoch = float(np.median(model.history()["seconds"].to_numpy())) + TEACHER_COST * self._plan["epoch_seconds"]
            decisions[name] = bool(trainings * self._plan["fine_tune_epochs"] * epoch <= self._seconds_left())
            self._write()
        return decisions[name]

    def describe(self) -> list[str]:
        """Return what the budget has shortened or left out, one sentence each."""
        told = []
        for key, what in (("epochs", "sparse training"), ("fine_tune_epochs", "fine-tuning and distillation")):
            if (chosen := self._plan[key]) < (asked := self._asked[key]):
                told.append(f"--budget {self.request.budget}: {what} had {chosen} epochs instead of {asked}.")
        left_out = [name for name, done in self._plan["decisions"].items() if not done]
        if left_out:
            told.append(f"--budget {self.request.budget}: there was no time for: {', '.join(left_out)}.")
        return told

    @property
    def _asked(self) -> dict[str, int]:
        recipe = self.request.recipe
        tuning = self.request.compression.fine_tuning_after(recipe)
        return {"epochs": recipe.epochs, "fine_tune_epochs": tuning.epochs}

    def _seconds_left(self) -> float:
        # Clocks differ, and all processes must decide alike: the first one's clock counts.
        spent = self._earlier + group.let_first(lambda: time.perf_counter() - self.began)
        return (1 - MARGIN) * self.request.budget_seconds - self.reserve - spent

    def _choose_epochs(self, workbench: Workbench, given: Model) -> dict[str, Any]:
        epoch = _measure_epoch(workbench, given)
        fractions = _channel_fractions(self.request, cost(given.detector(), self.request.image_size).size_mb)
        asked = self._asked
        left = self._seconds_left()
        chosen = fit_epochs(left / epoch, asked["epochs"], asked["fine_tune_epochs"], fractions)
        if chosen is None:
            least = epoch * _least_epochs(asked["epochs"], asked["fine_tune_epochs"])
            needed = (self.request.budget_seconds - left + least) / 60
            raise ValueError(
                f"--budget {self.request.budget}: an epoch takes {epoch:.3g} s; even the shortest trainings need about "
                f"{math.ceil(needed)}m: raise it, or lower --epochs or --image-size"
            )
        return {"epoch_seconds": epoch, "epochs": chosen[0], "fine_tune_epochs": chosen[1]}

    def _write(self) -> None:
        group.let_first(lambda: files.write_json_atomically(self.request.out / PLAN, seal_record(self._plan)))


def _read_plan(out: Path, of: str) -> dict[str, Any]:
    """Return the decisions that an earlier run of the same request has written down, or none."""
    with contextlib.suppress(ValueError):  # there is none, or it was damaged
        if (known := read_sealed(out / PLAN))["of"] == of:
            return known
    return {"of": of, "decisions": {}}


def fit_epochs(available: float, long: int, short: int, fractions: Sequence[float]) -> tuple[int, int] | None:
    """Return the epochs of sparse training and of each fine-tuning that fit; the latter are shortened first.

    Args:
        available: epochs of the original for which there is time.
        long, short: the epochs asked for.
        fractions: of the channels that each pruned model keeps; an epoch's time is taken to be in proportion.

    Returns:
        None if nothing fits. If only a part of the prunings fits, the shortest trainings: pruning will end early.
    """
    if available < _least_epochs(long, short):
        return None
    weight = sum(fractions) + fractions[-1] + TEACHER_COST
    least_long, least_short = math.ceil(SHORTEST * long), math.ceil(SHORTEST * short)
    short = min(short, max(least_short, math.floor((available - long) / weight)))
    return min(long, max(least_long, math.floor(available - short * weight))), short


def _least_epochs(long: int, short: int) -> float:
    """Return the epochs of the original that one pruning and one distillation need, at most."""
    return math.ceil(SHORTEST * long) + (2 + TEACHER_COST) * math.ceil(SHORTEST * short)


def _channel_fractions(request: CompressRequest, size_mb: float) -> list[float]:
    """Return the fraction of channels of each pruned model, if accuracy does not end the prunings."""
    # Sizes fall about as the square of the channels.
    aimed = math.sqrt(request.target_mb / size_mb) if request.target_mb else 0.0
    least = max(request.min_keep_ratio, aimed)
    cuts = max(1, math.ceil((1 - least) / request.step))
    return [max(1 - number * request.step, least) for number in range(1, cuts + 1)]


def _measure_epoch(workbench: Workbench, given: Model) -> float:
    """Return the seconds of an epoch of the sparse training, with its share of a validation."""
    recipe = workbench.recipe.model_copy(update={"epochs": 2, "validate_every": 2})
    probe = replace(workbench, recipe=recipe).train_sparse(given, "measure an epoch")
    plain, validated = probe.history()["seconds"]
    return float(plain + max(validated - plain, 0.0) / workbench.recipe.validate_every)


def _training_seconds(out: Path) -> float:
    """Return the seconds of all epochs in the steps of a folder, also of trainings that are not finished."""
    total = 0.0
    for folder in out.glob("steps/*"):
        # A training that is not finished keeps its files one folder deeper.
        found = [path for path in (folder / HISTORY, folder / "fit" / HISTORY) if path.is_file()]
        if found and found[0].stat().st_size:
            total += float(np.sum(pd.read_json(found[0], lines=True)["seconds"].to_numpy()))
    return total
