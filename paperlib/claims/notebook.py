"""API of the notebook `99_claims`: it trains nothing, it reads the results of the other notebooks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from paperlib import paths
from paperlib.claims import scoreboard
from paperlib.claims.decide import Verdict
from paperlib.claims.schema import claims_path, load_claims
from paperlib.claims.verdicts import ClaimResult, evaluate_claims
from paperlib.experiments.study import Study
from paperlib.extras import needs_extra
from paperlib.figures.style import COLOURS, GREY, make_axes
from paperlib.store.results import digest_read, digest_results

if TYPE_CHECKING:
    from IPython.display import Markdown

MARKS: dict[Verdict, dict[str, Any]] = {
    Verdict.HOLDS: {"marker": "o", "color": COLOURS[0]},
    Verdict.OTHER_SIZE: {"marker": "^", "color": COLOURS[0], "markerfacecolor": "white"},
    Verdict.FAILS: {"marker": "X", "color": COLOURS[1]},
    Verdict.EQUAL: {"marker": "d", "color": COLOURS[3]},
    Verdict.UNDECIDED: {"marker": "s", "color": "#767676"},
}
REPORTED: dict[str, Any] = {
    "marker": "D", "markerfacecolor": "none", "markeredgecolor": "black", "linestyle": "none",
}  # fmt: skip
CRITERION: dict[str, Any] = {"color": COLOURS[2], "alpha": 0.13}
PANELS = {
    "points": "change of accuracy / percentage points",
    "times": "times smaller, cheaper, faster",
    "%": "share / %",
}
"""Label of the axis of each unit."""
LABEL_LENGTH = 88
"""Characters of a claim that fit beside the axis."""


class Review(Study):
    """The verdicts on the claims at one scale, with the same methods as any notebook's `Study`."""

    @cached_property
    def results(self) -> list[ClaimResult]:
        """Return every claim with its verdict."""
        return evaluate_claims(self.settings.profile)

    def tabulate_claims(self) -> pd.DataFrame:
        """Return every claim with its verdict, in words."""
        return scoreboard.tabulate_claims(self.results)

    def plot_verdicts(self) -> Figure:
        """Plot the measured values beside the paper's numbers."""
        return plot_verdicts(self.results)

    def write_page(self) -> Markdown:
        """Write `results/<scale>/claims.md`, and return it for display."""
        with needs_extra("notebooks"):
            from IPython.display import Markdown

        scale = self.settings.profile
        return Markdown(scoreboard.render_page(scoreboard.write_page(scale), scale, load_claims().topics))

    def prepare_run(self) -> None:
        """Check that the scale exists; there is no data to prepare."""
        # The first use evaluates all claims, and fails where the scale or its results are at fault.
        self.results  # noqa: B018

    def collect_origin(self) -> dict[str, Any]:
        """Return the digests of the results that the verdicts rest on."""
        digests = digest_results(paths.results_root() / self.settings.profile)
        return {"data_digest": digests, "seeds": [], "steps": [], "training_seconds": 0.0}

    def collect_read(self) -> dict[str, str]:
        """Return the digests of the list of claims and of the results that the verdicts rest on."""
        return digest_read(self.folder, claims_path())

    def collect_rows(self) -> dict[str, Any]:
        """Return the verdicts as they are written to `metrics.json`."""
        return {"verdicts": [_to_row(result) for result in self.results]}


def plot_verdicts(results: Sequence[ClaimResult]) -> Figure:
    """Plot every measured claim: the paper's number, ours, and the interval that decided.

    There is one panel for each unit; the marks of the verdicts differ in shape and colour.
    """
    groups: dict[str, list[ClaimResult]] = {unit: [] for unit in PANELS}
    for result in results:
        if result.values:
            groups[result.claim.unit].append(result)
    shown = {unit: rows for unit, rows in groups.items() if rows} or {"points": []}
    # The axis and its label need the space of 1.5 rows.
    heights = [len(rows) + 1.5 for rows in shown.values()]
    figure, axes = make_axes(1, 0.24 * sum(heights) + 0.6, len(shown), height_ratios=heights)
    for axis, (unit, rows) in zip(axes, shown.items(), strict=True):
        _plot_panel(axis, unit, rows)
        axis.set(xlabel=PANELS[unit])
    _add_legend(figure)
    return figure


def _plot_panel(axis: Axes, unit: str, rows: Sequence[ClaimResult]) -> None:
    if not rows:
        axis.set_title("Nothing has been measured at this scale")
    elif unit == "times":
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g} ×")
    for height, row in enumerate(rows):
        axis.errorbar(row.mean, height, xerr=row.half_width, markersize=5, capsize=2, linewidth=1, **MARKS[row.verdict])
        if row.claim.reported is not None:
            axis.plot(row.claim.reported, height, markersize=6, **REPORTED)
        # Draws nothing, but keeps the criterion in view where the measured value is far from it.
        finite = [bound for bound in row.interval if isfinite(bound)]
        axis.plot(finite, [height] * len(finite), linestyle="none")
    left, right = axis.get_xlim()
    for height, row in enumerate(rows):
        low, high = row.interval
        # An infinite bound ends at the edge of the panel.
        axis.fill_betweenx([height - 0.4, height + 0.4], max(left, low), min(right, high), linewidth=0, **CRITERION)
    axis.set_xlim(left, right)
    axis.set_yticks(range(len(rows)), [_name_claim(row) for row in rows], fontsize=6.5)
    # Reversed, so that the first claim is at the top.
    axis.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    if rows and unit == "points":
        axis.axvline(0, color=GREY, linewidth=1)


def _name_claim(result: ClaimResult) -> str:
    """Return the section and the beginning of a claim, by which the tables list it, too."""
    section = f"{result.paper.short} {result.claim.section}".strip()
    return textwrap.shorten(f"{section}: {result.claim.claim}", LABEL_LENGTH, placeholder=" …")


def _add_legend(figure: Figure) -> None:
    handles: list[Any] = [
        Line2D([], [], linewidth=1, markersize=5, label=str(verdict), **mark) for verdict, mark in MARKS.items()
    ]
    handles += [Line2D([], [], label="the paper", **REPORTED), Patch(label="criterion", **CRITERION)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def _to_row(result: ClaimResult) -> dict[str, Any]:
    return {
        "id": result.claim.id,
        "verdict": str(result.verdict),
        "reason": result.reason,
        "reported": result.claim.reported,
        "unit": result.claim.unit,
        "values": list(result.values),
        "half_width": result.half_width,
        "source": result.source,
        "coco": result.coco and {"mean": result.coco[0].mean, "half_width": result.coco[0].half_width},
        "contradicted": result.contradicted,
    }
