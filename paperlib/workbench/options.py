"""Options of pruning, distillation and Algorithm 1, defined once for notebooks and `paperlib compress`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from paperlib.distillation.dynamic_options import DynamicOptions
from paperlib.distillation.imitation_methods import choose_method
from paperlib.limits import IMPORTANCE_NAMES
from paperlib.training.recipe import Recipe
from paperlib.typed_options import Count, Fraction, Number, Options, PositiveFraction, PositiveNumber

CandidateName = Literal["direct", "dynamic", "partners"]


def _read_candidates(names: object) -> object:
    """Return the names in a text with commas between them, or in a list; `none` is an empty one."""
    if isinstance(names, str):
        return () if names.strip() == "none" else tuple(name.strip() for name in names.split(","))
    return tuple(names) if isinstance(names, list) else names


CandidateNames = Annotated[tuple[CandidateName, ...], BeforeValidator(_read_candidates)]


@dataclass(frozen=True)
class Blueprint:
    """The network to build.

    Attributes:
        name: a key of `DETECTORS` or `CLASSIFIERS`, built at `width` and `depth`.
        anchors: of a detector, in pixels (width, height); None: its usual ones.
        stem_stride: of a classifier (see `build_classifier`); None: the usual one.
        weights: a Darknet file of COCO weights; None: from scratch.
        coco_rows: classes whose outputs start from those weights, too, each with the class of COCO that it is like.
        limits: numbers that bound a detector's choices (`paperlib.detectors.LIMITS`), where they are not the usual.
        gamma_level: the level to which the scale factors of those weights are brought first; None: as they are.
    """

    name: str
    width: float = 1.0
    depth: float = 1.0
    anchors: tuple[tuple[float, float], ...] | None = None
    weights: Path | None = None
    gamma_level: float | None = None
    stem_stride: int | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    coco_rows: Mapping[str, str] = field(default_factory=dict)

    def build_options(self) -> dict[str, Any]:
        """Return what was chosen beside the name, as arguments of building."""
        options = {name: getattr(self, name) for name in ("width", "depth", "anchors", "stem_stride")} | {**self.limits}
        return {name: value for name, value in options.items() if value is not None}


class DetectorLimits(Options):
    """What bounds a detector's choices; none: the usual number, made for images of 416 pixels."""

    max_detections: Count | None = None
    """Detections of an image; usually 100."""
    match_iou: PositiveFraction | None = None
    """Of YOLOs: an anchor that is not the best is assigned to a box whose shape it overlaps by more than this; usually
    0.213; 1: only the best is, as in the official configuration of YOLOv4-tiny."""
    sampled_anchors: Count | None = None
    """Of Faster R-CNN: anchors of an image that the losses of the first stage sample; usually 64, in the paper 256."""
    sampled_regions: Count | None = None
    """Of Faster R-CNN: proposals that the losses of the second stage sample; usually 32, in the paper 512."""
    proposals: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    """Of Faster R-CNN: proposals of an image in training and in detection; usually 300, in the paper 2000 and 1000."""

    @property
    def chosen_limits(self) -> dict[str, Any]:
        """Return those that are not the usual ones."""
        values = {name: getattr(self, name) for name in DetectorLimits.model_fields}
        return {name: value for name, value in values.items() if value is not None}


class SparsityOptions(Options):
    """The L1 term on scale factors (Eq. 4)."""

    sparsity: Number = 5e-3
    """lambda of Eq. 4: weight of the L1 term on scale factors."""
    sparsity_method: Literal["subgradient", "proximal"] = "subgradient"
    """How the L1 term is minimised: by Adam (the paper) or by a proximal step after it."""


def _name_criterion(value: Any) -> Any:
    """Return the name under which a function is found again: settings are data, which a file can hold."""
    if not callable(value):
        return value
    from paperlib.pruning.criteria import find_criterion, registered_name

    known = registered_name(value)
    name = known or f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"
    with suppress(ValueError):
        if find_criterion(name) is value:
            return name
    raise ValueError(f"importance {name!r} cannot be found by that name; call register_importance and give its name")


def _check_importance(name: str) -> str:
    if name not in IMPORTANCE_NAMES:
        # Loaded only here, because the help of the command line needs no torch.
        from paperlib.pruning.criteria import find_criterion

        find_criterion(name)
    return name


ImportanceName = Annotated[str, BeforeValidator(_name_criterion), AfterValidator(_check_importance)]


class SurgeryOptions(Options):
    """What every pruned network keeps (Section 3.1)."""

    min_keep_ratio: Fraction = 0.1
    """Fraction of its original channels that every layer keeps, however often it is pruned."""
    round_to: Count = 1
    """Channel counts are rounded to multiples of this number."""
    compensate: Literal["off", "bias", "exact"] = "bias"
    """How the constant output of removed channels is moved into the next convolution."""


