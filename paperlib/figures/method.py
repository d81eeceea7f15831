"""The companion's figures, in one style: colour-blind safe, labelled with units, on paper white."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from paperlib.distillation.assistants import bounded_regression_loss
from paperlib.figures.detections import PAGE_WIDTH, with_photographs_as_jpeg
from paperlib.figures.detections import contact_sheet as contact_sheet
from paperlib.figures.detections import detections as detections
from paperlib.pruning import SensitivityScan

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which readers with any colour vision can tell apart."""
DASHES = (
    "-",
    (0, (6, 2)),
    (0, (2, 1.2)),
    (0, (6, 2, 1.5, 2)),
    (0, (6, 1.5, 1, 1.5, 1, 1.5)),
    (0, (1, 1)),
    (0, (9, 2, 1, 2)),
)
"""With them lines are told apart in grey print, too."""
MARKERS = "os^DvPX*"
GREY = "#555555"
"""Of what others are compared with."""
NEAR = 20.0
"""Points of mAP up to which models are set side by side on one axis."""
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "axes.prop_cycle": mpl.cycler(color=COLOURS, linestyle=DASHES),
    "svg.hashsalt": "paperlib",
    "svg.fonttype": "path",
}


def use_style() -> None:
    """Make the companion's style the default of this process."""
    mpl.rcParams.update(STYLE)


def write(figure: Figure, path: Path) -> None:
    """Write a figure without a date, so that equal figures are equal files."""
    if path.suffix != ".svg":
        figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
        return
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", bbox_inches="tight", metadata={"Date": None})
    path.write_text(with_photographs_as_jpeg(drawn.getvalue()), encoding="utf-8", newline="\n")


def gamma_histogram(gammas: Mapping[str, Tensor]) -> Figure:
    """Distribution of the scale factors over the whole network (Fig. 5)."""
    top = max(float(values.quantile(0.995)) for values in gammas.values())
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.62, 2.6), layout="constrained")
    bins = np.linspace(0, top, 60)
    for number, (name, values) in enumerate(gammas.items()):
        axis.hist(values.clamp(max=top).numpy(), bins=bins, histtype="stepfilled", alpha=0.25, color=COLOURS[number])
        look = {"color": COLOURS[number], "linestyle": DASHES[number]}
        axis.hist(values.clamp(max=top).numpy(), bins=bins, histtype="step", **look, label=name)
    title = "Scale factors of all prunable channels"
    axis.set(xlabel=r"$|\gamma|$", ylabel="channels", title=title, xlim=(0, top))
    axis.legend()
    return figure


def gamma_of_layer(before: Tensor, after: Tensor, layer: str, threshold: float) -> Figure:
    """One layer's scale factors in order of size, trained without and with Eq. 4, and the pruning threshold."""
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.62, 2.4), layout="constrained")
    for values, name, marker in ((before, r"$\lambda = 0$", "o"), (after, r"$\lambda > 0$ (Eq. 4)", "s")):
        ordered = values.sort(descending=True).values.numpy()
        axis.plot(range(1, len(ordered) + 1), ordered, marker=marker, markersize=3, linewidth=1, label=name)
    axis.axhline(threshold, color=GREY, linestyle="--", linewidth=1, label="pruning threshold")
    axis.axhspan(0, threshold, color=GREY, alpha=0.1, linewidth=0)
    axis.set(xlabel="channel, in order of size", ylabel=r"$|\gamma|$", title=layer, ylim=(0, None))
    axis.legend()
    return figure


