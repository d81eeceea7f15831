"""Sensitivity scan: the accuracy at each pruning ratio before any fine-tuning (as in Fig. 6)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
from torch import nn

from paperlib.costs import Cost
from paperlib.pruning.planner import plan_pruning
from paperlib.pruning.surgery import apply_plan


@dataclass(frozen=True)
class SensitivityScan:
    """Scores over pruning ratios, without fine-tuning.

    Attributes:
        baseline: the score of the network before pruning.
        table: one row for each ratio, ascending: `ratio`, `score`, `channels_kept`, `size_mb`, `gmacs` (without
            compensation).
    """

    baseline: float
    table: pd.DataFrame

    def safe_ratio(self, drop: float) -> float:
        """Return the largest ratio up to which no score is more than `drop` below the baseline; 0 if there is none.

        Raises:
            ValueError: `drop` is negative.
        """
        if not drop >= 0:
            raise ValueError(f"drop {drop} must be ≥ 0")
        safe = 0.0
        for ratio, score in zip(self.table["ratio"], self.table["score"], strict=True):
            if not score >= self.baseline - drop:
                break
            safe = float(ratio)
        return safe


def scan_sensitivity(
    detector: nn.Module,
    ratios: Iterable[float],
    score: Callable[[nn.Module], float],
    *,
    compensate: str = "bias",
    **options: Any,
) -> SensitivityScan:
    """Prune `detector` by each ratio and score it without fine-tuning; the detector is untouched.

    Args:
        detector: the network.
        ratios: the pruning ratios to try, each in [0, 1).
        score: computes how good a network is, in any unit: mAP on validation images, for instance.
        compensate: see `apply_plan`.
        options: see `plan_pruning`.

    Raises:
        ValueError: there is no ratio, or whatever `plan_pruning` and `apply_plan` raise.
    """
    tried = sorted(set(ratios))
    if not tried:
        raise ValueError("there is no ratio to try")
    if options.get("calibration") is not None:
        options["calibration"] = list(options["calibration"])  # it is iterated over once for each ratio
    plans = [plan_pruning(detector, ratio, **options) for ratio in tried]
    rows = []
    for plan in plans:
        after = cast(Cost, plan.cost_after)  # only a plan made by hand has none
        rows.append(
            {
                "ratio": plan.ratio,
                "score": float(score(apply_plan(detector, plan, compensate=compensate))),
                "channels_kept": plan.channels_kept,
                "size_mb": after.size_mb,
                "gmacs": after.gmacs,
            }
        )
    return SensitivityScan(float(score(detector)), pd.DataFrame(rows))


scan_cliff = scan_sensitivity
"""The former name of `scan_sensitivity`."""
