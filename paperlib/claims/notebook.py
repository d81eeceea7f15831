"""The hand of `99_claims`: it trains nothing, it reads what the other notebooks found."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from math import isfinite
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from paperlib import paths
from paperlib.claims import scoreboard
from paperlib.claims.verdicts import Judgement, Verdict, judge_all
from paperlib.experiments.study import Study
from paperlib.figures import style

LOOKS = {
    Verdict.HOLDS: ("o", style.COLOURS[0]),
    Verdict.FAILS: ("X", style.COLOURS[1]),
    Verdict.UNDECIDED: ("s", "#767676"),
}
PANELS = {
    "points": "change of accuracy / percentage points",
    "times": "times smaller, cheaper, faster",
    "%": "share / %",
}


class Review(Study):
    """The verdicts at the scale that the parameters name."""

    @cached_property
    def judgements(self) -> list[Judgement]:
        """A verdict on every claim."""
        return judge_all(self.settings.profile)

    def table(self) -> pd.DataFrame:
        """Every claim with its verdict, in words."""
        return scoreboard.table(self.judgements)

    def figure(self) -> Figure:
        """What was measured beside what the paper reports."""
        return verdicts_figure(self.judgements)

    def write_page(self) -> Markdown:
        """Write `results/<scale>/claims.md`, and show it."""
        return Markdown(scoreboard.page(scoreboard.write_page(self.settings.profile), self.settings.profile))

    def prepare(self) -> None:
        """Nothing but to look whether there is such a scale."""
        self.judgements  # noqa: B018

    def origin(self) -> dict[str, Any]:
        """The results that the verdicts rest on."""
        found = sorted((paths.results_root() / self.settings.profile).glob("*/metrics.json"))
        others = [path for path in found if path.parent.name != self.notebook]
        digests = {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in others}
        return {"data_digest": digests, "seeds": [], "steps": [], "training_seconds": 0.0}

    def rows(self) -> dict[str, Any]:
        """The verdicts, for programs."""
        return {"verdicts": [_row(judgement) for judgement in self.judgements]}


def verdicts_figure(judgements: Sequence[Judgement]) -> Figure:
    """Every measured claim: the paper's number, ours, and the interval that decided.

    One panel for each unit; the marks of those that hold, do not hold and are undecided differ in shape and colour.
    """
    groups = {unit: [one for one in judgements if one.values and one.claim.unit == unit] for unit in PANELS}
    groups = {unit: rows for unit, rows in groups.items() if rows} or {"points": []}
    heights = [len(rows) + 1.5 for rows in groups.values()]
    size = (style.PAGE_WIDTH, 0.24 * sum(heights) + 0.6)
    figure, axes = plt.subplots(
        len(groups), 1, figsize=size, height_ratios=heights, layout="constrained", squeeze=False
    )
    for axis, (unit, rows) in zip(axes.flat, groups.items(), strict=True):
        _panel(axis, rows)
        axis.set(xlabel=PANELS[unit])
    _legend(figure)
    return figure


def _panel(axis: Axes, rows: Sequence[Judgement]) -> None:
    if rows and rows[0].claim.unit == "times":
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g} ×")
    if not rows:
        axis.set_title("Nothing has been measured at this scale")
    for place, row in enumerate(rows):
        marker, colour = LOOKS[row.verdict]
        axis.errorbar(row.mean, place, xerr=row.reach, fmt=marker, color=colour, markersize=5, capsize=2, linewidth=1)
        if row.claim.reported is not None:
            axis.plot(row.claim.reported, place, "D", markerfacecolor="none", markeredgecolor="black", markersize=6)
        finite = [bound for bound in row.bounds.interval(row.claim.reported) if isfinite(bound)]
        # Nothing to see, but what is asked stays in view where what was measured is far from it.
        axis.plot(finite, [place] * len(finite), linestyle="none")
    left, right = axis.get_xlim()
    for place, row in enumerate(rows):
        low, high = row.bounds.interval(row.claim.reported)
        inside = [max(left, low), min(right, high)]
        axis.fill_betweenx([place - 0.4, place + 0.4], *inside, color=style.COLOURS[2], alpha=0.13, linewidth=0)
    axis.set_xlim(left, right)
    axis.set_yticks(range(len(rows)), [row.claim.id for row in rows])
    axis.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    if rows and rows[0].claim.unit == "points":
        axis.axvline(0, color=style.GREY, linewidth=1)


def _legend(figure: Figure) -> None:
    handles = [
        plt.Line2D([], [], marker=marker, color=colour, linewidth=1, markersize=5, label=str(verdict))
        for verdict, (marker, colour) in LOOKS.items()
    ]
    paper = {"marker": "D", "markerfacecolor": "none", "markeredgecolor": "black", "linewidth": 0}
    handles += [
        plt.Line2D([], [], **paper, label="the paper"),
        Patch(color=style.COLOURS[2], alpha=0.13, label="asked"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)


def _row(judgement: Judgement) -> dict[str, Any]:
    return {
        "id": judgement.claim.id,
        "verdict": str(judgement.verdict),
        "reason": judgement.reason,
        "reported": judgement.claim.reported,
        "unit": judgement.claim.unit,
        "values": list(judgement.values),
    }
