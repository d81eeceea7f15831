"""What a workbench, and Algorithm 1 on it, are told once: where to start, how to prune, how to distil, when to stop."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from paperlib.training.recipe import Recipe

Share = Annotated[float, Field(gt=0.0, le=1.0)]


@dataclass(frozen=True)
class Blueprint:
    """Which detector to start from."""

    name: str
    width: float = 1.0
    depth: float = 1.0
    anchors: tuple[tuple[float, float], ...] | None = None
    weights: Path | None = None
    """Darknet file of COCO weights; none: from scratch."""
    gamma_level: float | None = None
    """Bring the scale factors of those weights to this level first (`rescale_gamma_`); none: leave them."""


@dataclass(frozen=True)
class PruningChoices:
    """What `plan_pruning` and `apply_plan` are asked for, beside how much is to go."""

    importance: str = "gamma"
    keep_floor: float = 0.1
    round_to: int = 1
    compensate: Literal["off", "bias", "exact"] = "bias"
    calibration_images: int = 64
    """Training images that `taylor` looks at."""


@dataclass(frozen=True)
class DistillationChoices:
    """lambda_c and alpha of Eqs. 10-11, tau of Eqs. 6-8."""

    soft_weight: float = 0.5
    bound_weight: float = 0.5
    temperature: float = 1.0


class Compression(BaseModel):
    """The settings of Algorithm 1, beside the recipe of the sparse training."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    step: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the original's prunable channels that goes in each iteration."""
    max_drop: Share = 0.05
    """delta: how much lower than E_0 the accuracy of a pruned model must not be."""
    target_mb: PositiveFloat | None = None
    """Stop at this size, if accuracy allows to come that far."""
    capacity: Literal["size_mb", "gmacs", "parameters"] = "size_mb"
    """What similar capacity is judged by."""
    similar: Share = 0.67
    """A model of more than this share of its larger neighbour's capacity is similar to it, and dropped as assistant."""
    keep_floor: Share = 0.1
    """Share of its original channels that every layer keeps, however often it is pruned."""
    round_to: PositiveInt = 1
    """Kept channel counts are multiples of this."""
    importance: Literal["gamma", "l1", "taylor"] = "gamma"
    compensate: Literal["off", "bias", "exact"] = "bias"
    sparsity: NonNegativeFloat = 5e-3
    """lambda of Eq. 4."""
    sparsity_method: Literal["subgradient", "proximal"] = "subgradient"
    soft_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """lambda_c of Eq. 10."""
    bound_weight: NonNegativeFloat = 0.5
    """alpha of Eq. 11."""
    temperature: PositiveFloat = 1.0
    """tau of Eqs. 6-8."""
    fine_tuning: Recipe | None = None
    """After each pruning and for each distillation; by default a quarter of the epochs at half the learning rate."""

    def fine_tuning_after(self, recipe: Recipe) -> Recipe:
        """The recipe of fine-tuning and distillation that goes with a recipe of sparse training."""
        shorter = {
            "epochs": ceil(recipe.epochs / 4),
            "learning_rate": recipe.learning_rate / 2,
            "warmup_epochs": 0.0,
        }
        return (self.fine_tuning or recipe.model_copy(update=shorter)).model_copy(update={"seed": recipe.seed})
