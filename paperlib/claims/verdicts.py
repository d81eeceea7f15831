"""The verdict on each claim at one scale, with the interval that it rests on, or the reason why there is none.

Values come from `results/<scale>/<notebook>/metrics.json`, one for each run; two models are compared within a run. The
90 % interval of their mean (5 % error rate on each side) comes from the noise of all runs of the scale
(`paperlib.claims.noise`) and from the choice of the test images (`paperlib.evaluation.bootstrap`);
`paperlib.claims.decide` defines the words. There is no verdict from an original network that has not learned, or from
a teacher that is not better than its student already is without it. Results that do not fit their certificate are
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf
from statistics import fmean, stdev
from typing import cast, get_args

from paperlib import paths
from paperlib.claims.decide import MOST_RUNS, Question, Verdict, count_runs_needed, decide_verdict
from paperlib.claims.intervals import Interval, Widths
from paperlib.claims.rows import Row, ScaleResults
from paperlib.claims.schema import Claim, Claims, Criterion, Measure, Paper, Scale, Unit, load_claims
from paperlib.experiments.parameters import load_profile, profile_path
from paperlib.experiments.settings import Settings
from paperlib.store.results import require_scale_fits

ORIGINALS = ("baseline", "teacher", "λ = 0")
"""How the names of the uncompressed models end; they begin with the name of the case."""
METRIC_WORDS = {"map50": "mAP50", "top1": "top-1 accuracy"}
OPPOSITE = {Verdict.HOLDS: Verdict.FAILS, Verdict.OTHER_SIZE: Verdict.FAILS, Verdict.FAILS: Verdict.HOLDS}


@dataclass(frozen=True)
class ClaimResult:
    """A claim, its verdict, and the values behind it.

    Attributes:
        claim: the claim.
        verdict: the verdict on it.
        criterion: what counts as holding at this scale, if the claim is evaluated at it.
        values: one value for each run, in the claim's unit.
        half_width: half the width of the 90 % interval around their mean, in the claim's unit.
        source: what that width rests on, in a few words.
        assumed: whether the width is an assumption, because no run was repeated.
        reason: why the claim is undecided or not run, else empty.
        coco: for a claim on mAP50, COCO's mAP in its place, and how that would be decided.
        paper: whose claim it is.
    """

    claim: Claim
    verdict: Verdict
    criterion: Criterion | None = None
    values: tuple[float, ...] = ()
    half_width: float = 0.0
    source: str = ""
    assumed: bool = False
    reason: str = ""
    coco: tuple[Interval, Verdict] | None = None
    paper: Paper = field(default_factory=lambda: Paper(title="the paper"))

    @property
    def mean(self) -> float:
        """Return the mean over the runs."""
        return fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Return the sample standard deviation over the runs; None for a single run."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float]:
        """Return the bounds between which the claim holds, both excluded; infinite where there is none."""
        return self.criterion.interval(self.claim.reported) if self.criterion else (-inf, inf)

    @property
    def contradicted(self) -> bool:
        """Return whether COCO's mAP decides the claim the other way."""
        return self.coco is not None and OPPOSITE.get(self.verdict) is self.coco[1]


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
    results = ScaleResults(known)
    return [_evaluate_claim(claim.at_scale(known), known, results, claims) for claim in claims.claims]


def _check_scale(scale: str) -> Scale:
    for known in get_args(Scale):
        if scale == known:
            return known
    raise ValueError(f"no scale {scale}; there are {', '.join(get_args(Scale))}")


def _evaluate_claim(claim: Claim, scale: Scale, results: ScaleResults, claims: Claims) -> ClaimResult:
    criterion = claim.holds.get(scale)
    empty = ClaimResult(claim, Verdict.NOT_RUN, criterion, paper=claims.papers[claim.paper])
    try:
        measure = _require_measure(claim, scale, results)
        pairs = _find_pairs(measure, results)
        fault = _find_fault(claim, {"map50": claims.learned, "top1": claims.learned_top1}, results)
    except LookupError as error:
        return replace(empty, reason=error.args[0])
    values = tuple(_to_unit(claim.unit, mine, other) for mine, other in pairs.values())
    question = _ask(claim, criterion)
    width_at = Widths(claim.unit, measure, results, list(pairs), fmean(values), claims)
    found = width_at.describe()
    verdict = decide_verdict(question, found.mean, found.half_width)
    reason = fault
    if fault:
        verdict = Verdict.UNDECIDED
    elif verdict is Verdict.UNDECIDED:
        reason = _describe_need(count_runs_needed(question, found.mean, width_at))
    coco = _evaluate_coco(claim, question, results, list(pairs), claims)
    return replace(
        empty, verdict=verdict, values=values, half_width=found.half_width, source=found.source, assumed=found.assumed,
        reason=reason, coco=coco,
    )  # fmt: skip