def ratio_curves(table: pd.DataFrame, unpruned: pd.Series, baseline: float) -> Figure:
    """Accuracy and cost over the pruning ratio (Fig. 6).

    Args:
        table: columns `ratio`, `state` ("pruned" or "fine-tuned"), `map50`, `channels`, `mb`, `gmacs`; one row per
            seed.
        unpruned: the same of the model that was cut.
        baseline: `map50` of the model that was trained without Eq. 4.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.7), layout="constrained")
    for number, (state, rows) in enumerate(table.groupby("state", sort=False)):
        points = rows.groupby("ratio")["map50"].agg(["mean", "min", "max"]) * 100
        left.plot(points.index * 100, points["mean"], marker=MARKERS[number], markersize=4, label=state, clip_on=False)
        left.fill_between(points.index * 100, points["min"], points["max"], alpha=0.2)
    left.axhline(unpruned["map50"] * 100, color=GREY, linestyle="--", linewidth=1, label="unpruned")
    left.axhline(baseline * 100, color=GREY, linestyle=":", linewidth=1.4, label="trained without Eq. 4")
    left.set(xlabel="pruning ratio / %", ylabel="mAP at IoU 0.5 / %", title="Accuracy", ylim=(0, 100))
    left.legend()
    columns = {"channels": "channels", "gmacs": "multiply–accumulates", "mb": "size"}
    cost = table.groupby("ratio")[[*columns]].mean()
    for marker, (column, name) in zip(MARKERS, columns.items(), strict=False):
        right.plot(cost.index * 100, 100 * cost[column] / unpruned[column], marker=marker, markersize=4, label=name)
    right.set(xlabel="pruning ratio / %", ylabel="left of the unpruned / %", title="Cost", ylim=(0, 100))
    right.legend()
    return figure


def cliff(scan: SensitivityScan, drop: float) -> Figure:
    """Score without fine-tuning over the pruning ratio, and the safe ratio for a loss of `drop` (as in Fig. 6)."""
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.62, 2.6), layout="constrained")
    safe = scan.safe_ratio(drop)
    points = scan.table
    axis.plot(points["ratio"] * 100, points["score"], marker="o", markersize=4, label="pruned", clip_on=False)
    axis.axhline(scan.baseline, color=GREY, linestyle="--", linewidth=1, label="unpruned")
    axis.axhspan(scan.baseline - drop, scan.baseline, color=GREY, alpha=0.1, linewidth=0, label=f"drop {drop:g}")
    axis.axvline(safe * 100, color=COLOURS[2], linewidth=1, label=f"safe: {100 * safe:.3g} %")
    axis.set(xlabel="channels pruned / %", ylabel="score", title="Before fine-tuning", xlim=(0, 100))
    axis.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


def components(runs: pd.DataFrame, models: Sequence[str], reported: Mapping[str, float]) -> Figure:
    """MAP of each row of Table 1, and how far it is from the first row's, seed by seed.

    Args:
        runs: columns `model`, `seed`, `mb`, `map50`; one row per model and seed.
        models: rows from above to below. One that is further than `NEAR` points away is only named in the right panel.
        reported: by model, how many points the paper's is from its first row's.
    """
    size = (PAGE_WIDTH, 0.32 * len(models) + 0.9)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained", sharey=True, width_ratios=(3, 4))
    accuracy = 100 * runs.pivot(index="seed", columns="model", values="map50")[[*models]]
    megabytes = runs.groupby("model")["mb"].mean()
    for place, (name, mean) in enumerate(accuracy.mean().items()):
        left.barh(place, mean, height=0.62, color=COLOURS[0], alpha=0.3)
        _note(left, 0, place, f"{mean:.1f}   ({megabytes[name]:.2f} MB)")
    left.set_yticks(range(len(models)), models)
    left.set(xlabel="mAP at IoU 0.5 / %", xlim=(0, 100), ylim=(len(models) - 0.5, -0.5))
    _changes(right, accuracy.sub(accuracy[models[0]], axis=0), reported)
    entries = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside upper right", ncols=len(entries))
    for axis in (left, right):
        axis.grid(visible=False, axis="y")
    return figure


def _changes(axis: Axes, changes: pd.DataFrame, reported: Mapping[str, float]) -> None:
    """Differences from the first column in points: a row for each column, a dot for each seed, the paper's beside."""
    near = changes.loc[:, changes.mean().abs() < NEAR]
    seen = [-1.0, 1.0, *reported.values(), *near.to_numpy().ravel()]
    low, high = min(seen) - 0.7, max(seen) + 0.7
    for place, name in enumerate(changes):
        mean = changes[name].mean()
        if name not in near:
            _note(axis, low, place, f"← {mean:+.1f}".replace("-", "−"))
        elif place:
            heights = place + apart(len(changes), 0.2)
            axis.plot(changes[name], heights, "o", color=COLOURS[0], markersize=4.5, label="a seed")
            axis.plot(mean, place, "|", color=COLOURS[1], markersize=15, markeredgewidth=2, label="mean")
        if name in reported:
            look = {"color": GREY, "markerfacecolor": "white", "markersize": 5.5, "label": "the paper's"}
            axis.plot(reported[name], place, "D", **look)
    axis.axvline(0, color=GREY, linewidth=1)
    axis.set(xlabel=f"change to {changes.columns[0]} / points", xlim=(low, high))


