"""Settings of dynamic distillation (DKD)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from paperlib.distillation.imitation_methods import METHODS, ImitationOptions
from paperlib.typed_options import Fraction, Number, Options, PositiveFraction, PositiveNumber


class SelectionOptions(Options):
    """From which instances the student learns (ISD)."""

    selection: Literal["better", "correct", "all"] = "better"
    """Instances that are learned: those on which the teacher's loss is smaller than the student's, those of which the
    teacher knows the class, or all."""
    margin: Number = 0.0
    """By how much the teacher's loss must be smaller."""
    softness: PositiveNumber | None = None
    """t: instances are weighted by sigmoid((loss of the student - loss of the teacher - margin) / t) instead of
    selected."""
    split_masks: bool = False
    """Whether classes and boxes are selected apart, each by its own loss."""
    candidates: Annotated[int, Field(ge=0, le=10_000)] = 50
    """K: highest scores of the teacher per image without an object, which are instances, too; their truth is
    background."""


class HardnessOptions(Options):
    """How hard boxes are weighted (TSA)."""

    regression: Literal["status", "explicit", "bins", "smooth", "l1", "bound"] = "status"
    """Weight of a box: by its hardness over the training status, or also by its shape and size; with one status for
    all, or one per bin of size and aspect ratio. `smooth`: the smooth L1 loss whose beta is the status. Two rivals
    without any status: `l1`, the plain L1 distance, and `bound`, the squared error against the truth where it exceeds
    the teacher's (Eq. 12 of the paper on assistants), whatever `goal` says."""
    goal: Literal["teacher", "truth"] = "teacher"
    """The box that is learned."""
    power: PositiveNumber = 1.0
    """gamma: exponent of hardness over status."""
    largest: Annotated[float, Field(ge=1.0, le=1e6)] = 3.0
    """w_max: largest hardness over status, after the exponent."""
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.98
    """rho: how much of the status stays at each step."""
    aspect_gain: Number = 1.0
    """kappa_a of `explicit`: weight of elongated boxes."""
    size_gain: Number = 1.0
    """kappa_s of `explicit`: weight of small boxes."""


class DynamicOptions(SelectionOptions, HardnessOptions):
    """Settings of dynamic distillation. The defaults are all three parts."""

    feature_weight: Number = 1.0
    """lambda_g: weight of the imitation of features (GD)."""
    instance_weight: Number = 0.5
    """lambda_i: weight of the classes and objectness of instances (ISD)."""
    box_weight: Number = 2.0
    """lambda_r: weight of the boxes of instances (TSA)."""
    imitation: ImitationOptions = METHODS["gd"]
    """How features are imitated; `paperlib.distillation.imitation_methods` has the methods."""
    last_fraction: PositiveFraction | None = None
    """q at the end of training: from the imitation's fraction, q changes evenly to this one. None: it is constant."""
    temperature: PositiveNumber = 1.0
    """tau of the classes and objectness of instances."""
    warmup: Fraction = 0.1
    """Fraction of the training in which the weights grow from 0 to their values."""
