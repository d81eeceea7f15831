"""One model of an experiment, with its metrics and its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paperlib.costs import Cost
from paperlib.figures import tables
from paperlib.workbench.steps import Model, Workbench

Experiment = Callable[[Workbench, Any], dict[str, Model]]
Job = tuple[Experiment, str, int]
"""An experiment, the name of a case, and a seed."""


@dataclass(frozen=True)
class Run:
    """One model of an experiment, at one seed, with its metrics and its cost."""

    name: str
    case: str
    seed: int
    model: Model
    metrics: Any  # `Metrics` of a detector, `SceneMetrics` of a classifier, None of an untrained network
    cost: Cost
    detections: Path | None = None
    """Its detections on the test split, with which anybody can draw the images again (`evaluation.bootstrap`)."""

    def row(self) -> dict[str, Any]:
        """Return name, case, seed, size, GMACs and, for a trained model, the headline metrics."""
        row = {"model": self.name, "case": self.case, "seed": self.seed}
        row |= {"mb": self.cost.size_mb, "gmacs": self.cost.gmacs}
        found = self.metrics.to_dict() if self.metrics else {}
        return row | {name: found[name] for name in (*tables.METRICS, *tables.SCENE_METRICS) if name in found}
