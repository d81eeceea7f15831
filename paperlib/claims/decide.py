"""Which of the five words a measured interval deserves, and how many runs an undecided claim would need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import inf

MARGIN = 1.0
"""Percentage points within which two models count as equal."""
MOST_RUNS = 999
NO_EFFECT = {"points": 0.0, "times": 1.0}
"""The value of a comparison in each unit if both models are equal."""


class Verdict(StrEnum):
    """The verdict on a claim."""

    HOLDS = "holds"
    OTHER_SIZE = "same direction, other size"
    FAILS = "does not hold"
    EQUAL = "no difference within ± 1 point"
    UNDECIDED = "undecided"
    NOT_RUN = "not run at this scale"


@dataclass(frozen=True)
class Question:
    """What is asked of a value.

    Attributes:
        low, high: the claim holds between these bounds, both excluded; either may be infinite.
        reported: the paper's number, if its size is asked for, too.
        tolerance: how far the mean may lie from that number.
        unit: of all of them.
    """

    low: float = -inf
    high: float = inf
    reported: float | None = None
    tolerance: float = inf
    unit: str = "points"

    @property
    def asks_difference(self) -> bool:
        """Return whether the claim says that two models differ, so that they may turn out to be equal."""
        return self.unit == "points" and not self.low < 0 < self.high

    def same_direction(self, left: float, right: float) -> bool:
        """Return whether an interval lies on the paper's side of no effect."""
        if self.reported is None or self.unit not in NO_EFFECT:
            return False
        side = self.reported - NO_EFFECT[self.unit]
        return min(side * (left - NO_EFFECT[self.unit]), side * (right - NO_EFFECT[self.unit])) > 0


def decide_verdict(question: Question, mean: float, half_width: float) -> Verdict:
    """Return the word for a mean and its interval.

    *Holds*: the interval lies within the bounds, and the mean within the tolerance of the paper's number. *Same
    direction, other size*: only the direction is certain. *No difference*: the interval lies within ± 1 point. *Does
    not hold*: it lies outside the bounds. *Undecided*: none of these.
    """
    left, right = mean - half_width, mean + half_width
    if question.low < left and right < question.high:
        near = question.reported is None or abs(mean - question.reported) <= question.tolerance
        return Verdict.HOLDS if near else Verdict.OTHER_SIZE
    if question.asks_difference and -MARGIN < left and right < MARGIN:
        return Verdict.EQUAL
    # The bounds are excluded, so an interval that only touches one from outside lies outside.
    if right <= question.low or left >= question.high:
        return Verdict.OTHER_SIZE if question.same_direction(left, right) else Verdict.FAILS
    return Verdict.UNDECIDED


def count_runs_needed(question: Question, mean: float, width_at: Callable[[int], float]) -> int | None:
    """Return how many runs would decide a claim if the mean stayed as it is; None if more than `MOST_RUNS`.

    Args:
        question: what is asked.
        mean: of the runs so far.
        width_at: returns the half-width of the interval for a number of runs.
    """
    runs = (
        number
        for number in range(2, MOST_RUNS + 1)
        if decide_verdict(question, mean, width_at(number)) is not Verdict.UNDECIDED
    )
    return next(runs, None)
