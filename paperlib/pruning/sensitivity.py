"""Before the knife: at which ratio accuracy falls off, judged without fine-tuning (as in Fig. 6)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

from paperlib.pruning.planner import plan_pruning
from paperlib.pruning.surgery import apply_plan


@dataclass(frozen=True)
class SensitivityScan:
    """Scores over pruning ratios, without fine-tuning.

    Attributes:
        baseline: the score of the network as it was.
        table: one row a ratio, ascending: `ratio`, `score`, `channels_kept`, `size_mb`, `gmacs` (compensation apart).
    """

    baseline: float
    table: pd.DataFrame

    def safe_ratio(self, drop: float) -> float:
        """The largest ratio up to which no score is more than `drop` below the baseline; 0 if there is none.

        Raises:
            ValueError: `drop` is not at least 0.
        """
        if not drop >= 0:
            raise ValueError(f"drop {drop} is not at least 0")
        holds = (self.table["score"] >= self.baseline - drop).cummin()
        return float(self.table["ratio"][holds].max()) if holds.any() else 0.0


def scan_sensitivity(
    detector: nn.Module,
    ratios: Iterable[float],
    score: Callable[[nn.Module], float],
    *,
    compensate: str = "bias",
    **options: Any,
) -> SensitivityScan:
    """Prune `detector` by each ratio and score it at once; the detector is untouched.

    Args:
        detector: the network.
        ratios: which to try, each in [0, 1).
        score: how good a network is, in whatever unit: mAP on validation images, for instance.
        compensate: see `apply_plan`.
        options: see `plan_pruning`.

    Raises:
        ValueError: there is no ratio, or whatever `plan_pruning` and `apply_plan` raise.
    """
    tried = sorted(set(ratios))
    if not tried:
        raise ValueError("there is no ratio to try")
    if options.get("calibration") is not None:
        options["calibration"] = list(options["calibration"])  # it is gone through once a ratio
    plans = [plan_pruning(detector, ratio, **options) for ratio in tried]
    rows = [
        {
            "ratio": plan.ratio,
            "score": float(score(apply_plan(detector, plan, compensate=compensate))),
            "channels_kept": plan.channels_kept,
            "size_mb": plan.cost_after.size_mb,
            "gmacs": plan.cost_after.gmacs,
        }
        for plan in plans
    ]
    return SensitivityScan(float(score(detector)), pd.DataFrame(rows))


scan_cliff = scan_sensitivity
"""The former name of `scan_sensitivity`."""
