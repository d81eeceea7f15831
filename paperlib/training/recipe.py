"""How to train (Section 4.3), as typed settings."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from paperlib.data.augment import Augmentation


class Recipe(BaseModel):
    """How to train. The defaults are the protocol of Section 4.3 where it speaks."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    epochs: PositiveInt = 300
    batch_size: PositiveInt = 16
    image_size: Annotated[int, Field(ge=32, multiple_of=32)] = 800
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["step", "cosine"] = "step"
    """`step`: divided by 10 at 50 % and 75 % (the paper); `cosine`: down to 1 %."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs of linear warm-up."""
    weight_decay: NonNegativeFloat = 0.0
    ema: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay per step of the running mean of the weights that is validated and kept; 0: none."""
    zoom: float = Field(default=1.3, ge=1.0)
    shift: NonNegativeFloat = 0.1
    symmetries: bool = True
    colour: float = Field(default=0.3, ge=0.0, lt=1.0)
    mosaic: float = Field(default=0.0, ge=0.0, le=1.0)
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    validate_every: PositiveInt = 10
    """Epochs between validations; the last epoch is always validated."""
    seed: int = 0

    def augmentation(self) -> Augmentation:
        """The strengths of augmentation."""
        return Augmentation(self.zoom, self.shift, self.symmetries, self.colour, self.mosaic)

    def rate(self, progress: float) -> float:
        """Learning rate at `progress` epochs after the start."""
        share = progress / self.epochs
        if self.schedule == "cosine":
            factor = 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2
        else:
            factor = 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01
        if progress < self.warmup_epochs:
            factor *= max(progress, 0.01) / self.warmup_epochs
        return self.learning_rate * factor
