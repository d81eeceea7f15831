"""The claims of the papers: what a paper reports, where we measure it, what counts as holding.

The list is `notebooks/claims.yaml`; `paperlib.claims.verdicts` evaluates it.
"""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from paperlib import files, paths

Scale = Literal["quick", "laptop", "paper"]
Unit = Literal["points", "%", "times"]
FIRST_PAPER = "takd"
"""The paper that this project accompanies: claims are its claims unless they name another."""
COMPARES = {"points": True, "%": False, "times": True}
"""Whether a value in this unit compares two models."""


class _Entry(BaseModel):
    # An infinite or undefined number in the YAML file would be a criterion that never decides.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Paper(_Entry):
    """One of the papers whose claims are listed."""

    title: str
    """How the paper is cited."""
    short: str = ""
    """What its sections are called by in tables; empty for the paper that this project accompanies."""
    has_numbers: bool = True
    """Whether any of its numbers is public."""


class Comparison(_Entry):
    """A model that must be more accurate than another, or else a claim about what it teaches has no verdict."""

    model: str
    than: str


class Measure(_Entry):
    """The source of a claim's value: a metric of one model of a notebook, alone or against another model.

    The rows are in `results/<scale>/<notebook>/metrics.json`, under `models` and `measured`.
    """

    notebook: str
    metric: str
    """A path in the model's row, such as `map50` or `metrics.per_class.ship`."""
    model: str
    against: str | None = None
    requires: Comparison | None = None
    """What must be true, in the mean over the seeds of mAP50, for the comparison to be able to succeed."""


class Criterion(_Entry):
    """What counts as holding; all bounds that are set must be met."""

    above: float = -inf
    below: float = inf
    within: Annotated[float, Field(gt=0)] | None = None
    """Largest distance from the paper's number."""

    def interval(self, reported: float | None) -> tuple[float, float]:
        """Return the bounds between which a claim holds, both excluded."""
        if self.within is None or reported is None:
            return self.above, self.below
        return max(self.above, reported - self.within), min(self.below, reported + self.within)

    def __str__(self) -> str:
        bounds = [f"> {self.above:g}"] if self.above > -inf else []
        bounds += [f"< {self.below:g}"] if self.below < inf else []
        bounds += [f"the paper's ± {self.within:g}"] if self.within else []
        return ", ".join(bounds)


class Claim(_Entry):
    """One quantitative claim of a paper."""

    paper: str = FIRST_PAPER
    """The paper, a key of `Claims.papers`."""
    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    section: str
    claim: str
    """The claim in our words."""
    reported: float | None = None
    """The paper's number, in the claim's unit; None where the paper only names a direction."""
    unit: Unit
    measure: Measure | None = None
    instead: dict[Scale, Measure] = {}
    """Where a scale measures the claim, if not where `measure` says."""
    holds: dict[Scale, Criterion] = {}
    reason: str | None = None
    """Why it is not measured."""

    def at_scale(self, scale: Scale) -> Self:
        """Return the claim as a scale measures it."""
        return self.model_copy(update={"measure": self.instead.get(scale, self.measure)})

    @model_validator(mode="after")
    def _check(self) -> Self:
        # A claim is either measured, by a criterion, or has a reason why it is not.
        if (self.measure is None) == (self.reason is None) or (self.measure is None) != (not self.holds):
            raise ValueError("needs either measure and holds, or the reason why there are none")
        if self.measure and COMPARES[self.unit] != (self.measure.against is not None):
            raise ValueError(f"unit {self.unit} {'needs' if COMPARES[self.unit] else 'allows no'} measure.against")
        for scale, criterion in self.holds.items():
            if criterion == Criterion():
                raise ValueError(f"holds.{scale} says nothing")
            if criterion.within and self.reported is None:
                raise ValueError(f"holds.{scale} has `within`, but the claim has no reported number")
            low, high = criterion.interval(self.reported)
            if low >= high:
                raise ValueError(f"holds.{scale} can never be met")
        return self


class Topic(_Entry):
    """A question of a reader that several claims answer."""

    question: str
    sections: list[str]
    """How the sections of its claims begin."""
    paper: str = FIRST_PAPER
    headline: str
    """The id of the claim whose number answers best."""


def _check_ids(claims: list[Claim]) -> list[Claim]:
    names = [claim.id for claim in claims]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} occurs twice")
    return claims


class Claims(_Entry):
    """The whole list, and what is assumed where no run of a scale was repeated."""

    one_seed: dict[Unit, Annotated[float, Field(ge=0)]]
    """The half-width assumed for the interval of a single seed, for each unit."""
    one_seed_of: dict[str, dict[Unit, Annotated[float, Field(ge=0)]]] = {}
    """The same for metrics whose noise is not that of mAP."""
    papers: dict[str, Paper] = {FIRST_PAPER: Paper(title="the paper")}
    topics: list[Topic] = []
    """The questions with which the page of verdicts opens."""
    learned: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The mAP50 that an original detector must reach with every seed, or else no accuracy is compared with it."""
    learned_top1: Annotated[float, Field(ge=0, le=1)] = 0.25
    """The top-1 accuracy that an original classifier must reach likewise."""
    claims: Annotated[list[Claim], AfterValidator(_check_ids)]

    def assumed_width(self, unit: Unit, metric: str) -> float:
        """Return the half-width that is assumed for a single seed."""
        return self.one_seed_of.get(metric, {}).get(unit, self.one_seed[unit])

    @model_validator(mode="after")
    def _check(self) -> Self:
        if missing := set(get_args(Unit)) - self.one_seed.keys():
            raise ValueError(f"one_seed lacks {', '.join(sorted(missing))}")
        if unknown := {claim.paper for claim in self.claims} - self.papers.keys():
            raise ValueError(f"papers lacks {', '.join(sorted(unknown))}")
        if unknown := {topic.headline for topic in self.topics} - {claim.id for claim in self.claims}:
            raise ValueError(f"topics: no claim {', '.join(sorted(unknown))}")
        return self


def claims_path() -> Path:
    """Return the path of the list of claims, beside the notebooks."""
    return paths.source_root() / "notebooks" / "claims.yaml"


def load_claims(path: Path | None = None) -> Claims:
    """Load the papers' claims from `notebooks/claims.yaml` or a file of the same form.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line that names the file, the claim and the fault.
    """
    path = path or claims_path()
    values = files.read_yaml(path)
    try:
        return Claims.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(_describe_fault(item, values) for item in error.errors())}") from None


def _describe_fault(item: ErrorDetails, values: Any) -> str:
    """Return place and fault in one line; a claim is named by its id, or by its number if it has none."""
    place: list[int | str] = list(item["loc"])
    if place[:1] == ["claims"] and isinstance(place[1], int):
        number = place[1]
        entry = values["claims"][number]
        place[:2] = [f"claim {entry.get('id', number + 1) if isinstance(entry, dict) else number + 1}"]
    where = ".".join(str(part) for part in place)
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    return ": ".join(part for part in (where, item["msg"].removeprefix("Value error, ")) if part)
