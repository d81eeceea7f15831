"""The models of Algorithm 1 with their roles, costs and metrics, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, cast

import pandas as pd
from torch import nn

from paperlib.costs import Cost
from paperlib.detectors.base import Detector
from paperlib.evaluation.evaluate import Metrics
from paperlib.pruning import trace_channels
from paperlib.workbench.steps import Model, Workbench

Role = Literal["teacher", "assistant", "similar", "student", "rejected"]
Reason = Literal["drop", "floor", "target", "time"]


@dataclass(frozen=True)
class Candidate:
    """A model that may be handed over.

    Attributes:
        name: how it was trained last, such as "fine-tuned" or "distilled".
        model: the model.
        metrics: on the validation data.
    """

    name: str
    model: Model
    metrics: Metrics


@dataclass(frozen=True)
class Stage:
    """One model of the iterations: TA_i of Algorithm 1.

    Attributes:
        name: for people.
        model: trained with Eq. 4's term: the original (i = 0), or a pruned model after its fine-tuning.
        role: `similar` models were dropped from the chain; the `rejected` one lost delta or more.
        channels: number of its prunable channels.
        tuned: its validation metrics.
        distilled: the model after its distillation by the next larger one of the chain, and the metrics after that.
        others: models of the same shape that were trained in other ways.
    """

    name: str
    model: Model
    role: Role
    channels: int
    cost: Cost
    tuned: Metrics
    distilled: tuple[Model, Metrics] | None = None
    others: tuple[Candidate, ...] = ()

    @property
    def final(self) -> Model:
        """Return the distilled model, or the fine-tuned one if it was not distilled."""
        return self.distilled[0] if self.distilled else self.model

    @property
    def metrics(self) -> Metrics:
        """Return the validation metrics of `final`."""
        return self.distilled[1] if self.distilled else self.tuned

    @property
    def candidates(self) -> list[Candidate]:
        """Return the models of this size, the most accurate on the validation data first."""
        tuned = Candidate("sparsely trained" if self.role == "teacher" else "fine-tuned", self.model, self.tuned)
        distilled = [Candidate("distilled", *self.distilled)] if self.distilled else []
        # Sorting is stable: of equally accurate ones that of Algorithm 1 is first.
        return sorted([*distilled, tuned, *self.others], key=lambda candidate: -candidate.metrics.map50)


@dataclass(frozen=True)
class Compressed:
    """The result of Algorithm 1.

    Attributes:
        stages: all models of the iterations, the teacher first.
        stopped: why pruning ended: the drop of accuracy, the floor of every layer, the target size, or the time.
        given: the detector before its sparse training.
        workbench: the workbench whose store holds all of them.
        pure: hand over the last model of Algorithm 1, the distilled one, even if another is more accurate.
    """

    stages: list[Stage]
    stopped: Reason
    given: Model
    workbench: Workbench
    pure: bool = False

    @property
    def delivered(self) -> Candidate:
        """Return the student that is handed over: the most accurate on the validation data, unless `pure`."""
        candidates = self.chain[-1].candidates
        if not self.pure:
            return candidates[0]
        (last,) = [each for each in candidates if each.model == self.chain[-1].final]
        return last

    @property
    def drop(self) -> float:
        """Return how much less mAP the student that is handed over has than the sparsely trained original."""
        return self.stages[0].tuned.map50 - self.delivered.metrics.map50

    @cached_property
    def student(self) -> Detector:
        """Return the smallest detector of the chain as it is handed over, in evaluation mode."""
        return self.delivered.model.detector()

    @property
    def chain(self) -> list[Stage]:
        """Return teacher, assistants and student; the teacher alone if no pruned model was good enough."""
        return [stage for stage in self.stages if stage.role in ("teacher", "assistant", "student")]

    @property
    def table(self) -> pd.DataFrame:
        """Return one row per stage: role, channels, costs, validation mAP before and after distillation, teacher."""
        teachers = {below.name: above.name for above, below in pairwise(self.chain)}
        rows = [
            {
                "model": stage.name,
                "role": stage.role,
                "channels": stage.channels,
                "parameters": stage.cost.parameters,
                "mb": stage.cost.size_mb,
                "gmacs": stage.cost.gmacs,
                "map50": stage.tuned.map50,
                "map50_distilled": stage.distilled[1].map50 if stage.distilled else None,
                "taught_by": teachers.get(stage.name),
            }
            for stage in self.stages
        ]
        return pd.DataFrame(rows)

    def explain_stop(self) -> str:
        """Return in a clause why pruning ended."""
        ratio = f"{self.workbench.pruning.min_keep_ratio:.3g}"
        if self.stopped == "target":
            return "the target size is reached"
        if self.stopped == "floor":
            return f"every layer is down to its floor of {ratio} of the original channels, or held by one tied to it"
        if self.stopped == "time":
            return "there was no time for a smaller model"
        drop = self.stages[0].tuned.map50 - self.stages[-1].tuned.map50
        return f"the next model, {self.stages[-1].cost.size_mb:.3g} MB, lost {100 * drop:.1f} points of mAP"


def channel_counts(detector: nn.Module) -> dict[str, int]:
    """Return the output channels of each prunable convolution, in forward order."""
    layers = {name: cast(nn.Conv2d, detector.get_submodule(name)) for name in trace_channels(detector).prunable}
    return {name: layer.out_channels for name, layer in layers.items()}
