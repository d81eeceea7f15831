"""Figures in the report of `paperlib compress`, legible on light and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from paperlib.figures.style import COLOURS, MAP_LABEL, make_axes, name_rows

GREY = "#808080"
"""Legible on light and on dark."""
BEFORE, AFTER, INT8 = COLOURS[4], COLOURS[5], COLOURS[2]
"""Orange, sky blue and green, which stand out from either page."""
MAX_NAMED_LAYERS = 40
"""With more layers than these there is no room for their names."""
ROLES: dict[str, dict[str, Any]] = {
    "teacher": {"marker": "*", "markersize": 13, "label": "teacher"},
    "assistant": {"marker": "o", "markersize": 7, "label": "fine-tuned"},
    "similar": {"marker": ".", "markersize": 8, "label": "too similar: dropped"},
    "rejected": {"marker": "x", "markersize": 7, "label": "lost too much"},
}
"""Marks of the models of Algorithm 1, by role; the student is drawn like an assistant."""
BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "fontsize": 8}
"""Options of a legend on the right of the axes."""


def plot_compression_chain(table: pd.DataFrame, max_drop: float) -> Figure:
    """Plot accuracy over size: every model of the iterations, the distilled ones, and the limit of Algorithm 1.

    Args:
        table: `Compressed.table`.
        max_drop: delta of Algorithm 1, as a fraction.
    """
    figure, [axis] = make_axes(1, 3.2)
    limit = 100 * (table["map50"].iloc[0] - max_drop)
    # A negative limit rejects nothing, and would only stretch the axis.
    if limit > 0:
        axis.axhline(limit, color=GREY, linestyle="--", linewidth=1, label=r"limit, $E_0 - \delta$")
    axis.plot(table["mb"], 100 * table["map50"], color=BEFORE, linewidth=1, zorder=1)
    roles = table["role"].replace("student", "assistant")
    for role, mark in ROLES.items():
        rows = table[roles == role]
        if len(rows):
            axis.plot(rows["mb"], 100 * rows["map50"], linestyle="", color=BEFORE, clip_on=False, **mark)
    distilled = table.dropna(subset="map50_distilled")
    if len(distilled):
        axis.plot(
            distilled["mb"], 100 * distilled["map50_distilled"], "D-", color=AFTER, markersize=6, label="distilled"
        )
    _name_members(axis, table)
    axis.set_xscale("log")
    axis.invert_xaxis()
    sizes = _thin_out(sorted(table["mb"], reverse=True))
    axis.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(y=0.18)
    axis.set_ylim(bottom=max(axis.get_ylim()[0], 0))
    axis.set(xlabel="size / MB", ylabel=MAP_LABEL, title="Accuracy over size, on validation images")
    axis.legend(**BESIDE)
    return figure


def plot_class_changes(before: Mapping[str, float], after: Mapping[str, float], boxes: Mapping[str, int]) -> Figure:
    """Plot the average precision of each class, of the teacher and the student.

    Args:
        before, after: AP at IoU 0.5 by class, as fractions.
        boxes: number of validation boxes of each class.
    """
    rows = range(len(before))
    figure, [axis] = make_axes(0.85, 0.3 * len(before) + 1.1)
    old = [100 * score for score in before.values()]
    new = [100 * after[name] for name in before]
    axis.hlines(rows, old, new, color=GREY, linewidth=2)
    axis.plot(old, rows, "o", color=BEFORE, label="before", clip_on=False)
    axis.plot(new, rows, "D", color=AFTER, label="after", clip_on=False)
    name_rows(axis, [f"{name} ({boxes[name]})" for name in before])
    axis.set(xlabel="average precision at IoU 0.5 / %", xlim=(0, 100), title="Classes (validation boxes)")
    axis.legend(**BESIDE)
    return figure


def plot_latency(times: pd.DataFrame) -> Figure:
    """Plot milliseconds per image before and after, by runtime; thin lines span the middle half of the runs.

    Args:
        times: columns `runtime`, `model` ("before", "after", or "after, int8"), `median_ms`, `iqr_ms`.
    """
    runtimes = list(dict.fromkeys(times["runtime"]))
    colours = {"before": BEFORE, "after": AFTER, "after, int8": INT8}
    shown = {model: times[times["model"] == model] for model in colours if model in set(times["model"])}
    figure, [axis] = make_axes(0.85, 0.24 * len(times) + 1.0)
    taken: dict[str, int] = {}
    for model, rows in shown.items():
        places = [runtimes.index(runtime) + 0.27 * taken.get(runtime, 0) for runtime in rows["runtime"]]
        taken |= {runtime: taken.get(runtime, 0) + 1 for runtime in rows["runtime"]}
        axis.barh(places, rows["median_ms"], height=0.24, color=colours[model], label=model)
        half = rows["iqr_ms"] / 2
        axis.errorbar(rows["median_ms"], places, xerr=half, fmt="none", ecolor=GREY, elinewidth=1.2)
        # Numbers stand behind the end of the line, so that it does not cross them.
        for place, value, end in zip(places, rows["median_ms"], rows["median_ms"] + half, strict=True):
            axis.annotate(f"{value:.3g}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks([number + 0.135 * (taken[name] - 1) for number, name in enumerate(runtimes)], runtimes)
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set(xlabel="median time of one image / ms", title="Latency")
    axis.grid(visible=False, axis="y")
    axis.legend(**BESIDE)
    return figure


def plot_channel_bars(before: Mapping[str, int], after: Mapping[str, int]) -> Figure:
    """Plot the channels of each prunable layer, of the teacher and the student; `after` lacks the removed layers."""
    figure, [axis] = make_axes(1, 2.9)
    positions = np.arange(len(before))
    axis.bar(positions, list(before.values()), width=0.86, color=GREY, alpha=0.45, label="before")
    axis.bar(positions, [after.get(name, 0) for name in before], width=0.86, color=AFTER, label="after")
    if len(before) <= MAX_NAMED_LAYERS:
        axis.set_xticks(positions, [name.removesuffix(".conv") for name in before], rotation=60, ha="right", fontsize=7)
    else:
        axis.set_xlabel("layer, from the image on")
    axis.set(ylabel="channels", title="Channels left in each layer", xlim=(-0.7, len(before) - 0.3))
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8)
    axis.grid(visible=False, axis="x")
    return figure


def _name_members(axis: Axes, table: pd.DataFrame) -> None:
    """Write teacher, A1, A2, … and student beside the models of the chain."""
    members = table[table["role"].isin(("teacher", "assistant", "student"))]
    # A column of models without a distilled one holds None only.
    heights = 100 * members[["map50", "map50_distilled"]].astype(float).max(axis=1)
    for number, (role, size, height) in enumerate(zip(members["role"], members["mb"], heights, strict=True)):
        name = f"A{number}" if role == "assistant" else role
        axis.annotate(name, (size, height), (0, 9), textcoords="offset points", ha="center", fontsize=8)


def _thin_out(falling: Sequence[float], factor: float = 1.12) -> list[float]:
    """Return those of falling sizes that can be written side by side."""
    shown: list[float] = []
    for size in falling:
        if not shown or shown[-1] >= factor * size:
            shown.append(size)
    return shown