def _note(axis: Axes, x: float, y: float, text: str) -> None:
    axis.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", fontsize=8)


def apart(count: int, reach: float) -> NDArray[np.float64]:
    """Offsets between -reach and reach for marks of one row, so that equal values do not hide each other."""
    return np.linspace(-reach, reach, count) if count > 1 else np.zeros(count)


def training_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Total loss and validation mAP per epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.8), layout="constrained")
    for name, rows in histories.items():
        left.plot(rows["epoch"], rows["loss"], label=name)
        judged = rows.dropna(subset="map50")
        right.plot(judged["epoch"], 100 * judged["map50"], marker="o", markersize=3.5, label=name)
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    left.set(xlabel="epoch", ylabel="loss", title="Training loss")
    right.set(xlabel="epoch", ylabel="mAP at IoU 0.5 / %", title="Validation", ylim=(0, 100))
    # Below, for the curves of a training from scratch run through every corner.
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=3)
    return figure


def surgery(before: Tensor, after: Tensor, kept_inputs: Sequence[int], kept_outputs: Sequence[int]) -> Figure:
    """A convolution's kernels before and after: what goes, and what is left (Fig. 2).

    Args:
        before, after: weights `[outputs, inputs, k, k]`.
        kept_inputs, kept_outputs: the channels that stay.
    """
    figure, axes = plt.subplots(1, 2, figsize=(PAGE_WIDTH * 0.75, 2.9), layout="constrained", sharex=True, sharey=True)
    top = float(before.abs().sum((2, 3)).max())
    for axis, weight, name in zip(axes, (before, after), ("before", "after"), strict=True):
        axis.imshow(weight.abs().sum((2, 3)).numpy(), cmap="Greys", vmin=0, vmax=top)
        axis.set(xlabel="input channel", title=f"{name}: {weight.shape[0]} × {weight.shape[1]} kernels")
        axis.grid(visible=False)
    gone = np.ones(before.shape[:2], dtype=bool)
    gone[np.ix_(kept_outputs, kept_inputs)] = False
    veil = mpl.colors.to_rgba("#F8D3B8", 0.85)
    axes[0].imshow(np.where(gone[..., None], veil, (0, 0, 0, 0)))
    # Both panels at one scale: what was cut is what stays white on the right.
    axes[0].set(ylabel="output channel", xlim=(-0.5, gone.shape[1] - 0.5), ylim=(gone.shape[0] - 0.5, -0.5))
    axes[1].legend(handles=[Patch(color=veil, label="cut out")], loc="lower right")
    return figure


def bound(teacher_error: float = 1.0) -> Figure:
    """The regression bound of Eq. 12 for one coordinate, the ground truth at 0."""
    student = torch.linspace(-2, 2, 801)
    flat = torch.zeros(len(student), 4)
    own, teacher = flat.clone(), flat.clone()
    own[:, 0], teacher[:, 0] = student, teacher_error
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.62, 2.4), layout="constrained")
    axis.plot(student.numpy(), student.square().numpy(), color="#999999", linestyle=":", label="squared error")
    axis.plot(student.numpy(), bounded_regression_loss(own, teacher, flat).numpy(), label=r"$L_{rd}$ (Eq. 12)")
    axis.axvspan(-teacher_error, teacher_error, color=COLOURS[2], alpha=0.12, linewidth=0)
    axis.text(0, 3.6, "better than the teacher", ha="center", color=COLOURS[2])
    axis.set(xlabel=r"student's error $R_s - y$", ylabel="loss", title="The teacher only bounds the student")
    axis.legend(loc="center")
    return figure
