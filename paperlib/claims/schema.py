"""The paper's claims, each once: what it reports, where it is measured, what counts as holding.

The list is `notebooks/claims.yaml`; `paperlib.claims.verdicts` judges it.
"""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from paperlib import files, paths

Scale = Literal["quick", "laptop", "paper"]
Unit = Literal["points", "%", "times"]
COMPARES = {"points": True, "%": False, "times": True}
"""Whether a unit is that of a comparison between two models."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Measure(_Entry):
    """Where a claim's number comes from: a metric of one model of a notebook, alone or against another's.

    Rows stand in `results/<scale>/<notebook>/metrics.json`, under `models` and, what else was measured, `measured`.
    """

    notebook: str
    metric: str
    """A place in the model's row, such as `map50` or `metrics.per_class.ship`."""
    model: str
    against: str | None = None


class Bounds(_Entry):
    """What counts as holding; of several bounds, all."""

    above: float = -inf
    below: float = inf
    within: Annotated[float, Field(gt=0)] | None = None
    """At most so far from what the paper reports."""

    def interval(self, reported: float | None) -> tuple[float, float]:
        """Between which numbers a claim holds, both excluded."""
        if self.within is None:
            return self.above, self.below
        return max(self.above, reported - self.within), min(self.below, reported + self.within)

    def __str__(self) -> str:
        bounds = [f"> {self.above:g}"] if self.above > -inf else []
        bounds += [f"< {self.below:g}"] if self.below < inf else []
        bounds += [f"the paper's ± {self.within:g}"] if self.within else []
        return ", ".join(bounds)


class Claim(_Entry):
    """One quantitative claim of the paper."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    section: str
    claim: str
    """In our words."""
    reported: float | None = None
    """The paper's number, in the claim's unit; none where it only names a direction."""
    unit: Unit
    measure: Measure | None = None
    holds: dict[Scale, Bounds] = {}
    reason: str | None = None
    """Why it is not measured."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.measure is None) == (self.reason is None) or (self.measure is None) != (not self.holds):
            raise ValueError("needs either measure and holds, or the reason why there are none")
        if self.measure and COMPARES[self.unit] != (self.measure.against is not None):
            raise ValueError(f"unit {self.unit} {'needs' if COMPARES[self.unit] else 'allows no'} measure.against")
        for scale, bounds in self.holds.items():
            if bounds == Bounds():
                raise ValueError(f"holds.{scale} says nothing")
            if bounds.within and self.reported is None:
                raise ValueError(f"holds.{scale} is within so much of a number that is not reported")
            low, high = bounds.interval(self.reported)
            if low >= high:
                raise ValueError(f"holds.{scale} can never be met")
        return self


def _distinct(claims: list[Claim]) -> list[Claim]:
    names = [claim.id for claim in claims]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} occurs twice")
    return claims


class Claims(_Entry):
    """The whole list, and how far the value of a single seed is trusted, for each unit."""

    one_seed: dict[Unit, Annotated[float, Field(ge=0)]]
    claims: Annotated[list[Claim], AfterValidator(_distinct)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if missing := set(get_args(Unit)) - self.one_seed.keys():
            raise ValueError(f"one_seed lacks {', '.join(sorted(missing))}")
        return self


def claims_path() -> Path:
    """Where the claims are listed: beside the notebooks."""
    return paths.repository_root() / "notebooks" / "claims.yaml"


def load_claims(path: Path | None = None) -> Claims:
    """The paper's claims, from `notebooks/claims.yaml` or a file of the same form.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line that names the file, the claim and the fault.
    """
    path = path or claims_path()
    values = files.read_yaml(path)
    try:
        return Claims.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(_fault(item, values) for item in error.errors())}") from None


def _fault(item: dict[str, Any], values: Any) -> str:
    place = list(item["loc"])
    if place[:1] == ["claims"] and len(place) > 1:
        entry = values["claims"][place[1]]
        place[:2] = [f"claim {entry.get('id', place[1] + 1) if isinstance(entry, dict) else place[1] + 1}"]
    where = ".".join(str(part) for part in place)
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    return ": ".join(part for part in (where, item["msg"].removeprefix("Value error, ")) if part)
