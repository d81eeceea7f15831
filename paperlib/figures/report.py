"""The pictures in the report of `paperlib compress`, for light and for dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paperlib.figures.method import COLOURS, PAGE_WIDTH, STYLE

GREY = "#808080"
"""Reads on light and on dark."""
LIGHT = {"text": "#1d1f23", "grid": "#e4e4e4", "page": "#ffffff"}
DARK = {"text": "#e6e6e6", "grid": "#3a3d44", "page": "#17191d"}
BEFORE, AFTER = COLOURS[4], COLOURS[5]
"""Orange and sky blue, which stand out from either page."""
NAMED_LAYERS = 40
"""With more layers than these there is no room for their names."""


@contextmanager
def theme(colours: Mapping[str, str]) -> Iterator[None]:
    """Figures made inside have these colours; figures elsewhere keep theirs."""
    text, page = colours["text"], colours["page"]
    named = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), text)
    pages = dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), page)
    with plt.rc_context({**STYLE, **named, **pages, "grid.color": colours["grid"]}):
        yield


def as_address(figure: Figure, kind: str = "svg") -> str:
    """The picture itself as an address (`data:image/...`), so that a page needs no other file; closes the figure."""
    content = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(content, format=kind, bbox_inches="tight", metadata=metadata, dpi=130)
    plt.close(figure)
    mime = {"svg": "svg+xml", "png": "png"}[kind]
    return f"data:image/{mime};base64,{base64.b64encode(content.getvalue()).decode()}"


def chain(table: pd.DataFrame, max_drop: float) -> Figure:
    """Accuracy over size: every model of the iterations, which of them taught, and the limit of Algorithm 1.

    Args:
        table: `Compressed.table`.
        max_drop: delta.
    """
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 3.2), layout="constrained")
    limit = 100 * (table["map50"].iloc[0] - max_drop)
    if limit > 0:
        axis.axhline(limit, color=GREY, linestyle="--", linewidth=1, label=r"limit, $E_0 - \delta$")
    axis.plot(table["mb"], 100 * table["map50"], color=BEFORE, linewidth=1, zorder=1)
    for role, (marker, name) in {
        "teacher": ("*", "teacher"),
        "assistant": ("o", "fine-tuned"),
        "similar": (".", "too similar: dropped"),
        "rejected": ("x", "lost too much"),
    }.items():
        rows = table[table["role"].replace("student", "assistant") == role]
        size = {"*": 13, ".": 8}.get(marker, 7)
        style = {"markersize": size, "linestyle": "", "color": BEFORE, "clip_on": False}
        if len(rows):
            axis.plot(rows["mb"], 100 * rows["map50"], marker=marker, label=name, **style)
    taught = table.dropna(subset="map50_distilled")
    if len(taught):
        axis.plot(taught["mb"], 100 * taught["map50_distilled"], "D-", color=AFTER, markersize=6, label="distilled")
    _name_members(figure, table)
    axis.set_xscale("log")
    axis.invert_xaxis()
    sizes = _apart(sorted(table["mb"], reverse=True))
    axis.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
    axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axis.margins(y=0.18)
    axis.set_ylim(bottom=max(axis.get_ylim()[0], 0))
    axis.set(xlabel="size / MB", ylabel="mAP at IoU 0.5 / %", title="Accuracy over size, on validation images")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def classes(before: Mapping[str, float], after: Mapping[str, float], boxes: Mapping[str, int]) -> Figure:
    """Average precision of each class, teacher and student.

    Args:
        before, after: AP at IoU 0.5 by class.
        boxes: how many validation boxes each is judged by.
    """
    names = list(before)
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.85, 0.3 * len(names) + 1.1), layout="constrained")
    places = np.arange(len(names))
    old, new = (100 * np.array([values[name] for name in names]) for values in (before, after))
    axis.hlines(places, old, new, color=GREY, linewidth=2)
    axis.plot(old, places, "o", color=BEFORE, label="before", clip_on=False)
    axis.plot(new, places, "D", color=AFTER, label="after", clip_on=False)
    axis.set_yticks(places, [f"{name} ({boxes[name]})" for name in names])
    axis.invert_yaxis()
    axis.set(xlabel="average precision at IoU 0.5 / %", xlim=(0, 100), title="Classes (validation boxes)")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def latency(times: pd.DataFrame) -> Figure:
    """Milliseconds an image before and after, by runtime; the thin lines span the middle half of the runs.

    Args:
        times: columns `runtime`, `model` ("before" or "after"), `median_ms`, `iqr_ms`.
    """
    runtimes = list(dict.fromkeys(times["runtime"]))
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.85, 0.55 * len(runtimes) + 1.0), layout="constrained")
    for offset, model, colour in ((-0.18, "before", BEFORE), (0.18, "after", AFTER)):
        rows = times[times["model"] == model].set_index("runtime").loc[runtimes]
        places = np.arange(len(runtimes)) + offset
        axis.barh(places, rows["median_ms"], height=0.32, color=colour, label=model)
        axis.errorbar(rows["median_ms"], places, xerr=rows["iqr_ms"] / 2, fmt="none", ecolor=GREY, elinewidth=1.2)
        for place, value in zip(places, rows["median_ms"], strict=True):
            axis.annotate(f"{value:.3g}", (value, place), (8, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks(range(len(runtimes)), runtimes)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set(xlabel="median time of one image / ms", title="Latency")
    axis.grid(visible=False, axis="y")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def channels(before: Mapping[str, int], after: Mapping[str, int]) -> Figure:
    """Channels of each prunable layer, teacher and student."""
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 2.9), layout="constrained")
    names, places = list(before), np.arange(len(before))
    axis.bar(places, list(before.values()), width=0.86, color=GREY, alpha=0.45, label="before")
    axis.bar(places, [after.get(name, 0) for name in names], width=0.86, color=AFTER, label="after")
    if len(names) <= NAMED_LAYERS:
        axis.set_xticks(places, [name.removesuffix(".conv") for name in names], rotation=60, ha="right", fontsize=7)
    else:
        axis.set_xlabel("layer, from the image on")
    axis.set(ylabel="channels", title="Channels left in each layer", xlim=(-0.7, len(names) - 0.3))
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8)
    axis.grid(visible=False, axis="x")
    return figure


def _name_members(figure: Figure, table: pd.DataFrame) -> None:
    """Write teacher, A1, A2, … and student beside the points of the chain."""
    (axis,) = figure.axes
    for number, (_, row) in enumerate(table[table["role"].isin(("teacher", "assistant", "student"))].iterrows()):
        name = f"A{number}" if row["role"] == "assistant" else row["role"]
        height = 100 * np.nanmax([row["map50"], row["map50_distilled"] or np.nan])
        axis.annotate(name, (row["mb"], height), (0, 9), textcoords="offset points", ha="center", fontsize=8)


def _apart(falling: Sequence[float], factor: float = 1.12) -> list[float]:
    """Those of falling sizes that can be written side by side."""
    shown: list[float] = []
    for size in falling:
        if not shown or shown[-1] >= factor * size:
            shown.append(size)
    return shown