def _require_measure(claim: Claim, scale: Scale, results: ScaleResults) -> Measure:
    """Return where a claim is measured. Raises LookupError with the reason if it is not, at this scale."""
    if (measure := claim.measure) is None:
        raise LookupError(claim.reason)
    if scale not in claim.holds:
        raise LookupError(f"only evaluated at the {' and '.join(claim.holds)} scale{'s' * (len(claim.holds) > 1)}")
    rows = results.load_rows(measure.notebook)
    if rows is None:
        raise LookupError(f"{measure.notebook} has not run")
    if absent := _models_left_out(measure, scale) - {row.model for row in rows}:
        raise LookupError(f"{measure.notebook} leaves {' and '.join(sorted(absent))} out at this scale")
    return measure


def _find_pairs(measure: Measure, results: ScaleResults) -> dict[int, tuple[float, float | None]]:
    """Return by seed the metric of the model and, within the same run, of the one that it is compared with."""
    own = results.find_values(measure.notebook, measure.metric, measure.model)
    if measure.against is None:
        return {seed: (value, None) for seed, value in own.items()}
    other = results.find_values(measure.notebook, measure.metric, measure.against)
    if not (pairs := {seed: (own[seed], other[seed]) for seed in own if seed in other}):
        raise LookupError(f"{measure.notebook} has no seed of both {measure.model} and {measure.against}")
    return dict(pairs)


def _to_unit(unit: Unit, mine: float, other: float | None) -> float:
    """Return a value in a claim's unit."""
    if other is None:
        return 100 * mine
    # Times smaller, cheaper or faster: the other model's value comes first.
    return 100 * (mine - other) if unit == "points" else other / mine


def _ask(claim: Claim, criterion: Criterion | None) -> Question:
    """Return what is asked of the value of a claim: the bounds of the scale, and the size that the paper reports."""
    low, high = criterion.interval(claim.reported) if criterion else (-inf, inf)
    full = claim.holds.get("paper")
    # The tolerance is that of the paper's scale; claims without one ask for a bound alone.
    tolerance = full.within if full else None
    reported = claim.reported if tolerance else None
    return Question(low, high, reported, tolerance or inf, claim.unit)


def _evaluate_coco(
    claim: Claim, question: Question, results: ScaleResults, seeds: list[int], claims: Claims
) -> tuple[Interval, Verdict] | None:
    """Decide a claim on a change of mAP50 by COCO's mAP; the bounds shrink as the metric itself does."""
    measure = claim.measure
    if measure is None or measure.metric != "map50" or claim.unit != "points" or not measure.against:
        return None
    instead = measure.model_copy(update={"metric": "map"})
    try:
        pairs = _find_pairs(instead, results)
    except LookupError:
        return None
    level = fmean(results.find_values(measure.notebook, "map", measure.against).values())
    shrink = level / max(fmean(results.find_values(measure.notebook, "map50", measure.against).values()), 1e-9)
    values = [_to_unit("points", mine, other) for mine, other in pairs.values()]
    found = Widths("points", instead, results, seeds, fmean(values), claims).describe()
    scaled = Question(question.low * shrink, question.high * shrink)
    return found, decide_verdict(scaled, found.mean, found.half_width)


def _describe_need(runs: int | None) -> str:
    if runs is None:
        return f"more than {MOST_RUNS} runs would be needed, or other test images"
    return f"about {runs} runs would decide it"


def _find_fault(claim: Claim, floors: Mapping[str, float], results: ScaleResults) -> str:
    """Return why the comparison of a claim cannot succeed; an empty text if it can."""
    if (measure := claim.measure) is None:
        return ""
    rows = results.load_rows(measure.notebook) or []
    # Sizes and times do not depend on what a network has learned.
    if claim.unit != "times" and (failed := _find_untrained(floors, rows, measure)):
        return f"the baseline has not learned ({failed})"
    if required := measure.requires:
        score, other = (_mean_map50(results, measure, name) for name in (required.model, required.than))
        if score <= other:
            return (
                f"{required.model} ({100 * score:.1f} % mAP) is not better than {required.than} ({100 * other:.1f} %)"
            )
    return ""


def _mean_map50(results: ScaleResults, measure: Measure, model: str) -> float:
    return fmean(results.find_values(measure.notebook, "map50", model).values())


def _find_untrained(floors: Mapping[str, float], rows: list[Row], measure: Measure) -> str:
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
