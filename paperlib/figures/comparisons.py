"""Figures that compare detectors: accuracy, size, speed, classes and edge cases (Sections 4.4.1, 4.5-4.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from paperlib.evaluation.metrics import Metrics
from paperlib.figures.style import (
    COLOURS,
    DASHES,
    GREY,
    LABELS,
    MAP_LABEL,
    make_axes,
    marker_style,
    name_rows,
    offset_marks,
    plot_rows,
)
from paperlib.figures.tables import average_by

NEAR = 20.0
"""Largest change of mAP in points that is drawn to scale; a larger one would squeeze all others."""


def plot_components(
    runs: pd.DataFrame, models: Sequence[str], reported: Mapping[str, float], metric: str = "map50"
) -> Figure:
    """Plot the accuracy of each row of Table 1, and its distance from the first row, seed by seed.

    Args:
        runs: columns `model`, `seed`, `mb` and that of the metric; one row per model and seed.
        models: rows from top to bottom. A row further than `NEAR` points away is only a number in the right panel.
        reported: by model, the paper's change to its first row in points.
        metric: `map50` of detectors or `top1` of classifiers.
    """
    height = 0.32 * len(models) + 0.9
    figure, (left, right) = make_axes(1, height, columns=2, sharey=True, width_ratios=(3, 4))
    accuracy = 100 * runs.pivot(index="seed", columns="model", values=metric)[[*models]]
    megabytes = average_by(runs, "model", ["mb"])["mb"]
    for row, (name, mean) in enumerate(accuracy.mean().items()):
        left.barh(row, mean, height=0.62, color=COLOURS[0], alpha=0.3)
        _write_note(left, 0, row, f"{mean:.1f}   ({megabytes[name]:.2f} MB)")
    left.set_yticks(range(len(models)), models)
    left.set(xlabel=LABELS[metric], xlim=(0, 100), ylim=(len(models) - 0.5, -0.5))
    _plot_changes(right, pd.DataFrame(accuracy.sub(accuracy[models[0]], axis=0)), reported)
    handles, labels = right.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))  # each label once, though every row has drawn it
    figure.legend(entries.values(), entries.keys(), loc="outside upper right", ncols=len(entries))
    for axis in (left, right):
        axis.grid(visible=False, axis="y")
    return figure


def compute_shares(table: pd.DataFrame, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Compute which fractions of the size and the compute of their originals pruned models keep.

    Args:
        table: result of `tables.average_seeds`.
        pairs: by label, the pruned model and its original.

    Returns:
        `model` (the label), `size_share`, `compute_share`; both in (0, 1].
    """
    cost = table.set_index("model")[["mb", "gmacs"]]
    rows = [(label, *(cost.loc[pruned] / cost.loc[original])) for label, (pruned, original) in pairs.items()]
    return pd.DataFrame(rows, columns=["model", "size_share", "compute_share"])


def plot_share_bars(shares: pd.DataFrame) -> Figure:
    """Plot size and compute that are left of each detector (Fig. 7).

    Args:
        shares: result of `compute_shares`.
    """
    figure, [axis] = make_axes(0.62, 0.6 * len(shares) + 1.0)
    rows = np.arange(len(shares))
    bars = (("size_share", "size", COLOURS[0], ""), ("compute_share", "multiply–accumulates", COLOURS[2], "//"))
    for number, (column, label, colour, hatch) in enumerate(bars):
        look = {"color": colour, "alpha": 0.75, "hatch": hatch, "edgecolor": "white", "label": label}
        drawn = axis.barh(rows + 0.38 * (number - 0.5), 100 * shares[column], height=0.36, **look)
        axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=8)
    name_rows(axis, shares["model"].tolist())
    axis.set(xlabel="left of the original / %", xlim=(0, 100))
    axis.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def plot_accuracy_over_size(frame: pd.DataFrame, *, untuned: str = "pruned") -> Figure:
    """Plot accuracy over size, one line per case from the uncompressed to the smallest model.

    Args:
        frame: result of `Study.frame`: columns `model`, `case`, `mb`, `map50`; one row per model and seed.
        untuned: models with this in their names are hollow marks beside the line.
    """
    figure, [axis] = make_axes(0.8, 3.2)
    for number, (case, rows) in enumerate(frame.groupby("case", sort=False)):
        style = marker_style(number)
        means = average_by(rows, "model", ["mb", "map50"])
        hollow = means.index.str.contains(untuned)
        line = pd.DataFrame(means[~hollow]).sort_values("mb", ascending=False)
        beside = means[hollow]
        dashes = DASHES[number % len(DASHES)]
        axis.plot(line["mb"], 100 * line["map50"], linestyle=dashes, label=case or "models", **style)
        axis.plot(beside["mb"], 100 * beside["map50"], linestyle="", markerfacecolor="white", **style)
        if rows["model"].duplicated().any():
            tuned = rows[rows["model"].isin(list(line.index))]
            axis.plot(tuned["mb"], 100 * tuned["map50"], ".", color=style["color"], markersize=3, alpha=0.6)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="size / MB", ylabel=MAP_LABEL, ylim=(0, 100))
    axis.legend()
    return figure


def plot_edge_cases(metrics: Mapping[str, Metrics]) -> Figure:
    """Plot average precision on each slice and under each corruption, one mark per detector (Fig. 13).

    Args:
        metrics: by detector, the result of `evaluate(..., slices=True)` on one data set.
    """
    parts = list(next(iter(metrics.values())).slices)
    scores = {name: [found.slices[part]["map50"] for part in parts] for name, found in metrics.items()}
    return _plot_marks(parts, scores, MAP_LABEL)


