"""The verdict on each claim at one scale: it holds, it does not hold, or the reason why it is undecided or not run.

Values come from `results/<scale>/<notebook>/metrics.json`, one for each seed; two models are compared within a seed. A
verdict requires that the 90 % interval of the mean lies on one side of a bound (5 % error rate, one-sided); an
interval that contains a bound leaves the claim undecided, and so does an original network that has not learned, or a
teacher that is not better than its student already is without it.
Results that do not fit their certificate are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from itertools import product
from math import inf, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from paperlib import files, paths
from paperlib.claims.schema import Claim, Claims, Criterion, Measure, Paper, Scale, load_claims
from paperlib.experiments.parameters import load_profile, profile_path
from paperlib.experiments.settings import Settings
from paperlib.store.results import METRICS, require_scale_fits

ORIGINALS = ("baseline", "teacher", "λ = 0")
"""How the names of the uncompressed models end; they begin with the name of the case."""
METRIC_WORDS = {"map50": "mAP50", "top1": "top-1 accuracy"}
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
        paper: whose claim it is.
    """

    claim: Claim
    verdict: Verdict
    criterion: Criterion | None = None
    values: tuple[float, ...] = ()
    half_width: float = 0.0
    reason: str = ""
    paper: Paper = Paper(title="the paper")

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
        ValueError: there is no such scale, a `metrics.json` is not what a notebook writes, or results do not fit their
            certificate.
    """
    known = _check_scale(scale)
    claims = claims or load_claims()
    require_scale_fits(paths.results_root() / scale)
    # Many claims read the same notebook.
    load_rows = cache(lambda notebook: _load_rows(paths.results_root() / scale / notebook / METRICS))
    return [_evaluate_claim(claim, known, load_rows, claims) for claim in claims.claims]


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
    # The bounds are excluded, so an interval that only touches one from outside lies outside.
    if mean + half_width <= low or mean - half_width >= high:
        return Verdict.FAILS, half_width
    return Verdict.UNDECIDED, half_width


def _check_scale(scale: str) -> Scale:
    for known in get_args(Scale):
        if scale == known:
            return known
    raise ValueError(f"no scale {scale}; there are {', '.join(get_args(Scale))}")


def _evaluate_claim(claim: Claim, scale: Scale, load_rows: LoadRows, claims: Claims) -> ClaimResult:
    one_seed = claims.one_seed[claim.unit]
    criterion = claim.holds.get(scale)
    paper = claims.papers[claim.paper]
    try:
        values = _compute_values(claim, scale, load_rows)
        floors = {"map50": claims.learned, "top1": claims.learned_top1}
        fault = _find_fault(claim, floors, load_rows)
    except LookupError as error:
        return ClaimResult(claim, Verdict.NOT_RUN, criterion, reason=error.args[0], paper=paper)
    # A ratio of sizes or times is trusted to a fraction of itself.
    trust = one_seed * fmean(values) if claim.unit == "times" else one_seed
    result = ClaimResult(claim, Verdict.UNDECIDED, criterion, tuple(values), paper=paper)
    verdict, half_width = decide_verdict(values, *result.interval, trust)
    reason = ""
    if verdict is Verdict.UNDECIDED:
        reason = "one seed is not enough" if len(values) == 1 else "the seeds differ too much"
    if fault:
        verdict, reason = Verdict.UNDECIDED, fault
    return replace(result, verdict=verdict, half_width=half_width, reason=reason)


def _find_fault(claim: Claim, floors: Mapping[str, float], load_rows: LoadRows) -> str:
    """Return why the comparison of a claim cannot succeed; an empty text if it can."""
    if (measure := claim.measure) is None:
        return ""
    rows = load_rows(measure.notebook) or []
    # Sizes and times do not depend on what a network has learned.
    if claim.unit != "times" and (failed := _find_untrained(floors, rows, measure)):
        return f"the baseline has not learned ({failed})"
    if required := measure.requires:
        score, other = (_mean_map50(rows, measure, name) for name in (required.model, required.than))
        if score <= other:
            return (
                f"{required.model} ({100 * score:.1f} % mAP) is not better than {required.than} ({100 * other:.1f} %)"
            )
    return ""


def _mean_map50(rows: list[_Row], measure: Measure, model: str) -> float:
    return fmean(_metric_by_seed(rows, measure.model_copy(update={"metric": "map50"}), model).values())


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
    # Times smaller, cheaper or faster: the other model's value comes first.
    return [others / mine for mine, others in pairs]


def _find_untrained(floors: Mapping[str, float], rows: list[_Row], measure: Measure) -> str:
    """Return which of the originals of the measured models stay below the floor of a metric; an empty text if none."""
    originals = {row.model for row in rows if row.model.endswith(ORIGINALS)}
    concerned = {_original_of(model, originals) for model in (measure.model, measure.against) if model}
    for row, (metric, floor) in product(rows, floors.items()):
        value = (row.model_extra or {}).get(metric)
        if row.model in concerned and isinstance(value, int | float) and value < floor:
            return f"{METRIC_WORDS[metric]} of {row.model}, seed {row.seed}, below {floor:g}"
    return ""


def _original_of(model: str, originals: set[str]) -> str | None:
    """Return the uncompressed model of the same case: of those whose case begins the model's name, the longest."""
    alike = [original for original in originals if model.startswith(_case_of(original))]
    return max(alike, key=lambda original: len(_case_of(original)), default=None)


def _case_of(original: str) -> str:
    """Return how the names of the models of an uncompressed model's case begin."""
    end = next(end for end in ORIGINALS if original.endswith(end))
    return original.removesuffix(end)


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
