"""Typed settings, what all notebooks share of them, and how plain values are checked against them.

A scale is a YAML file with these keys, never an `if` in code. Unknown keys and wrong types are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) != len(seeds):
        raise ValueError("a seed occurs twice")
    return seeds


def _ascending(ratios: list[float]) -> list[float]:
    if sorted(ratios) != ratios:
        raise ValueError("the ratios do not ascend")
    if len({f"{ratio:.0%}" for ratio in ratios}) < len(ratios):
        raise ValueError("two ratios are the same to a whole percent, by which models are named")
    return ratios


def _apart(strengths: list[float]) -> list[float]:
    if sorted(strengths) != strengths:
        raise ValueError("the strengths do not ascend")
    if len({f"{strength:g}" for strength in strengths}) < len(strengths):
        raise ValueError("two strengths are the same to six digits, by which models are named")
    return strengths


Ratio = Annotated[float, Field(gt=0.0, lt=1.0)]
Ratios = Annotated[list[Ratio], AfterValidator(_ascending)]
Chain = Annotated[Ratios, Field(min_length=2)]
Strengths = Annotated[list[Annotated[float, Field(ge=0.0)]], Field(min_length=1), AfterValidator(_apart)]
Seeds = Annotated[list[int], Field(min_length=1), AfterValidator(_distinct)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Cases = Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
Runtime = Literal["torch", "onnxruntime", "openvino"]
Checked = TypeVar("Checked", bound=BaseModel)
ONE_FOR_ALL = {"profile", "seeds", "threads", "workers", "cases"}
"""Settings that no case can have for itself."""


class Common(BaseModel):
    """What every notebook has."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    profile: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")] = "quick"
    """Names the folder of results."""

    @property
    def cores(self) -> int:
        """How many cores the notebook keeps busy."""
        return 1

    @property
    def inputs(self) -> set[tuple[str, str | None]]:
        """The data sets that are read, each with the weights that training starts from."""
        return set()


class Settings(Common):
    """What all notebooks that train share. The defaults are the `quick` scale."""

    dataset: str = "toy-aerial"
    detector: str = "yolov4-tiny"
    width: PositiveFloat = 0.25
    """Multiplies the detector's channel counts."""
    depth: PositiveFloat = 1.0
    """Multiplies the numbers of its repeated blocks, where it has some."""
    weights: str | None = None
    """Darknet file of COCO weights to start from, looked up in the weights folder; none: from scratch."""
    gamma_level: PositiveFloat | None = None
    """Bring pretrained scale factors to this level first, the function unchanged; the paper starts at 0.5."""
    anchor_scale: PositiveFloat = 0.5
    """Multiplies the detector's usual anchors, made for images of 416 pixels, where it has some."""
    image_size: Annotated[int, Field(ge=32, multiple_of=32)] = 160
    seeds: Seeds = [0]
    threads: PositiveInt = 1
    """Threads of one process; part of every result's identity, since sums depend on it."""
    workers: PositiveInt = 1
    """How many cases and seeds are trained at a time, each in a process of its own."""
    cases: Cases = {"": {}}
    """What stands side by side: by name, which the names of its models begin with, the settings that differ."""

    epochs: PositiveInt = 12
    fine_tune_epochs: PositiveInt = 2
    """Epochs after each pruning and of each distillation."""
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-2
    fine_tune_learning_rate: PositiveFloat = 1e-2
    schedule: Literal["step", "cosine"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.5
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.97
    zoom: Annotated[float, Field(ge=1.0)] = 1.1
    shift: Annotated[float, Field(ge=0.0)] = 0.05
    colour: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    mosaic: Share = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    validate_every: PositiveInt = 7

    sparsity: PositiveFloat = 5e-3
    """lambda of Eq. 4."""
    sparsity_method: Literal["subgradient", "proximal"] = "subgradient"
    keep_floor: Share = 0.1
    """Share of its channels that every layer keeps."""
    round_to: PositiveInt = 1
    """Kept channel counts are multiples of this."""
    compensate: Literal["off", "bias", "exact"] = "bias"

    @property
    def judged(self) -> bool:
        """Whether the models are trained, so that their accuracy means something."""
        return True

    @property
    def cores(self) -> int:
        """As many threads as run at a time."""
        return self.threads * self.workers

    @property
    def inputs(self) -> set[tuple[str, str | None]]:
        """The data sets, each with the weights that training starts from."""
        each = [self.case(name) for name in self.cases]
        return {(case.dataset, case.weights) for case in each}

    def case(self, name: str) -> Self:
        """The settings of one case.

        Raises:
            ValueError: they do not fit; one line names the case and each fault.
        """
        differing = self.cases[name]
        if fixed := ONE_FOR_ALL & differing.keys():
            raise ValueError(f"cases: {name}: all cases have the same {', '.join(sorted(fixed))}")
        return checked(type(self), f"cases: {name}", **self.model_dump() | differing | {"cases": {"": {}}})

    @model_validator(mode="after")
    def _cases_fit(self) -> Self:
        for name in self.cases if self.cases != {"": {}} else ():
            self.case(name)
        return self


def checked(kind: type[Checked], place: str = "", **values: Any) -> Checked:
    """An object of a pydantic model from plain values.

    Raises:
        ValueError: in one line, after `place`, names each key that is unknown or whose value is of the wrong type or
            range.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        known = ", ".join(kind.model_fields)
        faults = "; ".join(_fault(item, known) for item in error.errors())
        raise ValueError(f"{place}: {faults}" if place else faults) from None


def _fault(item: dict[str, Any], known: str) -> str:
    if not item["loc"]:
        return item["msg"].removeprefix("Value error, ")
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r} (known: {known})"
    return f"{key}: {item['msg'].removeprefix('Value error, ')} (found {item['input']!r})"
