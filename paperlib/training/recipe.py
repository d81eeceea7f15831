"""How to train (Section 4.3), as typed options."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from paperlib.typed_options import Count, Fraction, ImageSize, Number, Options, PositiveNumber, Seed

if TYPE_CHECKING:
    from paperlib.data.augment import Augmentation

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Precision = Literal["no", "bf16", "fp16", "auto"]


class TrainingOptions(Options):
    """How to train, whatever the seed. The defaults are the protocol of Section 4.3 where it speaks."""

    epochs: Count = 300
    """Number of epochs."""
    batch_size: Count = 16
    """Images in a batch."""
    image_size: ImageSize = 800
    """Side of the square that images are fitted into, in pixels."""
    learning_rate: PositiveNumber = 1e-3
    """Learning rate of Adam."""
    schedule: Literal["step", "cosine"] = "step"
    """Learning rate over time. step: divided by 10 at 50 % and 75 % (the paper); cosine: falls to 1 %."""
    warmup_epochs: Number = 0.0
    """Epochs of linear warm-up."""
    weight_decay: Number = 0.0
    """Weight decay of Adam."""
    ema: Decay = 0.0
    """Decay per step of the running mean of the weights, which is validated and kept. 0: no such mean."""
    zoom: Annotated[float, Field(ge=1.0, le=10.0)] = 1.3
    """Augmentation: images are scaled by a factor between 1/zoom and zoom."""
    shift: Fraction = 0.1
    """Augmentation: largest shift, as a fraction of the side."""
    symmetries: bool = True
    """Augmentation: draw one of the eight flips and quarter turns."""
    colour: Decay = 0.3
    """Augmentation: largest relative change of brightness, contrast and saturation."""
    mosaic: Fraction = 0.0
    """Augmentation: probability that an image is put together from four."""
    crop_padding: bool = False
    """Train on batches of images of similar shape, without the grey that makes them squares; validation has squares."""
    repeat_below: Fraction = 0.0
    """Images of a class that less than this fraction of all images shows are drawn more often. 0: none are."""
    precision: Precision = "no"
    """Mixed precision. auto: bf16 on a processor or GPU that multiplies bfloat16, which is faster; no on any other."""
    validate_every: Count = 10
    """Epochs between validations; the last epoch is always validated."""


class Recipe(TrainingOptions):
    """How to train, with the seed. Its precision is never `auto`, because the numbers depend on which it is."""

    seed: Seed = 0
    """Random seed."""

    @field_validator("precision")
    @classmethod
    def _choose_precision(cls, precision: Precision) -> Precision:
        return fastest_precision() if precision == "auto" else precision

    def augmentation(self) -> Augmentation:
        """Return the strengths of augmentation."""
        from paperlib.data.augment import Augmentation  # it imports torch, which the help of a command can do without

        return Augmentation(self.zoom, self.shift, self.symmetries, self.colour, self.mosaic, crop=self.crop_padding)

    def rate(self, progress: float) -> float:
        """Return the learning rate at `progress` epochs after the start."""
        done = progress / self.epochs
        if self.schedule == "cosine":
            factor = 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
        else:
            factor = 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        if progress < self.warmup_epochs:
            # Not zero at the very start, where the first step would change nothing.
            factor *= max(progress, 0.01) / self.warmup_epochs
        return self.learning_rate * factor


def fastest_precision() -> Literal["no", "bf16"]:
    """Return the precision that `auto` means here: bf16 where bfloat16 is multiplied in hardware, else no."""
    import torch  # the help of a command can do without

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    found = torch.cpu.get_capabilities()
    return "bf16" if found.get("amx_bf16") or found.get("avx512_bf16") else "no"
