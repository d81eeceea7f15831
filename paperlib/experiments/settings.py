"""Typed settings: what all notebooks share of them.

A scale is a YAML file with these keys, never an `if` in code. Unknown keys and wrong types are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from paperlib.training.recipe import Decay, Precision, TrainingOptions
from paperlib.typed_options import (
    Count,
    DepthFactor,
    DetectorName,
    Fraction,
    ImageSize,
    Number,
    Options,
    PositiveNumber,
    Seed,
    Threads,
    WidthFactor,
    check_values,
    rename_old,
)
from paperlib.workbench.options import DetectorLimits, SparsityOptions, SurgeryOptions


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
Strengths = Annotated[list[Number], Field(min_length=1), AfterValidator(_apart)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
Cases = Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
Runtime = Literal["torch", "onnxruntime", "openvino"]
# A process works for one case and seed, but their number and the folder belong to the notebook.
ONE_FOR_ALL = {"profile", "seeds", "threads", "workers", "cases"}
"""Settings that no case can have for itself."""


class Common(Options):
    """What every notebook has."""

    profile: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")] = "quick"
    """Name of the scale, and of its folder of results."""

    @property
    def cores(self) -> int:
        """Return how many cores the notebook keeps busy."""
        return 1

    @property
    def inputs(self) -> set[tuple[str, str | None]]:
        """Return the data sets that are read, each with the weights that training starts from."""
        return set()


class Settings(TrainingOptions, SurgeryOptions, SparsityOptions, DetectorLimits, Common):
    """What all notebooks that train share. Fields that stand here again have other defaults at the `quick` scale."""

    dataset: str = "toy-aerial"
    """Name of the data set."""
    detector: DetectorName = "yolov4-tiny"
    """Name of the detector."""
    width: WidthFactor = 0.25
    """Factor on the detector's channel counts."""
    depth: DepthFactor = 1.0
    """Factor on the numbers of its repeated blocks, where it has some."""
    weights: str | None = None
    """Darknet file of COCO weights to start from, in the weights folder; none: from scratch."""
    coco_rows: dict[str, str] = {}
    """Classes whose outputs start from COCO weights, too, each with the class of COCO that it is like."""
    gamma_level: PositiveNumber | None = None
    """Bring pretrained scale factors to this level first, the function unchanged; the paper starts at 0.5."""
    anchor_scale: PositiveNumber = 0.5
    """Factor on the detector's usual anchors, made for images of 416 pixels, where it has some."""
    seeds: Seeds = [0]
    """Random seeds; every experiment is repeated with each."""
    seed_precisions: dict[Annotated[str, Field(pattern=r"^\d+$")], Precision] = {}
    """Another `precision` for single seeds, which were trained on other machines (see `paperlib store import`)."""
    folds: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Number of folds of the data set: the run of seed r uses fold r mod folds. None: the usual split."""
    threads: Threads = 1
    """Threads of one process; part of every result's identity, since sums depend on it."""
    workers: Threads = 1
    """How many cases and seeds are trained at a time, each in a process of its own."""
    cases: Cases = {"": {}}
    """Compared cases: the name with which the names of its models begin, and the settings that differ."""
    fine_tune_epochs: Count = 2
    """Epochs after each pruning and of each distillation."""
    fine_tune_learning_rate: PositiveNumber = 1e-2
    """Learning rate after each pruning and of each distillation."""
    fine_tune_warmup_epochs: Number = 0.0
    """Epochs of linear warm-up after each pruning and in each distillation."""

    image_size: ImageSize = 160
    epochs: Count = 12
    learning_rate: PositiveNumber = 1e-2
    schedule: Literal["step", "cosine"] = "cosine"
    warmup_epochs: Number = 0.5
    ema: Decay = 0.97
    zoom: Annotated[float, Field(ge=1.0, le=10.0)] = 1.1
    shift: Fraction = 0.05
    colour: Decay = 0.1
    validate_every: Count = 7

    @property
    def blueprint_options(self) -> dict[str, Any]:
        """Return further options of the network to build, beside those that every notebook has."""
        return {"limits": self.chosen_limits} if self.chosen_limits else {}

    @property
    def has_metrics(self) -> bool:
        """Return whether the models are trained, so that their accuracy means something."""
        return True

    @property
    def cores(self) -> int:
        """Return the number of threads that run at a time."""
        return self.threads * self.workers

    @property
    def inputs(self) -> set[tuple[str, str | None]]:
        """Return the data sets, each with the weights that training starts from."""
        cases = [self.case(name) for name in self.cases]
        return {(case.dataset, case.weights) for case in cases}

    def case(self, name: str) -> Self:
        """Return the settings of one case.

        Raises:
            ValueError: they do not fit; one line names the case and each fault.
        """
        # Under its old name a key would stand beside its present name, and both would be refused.
        differing = rename_old(type(self), self.cases[name])
        if fixed := ONE_FOR_ALL & differing.keys():
            raise ValueError(f"cases: {name}: all cases have the same {', '.join(sorted(fixed))}")
        values = self.model_dump() | differing | {"cases": {"": {}}}
        return check_values(type(self), f"cases: {name}", **values)

    @model_validator(mode="after")
    def _cases_fit(self) -> Self:
        # A case has no cases of its own: this ends the recursion.
        for name in self.cases if self.cases != {"": {}} else ():
            self.case(name)
        return self
