"""The verdict on each claim at one scale: it holds, it does not hold, or the reason why it is undecided or not run.

Values come from `results/<scale>/<notebook>/metrics.json`, one for each seed; two models are compared within a seed. A
verdict requires that the 90 % interval of the mean lies on one side of a bound (5 % error rate, one-sided); an
interval that contains a bound leaves the claim undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from math import inf, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from paperlib import files, paths
from paperlib.claims.schema import Claim, Claims, Criterion, Measure, Scale, load_claims
from paperlib.experiments.parameters import load_profile, profile_path
from paperlib.experiments.settings import Settings

STUDENT_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
"""95 % quantiles of Student's t for 1 to 9 degrees of freedom; the last is slightly conservative for more."""


class Verdict(StrEnum):
    """The verdict on a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    NOT_RUN = "not run at this scale"


@dataclass(frozen=True)
class ClaimResult:
    """A claim, its verdict, and the values behind it.

    Attributes:
        claim: the claim.
        verdict: the verdict on it.
        criterion: what counts as holding at this scale, if the claim is evaluated at it.
        values: one value for each seed, in the claim's unit.
        half_width: half the width of the interval around their mean, in the claim's unit.
        reason: why the claim is undecided or not run, else empty.
    """

    claim: Claim
    verdict: Verdict
    criterion: Criterion | None = None
    values: tuple[float, ...] = ()
    half_width: float = 0.0
    reason: str = ""

    @property
    def mean(self) -> float:
        """Return the mean over the seeds."""
        return fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Return the sample standard deviation over the seeds; None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float]:
        """Return the bounds between which the claim holds, both excluded; infinite where there is none."""
        return self.criterion.interval(self.claim.reported) if self.criterion else (-inf, inf)


class _Row(BaseModel):
    # The metrics of a row differ from notebook to notebook.
    model_config = ConfigDict(extra="allow")
    model: str
    seed: int


class _Metrics(BaseModel):
    models: list[_Row]
    measured: list[_Row] = []


LoadRows = Callable[[str], list[_Row] | None]
"""Returns the rows of a notebook, None if it has not run."""


def evaluate_claims(scale: str, claims: Claims | None = None) -> list[ClaimResult]:
    """Evaluate every claim on the results in `results/<scale>/`.

    Raises:
        ValueError: there is no such scale, or a `metrics.json` is not what a notebook writes.
    """
    known = _check_scale(scale)
    claims = claims or load_claims()
    # Many claims read the same notebook.
    load_rows = cache(lambda notebook: _load_rows(paths.results_root() / scale / notebook / "metrics.json"))
    return [_evaluate_claim(claim, known, load_rows, claims.one_seed[claim.unit]) for claim in claims.claims]


def decide_verdict(values: Sequence[float], low: float, high: float, one_seed: float) -> tuple[Verdict, float]:
    """Decide on a claim that holds between `low` and `high`, both excluded.

    Args:
        values: one for each seed, at least one.
        low, high: bounds, in the unit of the values; either may be infinite.
        one_seed: half-width of the interval around a single value.

    Returns:
        The verdict, and the half-width of the interval around the mean that decided it.
    """
    mean, half_width = fmean(values), one_seed
    if len(values) > 1:
        freedom = min(len(values) - 1, len(STUDENT_95))
        half_width = STUDENT_95[freedom - 1] * stdev(values) / sqrt(len(values))
    if low < mean - half_width and mean + half_width < high:
        return Verdict.HOLDS, half_width
    if mean + half_width <= low or mean - half_width >= high:
        return Verdict.FAILS, half_width
    return Verdict.UNDECIDED, half_width


def _check_scale(scale: str) -> Scale:
    for known in get_args(Scale):
        if scale == known:
            return known
    raise ValueError(f"no scale {scale}; there are {', '.join(get_args(Scale))}")


def _evaluate_claim(claim: Claim, scale: Scale, load_rows: LoadRows, one_seed: float) -> ClaimResult:
    criterion = claim.holds.get(scale)
    try:
        values = _compute_values(claim, scale, load_rows)
    except LookupError as error:
        return ClaimResult(claim, Verdict.NOT_RUN, criterion, reason=error.args[0])
    # A ratio of sizes or times is trusted to a fraction of itself.
    trust = one_seed * fmean(values) if claim.unit == "times" else one_seed
    result = ClaimResult(claim, Verdict.UNDECIDED, criterion, tuple(values))
    verdict, half_width = decide_verdict(values, *result.interval, trust)
    reason = ""
    if verdict is Verdict.UNDECIDED:
        reason = "one seed is not enough" if len(values) == 1 else "the seeds differ too much"
    return ClaimResult(claim, verdict, criterion, tuple(values), half_width, reason)


def _compute_values(claim: Claim, scale: Scale, load_rows: LoadRows) -> list[float]:
    """Return one value for each seed that all models of a claim have. Raises LookupError with the reason if none."""
    measure = claim.measure
    if measure is None:
        raise LookupError(claim.reason)
    if scale not in claim.holds:
        raise LookupError(f"only evaluated at the {' and '.join(claim.holds)} scale{'s' * (len(claim.holds) > 1)}")
    rows = load_rows(measure.notebook)
    if rows is None:
        raise LookupError(f"{measure.notebook} has not run")
    if absent := _models_left_out(measure, scale) - {row.model for row in rows}:
        raise LookupError(f"{measure.notebook} leaves {' and '.join(sorted(absent))} out at this scale")
    own = _metric_by_seed(rows, measure, measure.model)
    if measure.against is None:
        return [100 * value for value in own.values()]
    other = _metric_by_seed(rows, measure, measure.against)
    # Compared within a seed, so that what all models of a seed share cancels out.
    pairs = [(own[seed], other[seed]) for seed in own if seed in other]
    if not pairs:
        raise LookupError(f"{measure.notebook} has no seed of both {measure.model} and {measure.against}")
    if claim.unit == "points":
        return [100 * (mine - others) for mine, others in pairs]
    return [others / mine for mine, others in pairs]


def _models_left_out(measure: Measure, scale: Scale) -> set[str]:
    """Return the models of a measure whose case the notebook runs at the paper scale, but not at this one."""
    missing = _case_names(measure.notebook, "paper") - _case_names(measure.notebook, scale)
    # The names of a case's models begin with the name of the case.
    starts = tuple(f"{case} " for case in missing)
    return {model for model in (measure.model, measure.against) if model and model.startswith(starts)}


def _case_names(notebook: str, scale: Scale) -> set[str]:
    settings = cast("Settings", load_profile(notebook, profile_path(notebook, scale)))
    return set(settings.cases)


def _metric_by_seed(rows: list[_Row], measure: Measure, model: str) -> dict[int, float]:
    mine = [row for row in rows if row.model == model]
    if not mine:
        raise LookupError(f"{measure.notebook} has no model {model}")
    found = {row.seed: value for row in mine if (value := _look_up(row.model_extra or {}, measure.metric)) is not None}
    if not found:
        raise LookupError(f"{measure.notebook} has no {measure.metric} of {model}")
    return found


def _look_up(values: Mapping[str, Any], metric: str) -> float | None:
    """Return the number at a dotted path such as `metrics.per_class.ship`, or None."""
    value: Any = values
    for key in metric.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _load_rows(path: Path) -> list[_Row] | None:
    """Return all rows of a `metrics.json`; None if the notebook has not run."""
    if not path.is_file():
        return None
    try:
        found = _Metrics.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {place}: {first['msg']}") from None
    return found.models + found.measured