class PruningOptions(SurgeryOptions):
    """How channels are chosen and removed."""

    importance: ImportanceName = "gamma"
    """Criterion that ranks the channels: gamma (the paper's), l1, fused, l1-layerwise, l2-layerwise, fpgm, hrank,
    taylor, or module:function for one's own."""
    calibration_images: Count = 64
    """Training images from which the criteria taylor and hrank compute their scores."""


class DistillationOptions(Options):
    """The distillation losses (Section 3.2)."""

    soft_weight: Fraction = 0.5
    """lambda_c of Eq. 10: weight of the teacher's classification scores."""
    bound_weight: Number = 0.5
    """alpha of Eq. 11: weight of the teacher-bounded regression loss (Eq. 12)."""
    temperature: PositiveNumber = 1.0
    """tau of Eqs. 6-8."""


class PartnerOptions(Options):
    """Fine-tuning and distillation with partners (BPL)."""

    partners: bool = False
    """Fine-tune and distil with a second convolution beside each k x k one (BPL), and fuse both afterwards."""
    diversity: Literal["orthogonal", "public", "absolute", "output", "none"] = "orthogonal"
    """Loss that keeps a convolution and its partner different."""
    diversity_weight: Number = 0.01
    """Weight of that loss."""


class DynamicWeights(Options):
    """The settings of dynamic distillation (DKD) that are worth a try; `DynamicOptions` has them all."""

    gd_weight: Number = 1.0
    """lambda_g of DKD: weight of the teacher's features in valuable regions."""
    gd_fraction: PositiveFraction = 0.5
    """q of DKD: fraction of the cells of foreground and background whose features count."""
    isd_weight: Number = 0.5
    """lambda_i of DKD: weight of the classes of the instances on which the teacher is better than the student."""
    isd_candidates: Annotated[int, Field(ge=0, le=10_000)] = 50
    """K of DKD: highest scores of the teacher per image without an object, which are instances, too."""
    tsa_weight: Number = 2.0
    """lambda_r of DKD: weight of the boxes of these instances, the harder the larger."""

    def dynamic_options(self) -> DynamicOptions:
        """Return the settings of the objective."""
        imitation = choose_method("gd", fraction=self.gd_fraction)
        return DynamicOptions(
            feature_weight=self.gd_weight, instance_weight=self.isd_weight, box_weight=self.tsa_weight,
            candidates=self.isd_candidates, imitation=imitation,
        )  # fmt: skip


class TeachingOptions(DynamicWeights):
    """By which method a student is distilled."""

    distillation: Literal["bounded", "dynamic"] = "bounded"
    """Method of distillation: soft scores and a bound on boxes (Section 3.2), or dynamic distillation (DKD)."""


class IterationOptions(Options):
    """When the iterations of Algorithm 1 stop, and which of their models teach."""

    step: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Fraction of the original channels removed in each iteration."""
    max_drop: PositiveFraction = 0.05
    """delta of Algorithm 1: a model that loses this much mAP ends the iterations (0-1; 0.05 = 5 points)."""
    target_mb: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """Stop at this size in MB, if the accuracy allows it."""
    capacity: Literal["size_mb", "gmacs", "parameters"] = "size_mb"
    """Measure by which two models are compared for similar capacity."""
    similar: PositiveFraction = 0.67
    """A model with more than this fraction of its larger neighbour's capacity is similar to it, and does not teach."""


class DeliveryOptions(Options):
    """Which model is handed over."""

    pure: bool = False
    """Hand over the distilled student, as Algorithm 1 does, even where another one is more accurate; try no other."""
    candidates: CandidateNames = ("direct",)
    """Students to train beside Algorithm 1's, of which the most accurate is handed over: direct (distilled by the
    original), dynamic (by DKD), partners (with BPL); with commas between them, or none."""


class CompressionOptions(
    DeliveryOptions,
    IterationOptions,
    PartnerOptions,
    TeachingOptions,
    DistillationOptions,
    PruningOptions,
    SparsityOptions,
):
    """All options of Algorithm 1 that are not about training."""


class Compression(CompressionOptions):
    """The options of Algorithm 1, beside the recipe of the sparse training."""

    fine_tuning: Recipe | None = None
    """Recipe after each pruning and of each distillation; by default a quarter of the epochs at half the rate."""

    def fine_tuning_after(self, recipe: Recipe) -> Recipe:
        """Return the recipe of fine-tuning and distillation that belongs to a recipe of sparse training."""
        tuning = self.fine_tuning or shorten_recipe(recipe)
        return tuning.model_copy(update={"seed": recipe.seed})


def shorten_recipe(recipe: Recipe) -> Recipe:
    """Return the usual recipe of fine-tuning: a quarter of the epochs, half the learning rate, no warm-up."""
    changes = {"epochs": ceil(recipe.epochs / 4), "learning_rate": recipe.learning_rate / 2, "warmup_epochs": 0.0}
    return recipe.model_copy(update=changes)
