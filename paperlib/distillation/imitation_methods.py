"""Methods of imitating a teacher's features, as settings of `imitation_loss`: GD, FitNets, FGFI, DeFeat and FGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from paperlib.typed_options import Options, PositiveFraction, check_values

Weight = Annotated[float, Field(ge=0.0)]
Temperature = Annotated[float, Field(gt=0.0)]


class ImitationOptions(Options):
    """Settings of `imitation_loss`. The defaults are GD."""

    foreground: Literal["boxes", "anchors", "everywhere"] = "boxes"
    """Cells of the foreground: touched by a box, with an anchor that fits a box (FGFI), or all. The others are
    background; grey padding belongs to neither."""
    value: Literal["attention-difference", "attention", "difference", "response"] = "attention-difference"
    """By what the most valuable cells are chosen: the teacher's attention times the difference, either alone, or the
    teacher's highest class probability."""
    fraction: PositiveFraction = 0.5
    """q: fraction of the cells of each region that counts, per image."""
    foreground_weight: Weight = 1.0
    """alpha_fg: weight of the foreground."""
    background_weight: Weight = 1.0
    """alpha_bg: weight of the background."""
    temperature: Temperature | None = 0.5
    """tau of the attention; none: all cells have the same attention."""
    channel_attention: bool = False
    """Whether channels, too, are weighted by the teacher's attention."""
    normalisation: Literal["variance", "mean", "sum"] = "variance"
    """Squared differences are averaged over channels and divided by the teacher's variance, only averaged, or summed.
    With `variance` the attention is independent of the scale of the features, too."""
    balance: Literal["region", "box"] = "region"
    """A region's loss is a mean weighted by attention, or (FGD) each box and each image's background count as one,
    and the batch is averaged."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.channel_attention and self.temperature is None:
            raise ValueError("channel_attention needs a temperature")
        if self.balance == "box" and self.foreground != "boxes":
            raise ValueError(f"balance 'box' needs the foreground 'boxes', not {self.foreground!r}")
        return self


METHODS: Mapping[str, ImitationOptions] = {
    "gd": ImitationOptions(),
    # Romero et al. 2015, hint-based training: half the squared error, here its mean over all entries.
    "fitnets": ImitationOptions(
        foreground="everywhere", fraction=1, foreground_weight=0.5, background_weight=0, temperature=None,
        normalisation="mean",
    ),
    # Wang et al. 2019: summed over channels, divided by twice the number of cells near an anchor that fits.
    "fgfi": ImitationOptions(
        foreground="anchors", fraction=1, foreground_weight=0.5, background_weight=0, temperature=None,
        normalisation="sum",
    ),
    # Guo et al. 2021, with their weights 3 and 12 on VOC, each over twice the number of entries.
    "defeat": ImitationOptions(
        fraction=1, foreground_weight=1.5, background_weight=6, temperature=None, normalisation="mean"
    ),
    # Yang et al. 2022, the feature loss of focal distillation. Their attention loss and global relations are other
    # terms. They sum over levels, which is the mean times the number of levels.
    "fgd": ImitationOptions(
        fraction=1, foreground_weight=1e-3, background_weight=5e-4, channel_attention=True, normalisation="sum",
        balance="box",
    ),
}  # fmt: skip
"""Per method, the settings with which `imitation_loss` computes it, each by its own definition."""


def choose_method(name: str = "gd", **changes: Any) -> ImitationOptions:
    """Return the settings of a method in `METHODS`, with some of them changed.

    Raises:
        ValueError: one line: the method is unknown, or a setting is unknown or out of its range.
    """
    if name not in METHODS:
        raise ValueError(f"imitation {name!r} is not known; choose one of: {', '.join(METHODS)}")
    return check_values(ImitationOptions, f"imitation {name}", **{**METHODS[name].model_dump(), **changes})
