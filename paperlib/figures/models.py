"""Figures and tables that set detectors side by side (Sections 4.4.3 and 4.5-4.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import nn

from paperlib.evaluation.metrics import Metrics
from paperlib.figures.detections import PAGE_WIDTH
from paperlib.figures.method import COLOURS, DASHES, GREY, MARKERS, apart

NAMED_LAYERS = 30


def shares_of_the_original(table: pd.DataFrame, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """What pruned models keep of the size and the compute of their originals.

    Args:
        table: of `tables.over_seeds`.
        pairs: by label, the pruned model and its original.

    Returns:
        `model` (the label), `size_share`, `compute_share`; both in (0, 1].
    """
    cost = table.set_index("model")
    rows = [
        (label, cost["mb"][pruned] / cost["mb"][original], cost["gmacs"][pruned] / cost["gmacs"][original])
        for label, (pruned, original) in pairs.items()
    ]
    return pd.DataFrame(rows, columns=["model", "size_share", "compute_share"])


def share_bars(shares: pd.DataFrame) -> Figure:
    """Size and compute that are left of each detector (Fig. 7); `shares` is of `shares_of_the_original`."""
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.62, 0.6 * len(shares) + 1.0), layout="constrained")
    places = np.arange(len(shares))
    bars = (("size_share", "size", COLOURS[0], ""), ("compute_share", "multiply–accumulates", COLOURS[2], "//"))
    for number, (column, label, colour, hatch) in enumerate(bars):
        look = {"color": colour, "alpha": 0.75, "hatch": hatch, "edgecolor": "white", "label": label}
        drawn = axis.barh(places + 0.38 * (number - 0.5), 100 * shares[column], height=0.36, **look)
        axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=8)
    axis.set_yticks(places, shares["model"])
    axis.invert_yaxis()
    axis.set(xlabel="left of the original / %", xlim=(0, 100))
    axis.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def accuracy_over_size(frame: pd.DataFrame, *, untuned: str = "pruned") -> Figure:
    """Accuracy over size, one line per case from the uncompressed to the smallest model.

    Args:
        frame: `Study.frame`: columns `model`, `case`, `mb`, `map50`; one row per model and seed.
        untuned: models whose name says this stand as hollow marks beside the line.
    """
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.8, 3.2), layout="constrained")
    for number, (case, rows) in enumerate(frame.groupby("case", sort=False)):
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}
        means = rows.groupby("model", sort=False)[["mb", "map50"]].mean()
        hollow = means.index.str.contains(untuned)
        line = means[~hollow].sort_values("mb", ascending=False)
        label = case or "models"
        axis.plot(line["mb"], 100 * line["map50"], linestyle=DASHES[number % len(DASHES)], label=label, **look)
        axis.plot(means["mb"][hollow], 100 * means["map50"][hollow], linestyle="", markerfacecolor="white", **look)
        if (rows.groupby("model").size() > 1).any():
            kept = rows[rows["model"].isin(line.index)]
            axis.plot(kept["mb"], 100 * kept["map50"], ".", color=look["color"], markersize=3, alpha=0.6)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="size / MB", ylabel="mAP at IoU 0.5 / %", ylim=(0, 100))
    axis.legend()
    return figure


def channels_of(detectors: Mapping[str, nn.Module]) -> pd.DataFrame:
    """Output channels of every convolution: `layer`, then a column per detector; all have the first one's layers."""
    counts = {
        name: {
            layer: module.out_channels for layer, module in detector.named_modules() if isinstance(module, nn.Conv2d)
        }
        for name, detector in detectors.items()
    }
    return pd.DataFrame(counts).rename_axis("layer").reset_index()


