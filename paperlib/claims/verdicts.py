"""What became of each claim at one scale: it holds, it does not, or there is a reason why nobody can say.

Numbers come out of `results/<scale>/<notebook>/metrics.json`, seed by seed; where two models are compared, they are
compared within a seed. A verdict asks that the 90 % interval of the mean lies on one side of a bound, so that it is
wrong in one case of twenty; an interval that reaches over a bound leaves the claim undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from paperlib import files, paths
from paperlib.claims.schema import Bounds, Claim, Claims, Measure, Scale, load_claims
from paperlib.experiments.parameters import load_profile, profile_path

STUDENT_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
"""95 % quantiles of Student's t for 1 to 9 degrees of freedom; for more, the last is a little too careful."""


class Verdict(StrEnum):
    """What became of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    NOT_RUN = "not run at this scale"


@dataclass(frozen=True)
class Judgement:
    """A claim, its verdict, and what that rests on.

    Attributes:
        claim: what is claimed.
        verdict: what became of it.
        bounds: what counts as holding at this scale, if anything is asked.
        values: one number for each seed, in the claim's unit.
        reach: half the width of the interval around their mean, in the claim's unit.
        reason: why there is no verdict, where there is none.
    """

    claim: Claim
    verdict: Verdict
    bounds: Bounds | None = None
    values: tuple[float, ...] = ()
    reach: float = 0.0
    reason: str = ""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        return stdev(self.values) if len(self.values) > 1 else None


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str
    seed: int


class _Metrics(BaseModel):
    models: list[_Row]
    measured: list[_Row] = []


Rows = Callable[[str], list[_Row] | None]


def judge_all(scale: str, claims: Claims | None = None) -> list[Judgement]:
    """A verdict on every claim, from what stands in `results/<scale>/`.

    Raises:
        ValueError: there is no such scale, or a `metrics.json` is not what a notebook writes.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"no scale {scale}; there are {', '.join(get_args(Scale))}")
    claims = claims or load_claims()
    rows = cache(lambda notebook: _rows(paths.results_root() / scale / notebook / "metrics.json"))
    return [_judge(claim, scale, rows, claims.one_seed[claim.unit]) for claim in claims.claims]


def decide(values: Sequence[float], low: float, high: float, one_seed: float) -> tuple[Verdict, float]:
    """The verdict on a claim that holds between `low` and `high`, both excluded.

    Args:
        values: one for each seed, at least one.
        low, high: bounds, in the unit of the values; either may be infinite.
        one_seed: how far a single value is trusted.

    Returns:
        The verdict, and half the width of the interval around the mean that decided it.
    """
    mean, reach = fmean(values), one_seed
    if len(values) > 1:
        quantile = STUDENT_95[min(len(values) - 1, len(STUDENT_95)) - 1]
        reach = quantile * stdev(values) / sqrt(len(values))
    if low < mean - reach and mean + reach < high:
        return Verdict.HOLDS, reach
    if mean + reach <= low or mean - reach >= high:
        return Verdict.FAILS, reach
    return Verdict.UNDECIDED, reach


def _judge(claim: Claim, scale: Scale, rows: Rows, one_seed: float) -> Judgement:
    bounds = claim.holds.get(scale)
    try:
        values = _values(claim, scale, bounds, rows)
    except LookupError as error:
        return Judgement(claim, Verdict.NOT_RUN, bounds, reason=error.args[0])
    trust = one_seed * fmean(values) if claim.unit == "times" else one_seed
    verdict, reach = decide(values, *bounds.interval(claim.reported), trust)
    reason = "one seed cannot tell" if len(values) == 1 else "the seeds lie too far apart"
    return Judgement(claim, verdict, bounds, tuple(values), reach, reason if verdict is Verdict.UNDECIDED else "")


def _values(claim: Claim, scale: Scale, bounds: Bounds | None, rows: Rows) -> list[float]:
    """One number for each seed that all models asked for have. Raises LookupError with the reason if there is none."""
    measure = claim.measure
    if measure is None:
        raise LookupError(claim.reason)
    if bounds is None:
        raise LookupError(f"asked of the scale {' and '.join(claim.holds)} alone")
    found = rows(measure.notebook)
    if found is None:
        raise LookupError(f"{measure.notebook} has not run")
    if absent := _left_out(measure, scale) - {row.model for row in found}:
        raise LookupError(f"{measure.notebook} leaves {' and '.join(sorted(absent))} out at this scale")
    own = _metric_by_seed(found, measure, measure.model)
    if measure.against is None:
        return [100 * value for value in own.values()]
    other = _metric_by_seed(found, measure, measure.against)
    pairs = [(own[seed], other[seed]) for seed in own if seed in other]
    if not pairs:
        raise LookupError(f"{measure.notebook} has no seed of both {measure.model} and {measure.against}")
    compare = {"points": lambda mine, its: 100 * (mine - its), "times": lambda mine, its: its / mine}[claim.unit]
    return [compare(mine, its) for mine, its in pairs]


def _left_out(measure: Measure, scale: Scale) -> set[str]:
    """The models asked for whose case is in the paper's profile of the notebook, and not in that of a scale."""
    whole, here = (
        load_profile(measure.notebook, profile_path(measure.notebook, name)).cases for name in ("paper", scale)
    )
    starts = tuple(f"{case} " for case in whole if case not in here)
    return {model for model in (measure.model, measure.against) if model and model.startswith(starts)}


def _metric_by_seed(rows: list[_Row], measure: Measure, model: str) -> dict[int, float]:
    mine = [row for row in rows if row.model == model]
    if not mine:
        raise LookupError(f"{measure.notebook} has no model {model}")
    found = {row.seed: value for row in mine if (value := _at(row.model_extra, measure.metric)) is not None}
    if not found:
        raise LookupError(f"{measure.notebook} has no {measure.metric} of {model}")
    return found


def _at(values: Mapping[str, Any], metric: str) -> float | None:
    """The number at a place such as `metrics.per_class.ship`, or None."""
    value: Any = values
    for key in metric.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _rows(path: Path) -> list[_Row] | None:
    """All rows of a `metrics.json`; None if the notebook has not run."""
    if not path.is_file():
        return None
    try:
        found = _Metrics.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {place}: {first['msg']}") from None
    return found.models + found.measured
