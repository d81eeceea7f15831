"""The cliff scan: what it tries, and what it calls safe."""

import pandas as pd
import pytest
import tiny
import torch
from torch import nn

from paperlib.pruning import SensitivityScan, apply_plan, plan_pruning, scan_sensitivity


def score(net: nn.Module) -> float:
    """Any number that depends on all weights."""
    with torch.no_grad():
        return float(net.head_outputs(torch.ones(1, 3, tiny.SIDE, tiny.SIDE))[0].square().mean())


def test_each_ratio_is_scored_as_pruned_and_not_trained() -> None:
    detector = tiny.detector().eval()
    before = score(detector)
    scan = scan_sensitivity(detector, [0.6, 0.2, 0.6], score, compensate="exact", round_to=2)
    assert scan.table["ratio"].tolist() == [0.2, 0.6]
    assert scan.baseline == before == score(detector)
    for row in scan.table.itertuples():
        plan = plan_pruning(detector, row.ratio, round_to=2)
        assert row.score == score(apply_plan(detector, plan, compensate="exact"))
        assert (row.channels_kept, row.gmacs) == (plan.channels_kept, plan.cost_after.gmacs)


def test_one_pass_over_calibration_data_serves_every_ratio() -> None:
    data = tiny.dataset(count=2)
    batches = (([image.float() / 255], [target]) for image, target in (data[0], data[1]))
    scan = scan_sensitivity(tiny.detector(), [0.2, 0.4], score, importance="taylor", calibration=batches)
    assert len(scan.table) == 2


@pytest.mark.parametrize(
    ("scores", "drop", "safe"),
    [
        ([0.80, 0.79, 0.70, 0.10], 0.05, 0.2),
        ([0.80, 0.70, 0.79, 0.10], 0.05, 0.1),  # a recovery further on does not count
        ([0.80, 0.70, 0.79, 0.10], 0.11, 0.3),
        ([0.90, 0.90, 0.90, 0.90], 0.0, 0.4),
        ([0.10, 0.80, 0.80, 0.80], 0.05, 0.0),
        ([0.80, float("nan"), 0.80, 0.80], 0.05, 0.1),
    ],
)
def test_the_safe_ratio_ends_where_the_score_first_falls_too_far(scores: list, drop: float, safe: float) -> None:
    scan = SensitivityScan(0.8, pd.DataFrame({"ratio": [0.1, 0.2, 0.3, 0.4], "score": scores}))
    assert scan.safe_ratio(drop) == safe


def test_bad_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no ratio to try"):
        scan_sensitivity(tiny.detector(), [], score)
    with pytest.raises(ValueError, match=r"ratio 1.5 is not in \[0, 1\)"):
        scan_sensitivity(tiny.detector(), [0.5, 1.5], score)
    with pytest.raises(ValueError, match="drop -0.1 must be ≥ 0"):
        SensitivityScan(0.8, pd.DataFrame({"ratio": [0.1], "score": [0.8]})).safe_ratio(-0.1)
