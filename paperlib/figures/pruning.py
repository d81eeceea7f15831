"""Figures of pruning: accuracy and cost over the ratio, channels left in each layer, criteria, a cut convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

from paperlib.figures.style import (
    COLOURS,
    GREY,
    MAP_LABEL,
    MARKERS,
    STATES,
    line_style,
    make_axes,
    plot_rows,
    plot_seeds,
)
from paperlib.figures.tables import average_by
from paperlib.pruning import SensitivityScan

MAX_NAMED_LAYERS = 30
"""With more layers than these there is no room for their names."""


def plot_ratio_curves(table: pd.DataFrame, unpruned: pd.Series, baseline: float) -> Figure:
    """Plot accuracy and cost over the pruning ratio (Fig. 6).

    Args:
        table: columns `ratio`, `state` ("pruned" or "fine-tuned"), `map50`, `channels`, `mb`, `gmacs`; one row per
            seed.
        unpruned: `map50`, `channels`, `mb` and `gmacs` of the model that was pruned.
        baseline: `map50` of the model that was trained without Eq. 4.
    """
    figure, (left, right) = make_axes(1, 2.7, columns=2)
    percent = table.assign(ratio=100 * table["ratio"])
    for state, number in STATES.items():
        plot_seeds(left, pd.DataFrame(percent[percent["state"] == state]), "ratio", "map50", number, state)
    before = unpruned.astype(float).to_dict()
    left.axhline(100 * before["map50"], color=GREY, linestyle="--", linewidth=1, label="unpruned")
    left.axhline(100 * baseline, color=GREY, linestyle=":", linewidth=1.4, label="trained without Eq. 4")
    left.set(xlabel="pruning ratio / %", ylabel=MAP_LABEL, title="Accuracy", ylim=(0, 100))
    columns = {"channels": "channels", "gmacs": "multiply–accumulates", "mb": "size"}
    cost = average_by(table, "ratio", [*columns], sort=True)
    for marker, (column, name) in zip(MARKERS, columns.items(), strict=False):
        right.plot(100 * cost.index, 100 * cost[column] / before[column], marker=marker, markersize=4, label=name)
    right.set(xlabel="pruning ratio / %", ylabel="left of the unpruned / %", title="Cost", ylim=(0, 100))
    for axis in (left, right):
        axis.legend()
    return figure


def plot_sensitivity(scan: SensitivityScan, drop: float) -> Figure:
    """Plot the score without fine-tuning over the pruning ratio, and the safe ratio for a loss of `drop`."""
    figure, [axis] = make_axes(0.62, 2.6)
    safe = scan.safe_ratio(drop)
    points = scan.table
    axis.plot(points["ratio"] * 100, points["score"], marker="o", markersize=4, label="pruned", clip_on=False)
    axis.axhline(scan.baseline, color=GREY, linestyle="--", linewidth=1, label="unpruned")
    axis.axhspan(scan.baseline - drop, scan.baseline, color=GREY, alpha=0.1, linewidth=0, label=f"drop {drop:g}")
    axis.axvline(safe * 100, color=COLOURS[2], linewidth=1, label=f"safe: {100 * safe:.3g} %")
    axis.set(xlabel="channels pruned / %", ylabel="score", title="Before fine-tuning", xlim=(0, 100))
    axis.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


def plot_criteria(runs: pd.DataFrame, models: Sequence[str], references: Sequence[str]) -> Figure:
    """Plot the accuracy of a detector pruned by each criterion, before and after fine-tuning (Table 5).

    Args:
        runs: columns `model`, `mb`, `map50`, one row per seed; `<model> pruned` is a model before fine-tuning.
        models: the fine-tuned models.
        references: models that were not pruned, drawn as lines.
    """
    figure, [axis] = make_axes(0.8, 0.36 * len(models) + 1.2)
    accuracy = {name: (100 * rows["map50"]).tolist() for name, rows in runs.groupby("model")}
    states = {"pruned": {name: accuracy[f"{name} pruned"] for name in models}}
    states["fine-tuned"] = {name: accuracy[name] for name in models}
    for row, name in enumerate(models):
        ends = [fmean(values[name]) for values in states.values()]
        axis.plot(ends, [row - 0.16, row + 0.16], color=GREY, linestyle="-", linewidth=1)
    for (state, values), shift in zip(states.items(), (-0.16, 0.16), strict=True):
        plot_rows(axis, values, STATES[state], state, shift)
    for number, name in enumerate(references, 2):
        axis.axvline(fmean(accuracy[name]), linewidth=1, label=name, **line_style(number))
    size = average_by(runs, "model", ["mb"])["mb"]
    axis.set_yticks(range(len(models)), [f"{name}  ({size[name]:.2f} MB)" for name in models])
    label = f"{MAP_LABEL}   (bars: standard deviation, dots: seeds)"
    axis.set(xlabel=label, xlim=(0, 100), ylim=(len(models) - 0.5, -0.5))
    axis.grid(visible=False, axis="y")
    axis.legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, columnspacing=1.2, handlelength=1.5)
    return figure


def plot_kernel_surgery(
    before: Tensor, after: Tensor, kept_inputs: Sequence[int], kept_outputs: Sequence[int]
) -> Figure:
    """Plot the kernels of a convolution before and after pruning: what is removed, and what is left (Fig. 2).

    Args:
        before, after: weights `[outputs, inputs, k, k]`.
        kept_inputs, kept_outputs: indices of the channels that stay.
    """
    figure, axes = make_axes(0.75, 2.9, columns=2, sharex=True, sharey=True)
    top = float(before.abs().sum((2, 3)).max())
    for axis, weight, name in zip(axes, (before, after), ("before", "after"), strict=True):
        axis.imshow(weight.abs().sum((2, 3)).numpy(), cmap="Greys", vmin=0, vmax=top)
        axis.set(xlabel="input channel", title=f"{name}: {weight.shape[0]} × {weight.shape[1]} kernels")
        axis.grid(visible=False)
    removed = np.ones(before.shape[:2], dtype=bool)
    # A kernel stays if both its input channel and its output channel stay.
    removed[np.ix_(kept_outputs, kept_inputs)] = False
    veil = to_rgba("#F8D3B8", 0.85)
    axes[0].imshow(np.where(removed[..., None], veil, (0, 0, 0, 0)))
    # Both panels have one scale: the area that was removed stays white on the right.
    outputs, inputs = removed.shape
    axes[0].set(ylabel="output channel", xlim=(-0.5, inputs - 0.5), ylim=(outputs - 0.5, -0.5))
    axes[1].legend(handles=[Patch(color=veil, label="cut out")], loc="lower right")
    return figure


def count_channels(detectors: Mapping[str, nn.Module]) -> pd.DataFrame:
    """Return the output channels of every convolution: `layer`, then a column per detector; all share their layers."""
    counts = {}
    for name, detector in detectors.items():
        convolutions = {layer: module for layer, module in detector.named_modules() if isinstance(module, nn.Conv2d)}
        counts[name] = {layer: module.out_channels for layer, module in convolutions.items()}
    return pd.DataFrame(counts).rename_axis("layer").reset_index()


def plot_channels_left(channels: pd.DataFrame) -> Figure:
    """Plot the channels of each layer, of the original as bars, of the others as lines (Figs. 10 and 12).

    Layers are named where there are at most `MAX_NAMED_LAYERS`.

    Args:
        channels: result of `count_channels`; the first detector is the original.
    """
    original, *others = channels.columns[1:]
    named = len(channels) <= MAX_NAMED_LAYERS
    names = [name.removesuffix(".conv") for name in channels["layer"]]
    # Long names, which stand below the axes, need height of their own.
    figure, [axis] = make_axes(1, 2.2 + 0.055 * max(map(len, names)) if named else 2.5)
    positions = np.arange(len(channels))
    axis.bar(positions, channels[original], width=0.86 if named else 1.0, color="#dddddd", label=original)
    for number, name in enumerate(others):
        # One more point on the left, so that the first layer is drawn as wide as the others.
        edges, heights = [-0.5, *(positions + 0.5)], [channels[name].iloc[0], *channels[name]]
        axis.step(edges, heights, where="pre", label=name, **line_style(number))
    axis.set(ylabel="channels", xlabel="convolution, from input to output", xlim=(-0.7, len(channels) - 0.3))
    if named:
        axis.set_xticks(positions, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7.5)
    figure.legend(loc="outside upper left", ncols=len(others) + 1)
    axis.grid(visible=False, axis="x")
    return figure