def channels_left(channels: pd.DataFrame) -> Figure:
    """Channels of each layer, of the original (first column) as bars, of the others as lines (Figs. 10 and 12).

    Layers are named where there are at most `NAMED_LAYERS`; `channels` is of `channels_of`.
    """
    first, *others = channels.columns[1:]
    named = len(channels) <= NAMED_LAYERS
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 2.9 if named else 2.5), layout="constrained")
    places = np.arange(len(channels))
    axis.bar(places, channels[first], width=0.86 if named else 1.0, color="#dddddd", label=first)
    for number, name in enumerate(others):
        look = {"color": COLOURS[number], "linestyle": DASHES[number], "label": name}
        axis.step([-0.5, *(places + 0.5)], [channels[name].iloc[0], *channels[name]], where="pre", **look)
    axis.set(ylabel="channels", xlabel="convolution, from input to output", xlim=(-0.7, len(channels) - 0.3))
    if named:
        axis.set_xticks(places, [name.removesuffix(".conv") for name in channels["layer"]], rotation=60, ha="right")
    figure.legend(loc="outside upper left", ncols=len(others) + 1)
    axis.grid(visible=False, axis="x")
    return figure


def edge_cases(metrics: Mapping[str, Metrics]) -> Figure:
    """Average precision on each slice and under each change, a mark per detector (Fig. 13).

    Args:
        metrics: by detector, what `evaluate(..., slices=True)` gave on one data set.
    """
    parts = list(next(iter(metrics.values())).slices)
    scores = {name: [found.slices[part]["map50"] for part in parts] for name, found in metrics.items()}
    return _marks(parts, scores, "mAP at IoU 0.5 / %")


def classes(metrics: Mapping[str, Sequence[Metrics]], boxes: Mapping[str, int]) -> Figure:
    """Average precision of each class, a mark per detector: where the points of the mAP are lost.

    Args:
        metrics: by detector, one for each seed; the mark is their mean.
        boxes: how many boxes each class is judged by.
    """
    names = list(next(iter(metrics.values()))[0].per_class)
    scores = {
        name: [np.mean([each.per_class[kind] for each in found]) for kind in names] for name, found in metrics.items()
    }
    return _marks([f"{kind} ({boxes[kind]})" for kind in names], scores, "average precision at IoU 0.5 / %")


def _marks(rows: Sequence[str], scores: Mapping[str, Sequence[float]], quantity: str) -> Figure:
    """A line per row from the lowest score to the highest, with a mark per detector."""
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.85, 0.3 * len(rows) + 0.9), layout="constrained")
    shares = {name: 100 * np.asarray(values) for name, values in scores.items()}
    low, high = np.min([*shares.values()], axis=0), np.max([*shares.values()], axis=0)
    axis.hlines(range(len(rows)), low, high, color="#bbbbbb", linewidth=1.5)
    offsets = apart(len(shares), 0.22)
    for number, (name, values) in enumerate(shares.items()):
        look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 5}
        axis.plot(values, np.arange(len(rows)) + offsets[number], linestyle="", label=name, clip_on=False, **look)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set(xlabel=quantity, xlim=(0, 100))
    figure.legend(loc="outside upper left", ncols=len(shares))
    return figure


def speed_bars(table: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """How many times faster models are than their originals, per runtime, and how many times cheaper (Table 7).

    Args:
        table: result of `compute_realised_savings` with columns `model`, `runtime`, `speedup`, `macs_saved`.
        labels: the models to show, from top to bottom.
    """
    runtimes = list(dict.fromkeys(table["runtime"]))
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.8, 0.62 * len(labels) + 1.0), layout="constrained")
    height = 0.8 / len(runtimes)
    for number, runtime in enumerate(runtimes):
        rows = table[table["runtime"] == runtime].set_index("model").loc[list(labels)]
        places = np.arange(len(labels)) + height * (number - (len(runtimes) - 1) / 2)
        drawn = axis.barh(
            places, rows["speedup"], height=0.9 * height, color=COLOURS[number], alpha=0.75, label=runtime
        )
        axis.bar_label(drawn, fmt="%.1f", padding=3, fontsize=7.5)
    cheaper = 1 / (1 - table.groupby("model")["macs_saved"].first().loc[list(labels)])
    for place, value in enumerate(cheaper):
        axis.plot([value, value], [place - 0.42, place + 0.42], color=GREY, linewidth=1.5, linestyle="--")
    axis.plot([], [], color=GREY, linewidth=1.5, linestyle="--", label="fewer multiply–accumulates")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set(xlabel="times faster than the original", xlim=(0, 1.12 * max(cheaper.max(), table["speedup"].max())))
    axis.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=len(runtimes) + 1, fontsize=8)
    return figure