def plot_class_scores(metrics: Mapping[str, Sequence[Metrics]], boxes: Mapping[str, int]) -> Figure:
    """Plot the average precision of each class, one mark per detector: which classes lose points of the mAP.

    Args:
        metrics: by detector, one for each seed; the mark is their mean.
        boxes: number of ground-truth boxes of each class.
    """
    classes = list(next(iter(metrics.values()))[0].per_class)
    scores = {}
    for name, found in metrics.items():
        scores[name] = [fmean(each.per_class[kind] for each in found) for kind in classes]
    return _plot_marks([f"{kind} ({boxes[kind]})" for kind in classes], scores, "average precision at IoU 0.5 / %")


def plot_speed_bars(table: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """Plot how many times faster models are than their originals, per runtime, and how many times cheaper (Table 7).

    Args:
        table: result of `compute_realised_savings` with columns `model`, `runtime`, `precision`, `speedup`,
            `macs_saved`.
        labels: models to show, from top to bottom.
    """
    kinds = list(dict.fromkeys(zip(table["runtime"], table["precision"], strict=True)))
    runtimes = list(dict.fromkeys(runtime for runtime, _ in kinds))
    figure, [axis] = make_axes(0.8, (0.14 * len(kinds) + 0.2) * len(labels) + 1.2)
    height = 0.8 / len(kinds)
    for number, (runtime, precision) in enumerate(kinds):
        chosen = (table["runtime"] == runtime) & (table["precision"] == precision)
        speedup = table[chosen].set_index("model")["speedup"].loc[list(labels)]
        rows = np.arange(len(labels)) + height * (number - (len(kinds) - 1) / 2)
        # A runtime keeps its colour; a lower precision is hatched.
        plain = precision == "float32"
        look = {"color": COLOURS[runtimes.index(runtime)], "alpha": 0.75, "hatch": None if plain else "////"}
        label = runtime if plain else f"{runtime}, {precision}"
        drawn = axis.barh(rows, speedup, height=0.9 * height, edgecolor="white", linewidth=0, label=label, **look)
        # A number has a background of its own, so that no line runs through it.
        axis.bar_label(drawn, fmt="%.1f", padding=3, fontsize=7.5, bbox={"color": "white", "pad": 0.6}, zorder=4)
    cheaper = 1 / (1 - table.groupby("model")["macs_saved"].first().loc[list(labels)])
    dashed = {"color": GREY, "linewidth": 1.5, "linestyle": "--"}
    for row, value in enumerate(cheaper):
        axis.plot([value, value], [row - 0.42, row + 0.42], **dashed)
    axis.plot([], [], label="fewer multiply–accumulates", **dashed)
    axis.axvline(1, color="black", linewidth=0.8)
    name_rows(axis, labels)
    fastest = table.loc[table["model"].isin(labels), "speedup"].max()
    axis.set(xlabel="times faster than the original in float32", xlim=(0, 1.12 * max(cheaper.max(), fastest)))
    axis.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=3, fontsize=8)
    return figure


def _plot_changes(axis: Axes, changes: pd.DataFrame, reported: Mapping[str, float]) -> None:
    """Plot differences from the first column in points: one row per column, with its seeds; the paper's beside."""
    near = changes.loc[:, changes.mean().abs() < NEAR]
    spread = near.std().fillna(0.0)
    bars = [*(near.mean() - spread), *(near.mean() + spread)]
    seen = [-1.0, 1.0, *reported.values(), *bars, *near.to_numpy().ravel()]
    low, high = min(seen) - 0.7, max(seen) + 0.7
    # The first row is the reference, so it has no change.
    drawn = {name: changes[name].tolist() if row and name in near else [] for row, name in enumerate(changes)}
    plot_rows(axis, drawn, 0, "mean and standard deviation; small dots: seeds")
    for row, name in enumerate(changes):
        if name not in near:
            _write_note(axis, low, row, f"← {changes[name].mean():+.1f}".replace("-", "−"))
        if name in reported:
            look = {"color": GREY, "markerfacecolor": "white", "markersize": 5.5, "label": "the paper's"}
            axis.plot(reported[name], row, "D", **look)
    axis.axvline(0, color=GREY, linewidth=1)
    axis.set(xlabel=f"change to {changes.columns[0]} / points", xlim=(low, high))


def _write_note(axis: Axes, x: float, y: float, text: str) -> None:
    axis.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", fontsize=8)


def _plot_marks(rows: Sequence[str], scores: Mapping[str, Sequence[float]], quantity: str) -> Figure:
    """Plot a line per row from the lowest score (a fraction) to the highest, with one mark per detector."""
    figure, [axis] = make_axes(0.85, 0.3 * len(rows) + 0.9)
    percent = {name: 100 * np.asarray(values) for name, values in scores.items()}
    every = np.stack([*percent.values()])
    axis.hlines(range(len(rows)), every.min(0), every.max(0), color="#bbbbbb", linewidth=1.5)
    offsets = offset_marks(len(percent), 0.22)
    for number, (name, values) in enumerate(percent.items()):
        heights = np.arange(len(rows)) + offsets[number]
        axis.plot(values, heights, linestyle="", label=name, clip_on=False, **marker_style(number))
    name_rows(axis, rows)
    axis.set(xlabel=quantity, xlim=(0, 100))
    figure.legend(loc="outside upper left", ncols=len(percent))
    return figure
