"""The 90 % interval of a claim's value, as it is and as it would be with another number of runs."""

from __future__ import annotations

from dataclasses import dataclass

from paperlib.claims.noise import ImageNoise, interval_half_width
from paperlib.claims.rows import ScaleResults
from paperlib.claims.schema import Claims, Measure, Unit

BY_IMAGES = ("map50", "map", "precision", "recall", "top1")
"""Metrics that depend on which images are tested, and are resampled."""


@dataclass(frozen=True)
class Interval:
    """A mean over runs and half the width of its 90 % interval.

    Attributes:
        mean, half_width: in the claim's unit.
        source: what the width rests on, in a few words.
        assumed: whether no run was repeated, so that the width is an assumption.
    """

    mean: float
    half_width: float
    source: str
    assumed: bool = False


class Widths:
    """Half the width of the interval around a mean over runs, for any number of runs.

    Args:
        unit: the claim's.
        measure: where its value comes from.
        results: those of the scale.
        seeds: of the runs that there are.
        mean: over them, in the claim's unit.
        claims: the list, for what is assumed where no run was repeated.
    """

    def __init__(
        self, unit: Unit, measure: Measure, results: ScaleResults, seeds: list[int], mean: float, claims: Claims
    ) -> None:
        self.mean, self.runs, relative = mean, len(seeds), unit == "times"
        models = tuple(model for model in (measure.model, measure.against) if model)
        self.noise = results.noise(measure.metric, measure.against is not None, relative)
        self.by_images = measure.metric in BY_IMAGES
        self.images = ImageNoise()
        if self.by_images:
            self.images = results.find_images(measure.notebook, measure.metric, models, seeds)
        self.assumed = claims.assumed_width(unit, measure.metric)
        # Metrics are fractions, values percent; the noise of a ratio is a fraction of the ratio.
        self.scale = mean if relative else 100
        self.assumed_scale = mean if relative else 1

    def __call__(self, runs: int) -> float:
        """Return the half-width for a number of runs."""
        if self.noise is None:
            return self.assumed_scale * self.assumed / runs**0.5
        return self.scale * interval_half_width(self.noise, runs, self.images)

    def describe(self) -> Interval:
        """Return the interval of the runs that there are, and what it rests on."""
        if self.noise is None:
            return Interval(self.mean, self(self.runs), "assumed: no run was repeated", assumed=True)
        source = f"pooled noise, {self.noise.freedom} degrees of freedom"
        if self.by_images:
            source += ", images resampled" if self.images.variance or self.images.folds else ", images not resampled"
        return Interval(self.mean, self(self.runs), source)
