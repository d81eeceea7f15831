"""The options of `paperlib compress`: those of Algorithm 1 and of the sparse training, and what else is to be said."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from paperlib.data.annotated import BadBoxes, split_names
from paperlib.training.recipe import Decay, Precision, Recipe
from paperlib.typed_options import (
    Count,
    DepthFactor,
    DetectorName,
    Fraction,
    ImageSize,
    Number,
    PositiveNumber,
    Threads,
    WidthFactor,
)
from paperlib.workbench.options import Compression, CompressionOptions, shorten_recipe

DURATION = re.compile(r"(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?")
AnyPath = Annotated[Path, Field(strict=False)]
"""A path that may come as text."""


def _check_duration(text: str) -> str:
    parse_duration(text)
    return text


Duration = Annotated[str, AfterValidator(_check_duration)]
ClassNames = Annotated[tuple[str, ...], BeforeValidator(split_names)]


def parse_duration(text: str) -> float:
    """Return the seconds of a time such as `2h`, `90m` or `45m30s`.

    Raises:
        ValueError: it is not written so, or is 0.
    """
    found = DURATION.fullmatch(text.strip().lower())
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise ValueError("expected a time such as 2h, 90m or 45m30s")
    return float(total)


class CompressRequest(CompressionOptions, Recipe):
    """What to compress, how, and where to write the result.

    Fields of the recipe and of Algorithm 1 that stand here again have other defaults: those for a small data set.
    """

    data: AnyPath
    """Training data: a COCO file, a YOLO data.yaml, or a folder in COCO, YOLO, Pascal VOC or DOTA format (train)."""
    val: AnyPath | None = None
    """Validation data of the same classes, in any format (the split val). Default: the split val of the data."""
    test: AnyPath | None = None
    """Test data of the same classes, in any format (the split test): judged once, at the end. Default: none."""
    out: AnyPath
    """Folder to fill; the same command continues in it."""
    images: AnyPath | None = None
    """Folder of the images. Default: the folder of the training data's file."""
    val_images: AnyPath | None = None
    """Validation image folder, if different."""
    test_images: AnyPath | None = None
    """Test image folder, if different."""
    classes: ClassNames | None = None
    """Names of the classes to learn, with commas between them. Default: all that have boxes in the training data."""
    bad_boxes: BadBoxes = "error"
    """Boxes without area or outside of their image. error: refuse; clip: cut at the border; skip: leave out."""
    allow_outside: bool = False
    """Also read images outside of the folder of images, by `..`, absolute paths or symbolic links."""
    detector: DetectorName = "yolov4-tiny"
    """Name of the detector, as in `paperlib cost NAME`."""
    weights: AnyPath | None = None
    """Detector written by pl.save_detector, or Darknet weights of COCO's or the data's classes. Default: none."""
    width: WidthFactor = 1.0
    """Factor on the detector's channel counts."""
    depth: DepthFactor = 1.0
    """Factor on the numbers of its repeated blocks, where it has some."""
    epochs: Count = 60
    """Epochs of the sparse training."""
    fine_tune_epochs: Count | None = None
    """Epochs after each pruning and of each distillation. Default: a quarter of the epochs."""
    learning_rate: PositiveNumber = 1e-3
    """Learning rate of sparse training (fine-tuning uses half)."""
    fine_tune_learning_rate: PositiveNumber | None = None
    """Learning rate after each pruning and of each distillation. Default: half the learning rate."""
    image_size: ImageSize = 416
    """Side of the square that images are fitted into, in pixels."""
    round_to: Count = 8
    """Channel counts are rounded to multiples of this number."""
    sparsity: Number = 0.01
    """lambda of Eq. 4: weight of the L1 term on scale factors."""
    schedule: Literal["step", "cosine"] = "cosine"
    """Learning rate over time. step: divided by 10 at 50 % and 75 % (the paper); cosine: falls to 1 %."""
    warmup_epochs: Number = 1.0
    """Epochs of linear warm-up."""
    ema: Decay = 0.99
    """Decay per step of the running mean of the weights, which is validated and kept. 0: no such mean."""
    mosaic: Fraction = 0.5
    """Augmentation: probability that an image is put together from four."""
    precision: Precision = "auto"
    """Mixed precision. auto: bf16 on a processor or GPU that multiplies bfloat16, which is faster; no on any other."""
    validate_every: Count = 5
    """Epochs between validations; the last epoch is always validated."""
    budget: Duration | None = None
    """Time for everything, such as 2h, 90m or 1h30m. What does not fit is left out, in this order: further candidates,
    assistants, epochs of fine-tunings and of sparse training (to a third each), the last prunings."""
    seeds: Count = 1
    """Number of repetitions, each with the next seed, to measure the spread; the files hold the first student."""
    controls: bool = False
    """Also train the controls with which the student is compared."""
    licence: str = ""
    """Note on licences of data and weights, which the files of the student carry."""
    nms: bool = False
    """Include non-maximum suppression in the ONNX files."""
    threads: Threads | None = None
    """CPU threads to train with. Default: all."""
    timing_seconds: Annotated[float, Field(ge=0.01, le=3600.0)] = 2.0
    """How long each latency is measured, in seconds."""

    @model_validator(mode="after")
    def _check_budget(self) -> CompressRequest:
        if self.budget and (self.controls or self.seeds > 1):
            raise ValueError("budget goes neither with controls nor with several seeds")
        return self

    @property
    def budget_seconds(self) -> float:
        """Return the budget in seconds, infinite if there is none."""
        return parse_duration(self.budget) if self.budget else math.inf

    @property
    def recipe(self) -> Recipe:
        """Return the recipe of the sparse training, with the first seed."""
        return self.select(Recipe)

    @property
    def compression(self) -> Compression:
        """Return the options of Algorithm 1, with the recipe of fine-tuning if a part of it was chosen."""
        options = self.select(CompressionOptions).model_dump()
        chosen = {"epochs": self.fine_tune_epochs, "learning_rate": self.fine_tune_learning_rate}
        changes = {name: value for name, value in chosen.items() if value is not None}
        tuning = shorten_recipe(self.recipe).model_copy(update=changes) if changes else None
        return Compression(**options, fine_tuning=tuning)

    @property
    def trained_detector(self) -> Path | None:
        """Return `weights` if that file holds a complete detector of this package."""
        return self.weights if self.weights and self.weights.suffix == ".safetensors" else None
