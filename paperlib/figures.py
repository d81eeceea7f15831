"""The companion's figures, in one style: colour-blind safe, labelled with units, on paper white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from paperlib.data import Dataset
from paperlib.distillation import bounded_regression
from paperlib.pruning import PruningPlan

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which readers with any colour vision can tell apart."""
CLASS_COLOURS = sns.color_palette("husl", 10).as_hex()
PAGE_WIDTH = 7.2
"""Inches."""
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
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "svg.hashsalt": "paperlib",
    "svg.fonttype": "path",
}


def use_style() -> None:
    """Make the companion's style the default of this process."""
    mpl.rcParams.update(STYLE)


def write(figure: Figure, path: Path) -> None:
    """Write a figure without a date, so that equal figures are equal files."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, bbox_inches="tight", metadata=metadata)


def contact_sheet(dataset: Dataset, indices: Sequence[int], columns: int = 4) -> Figure:
    """Images of a data set with their boxes, a colour per class."""
    rows = -(-len(indices) // columns)
    figure, axes = _grid(rows, columns, (PAGE_WIDTH, PAGE_WIDTH / columns * rows + 0.45))
    for axis, index in zip(axes, indices, strict=False):
        image, target = dataset[index]
        axis.imshow(image.permute(1, 2, 0).numpy())
        _draw_boxes(axis, target["boxes"], [CLASS_COLOURS[label - 1] for label in target["labels"].tolist()])
    _class_legend(figure, dataset.classes)
    return figure


def detections(
    dataset: Dataset,
    indices: Sequence[int],
    found: Mapping[str, Sequence[dict[str, Tensor]]],
    confidence: float,
) -> Figure:
    """Ground truth and the detections of several detectors side by side (as in Figs. 9 and 11).

    Args:
        dataset: where the images come from.
        indices: which images, one per row.
        found: by detector, `paperlib.evaluation.detect`'s answer for the whole data set.
        confidence: detections below this score are not drawn.
    """
    columns = ["ground truth", *found]
    figure, axes = _grid(len(indices), len(columns), (PAGE_WIDTH, PAGE_WIDTH / len(columns) * len(indices) * 0.8 + 0.6))
    for row, index in enumerate(indices):
        image, target = dataset[index]
        boxes = {"ground truth": {**target, "scores": torch.ones(len(target["labels"]))}}
        boxes |= {name: answers[index] for name, answers in found.items()}
        for column, name in enumerate(columns):
            axis, seen = axes[row * len(columns) + column], boxes[name]
            axis.imshow(image.permute(1, 2, 0).numpy())
            kept = seen["scores"] >= confidence
            colours = [CLASS_COLOURS[label - 1] for label in seen["labels"][kept].tolist()]
            scores = None if column == 0 else seen["scores"][kept].tolist()
            _draw_boxes(axis, seen["boxes"][kept], colours, scores)
            if row == 0:
                axis.set_title(name)
    _class_legend(figure, dataset.classes)
    return figure


def gamma_histogram(gammas: Mapping[str, Tensor]) -> Figure:
    """Distribution of the scale factors over the whole network (Fig. 5)."""
    top = max(float(values.quantile(0.995)) for values in gammas.values())
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.62, 2.6), layout="constrained")
    bins = np.linspace(0, top, 60)
    for number, (name, values) in enumerate(gammas.items()):
        axis.hist(values.clamp(max=top).numpy(), bins=bins, histtype="stepfilled", alpha=0.25, color=COLOURS[number])
        axis.hist(values.clamp(max=top).numpy(), bins=bins, histtype="step", color=COLOURS[number], label=name)
    axis.set(xlabel=r"$|\gamma|$", ylabel="channels", title="Scale factors of all prunable channels")
    axis.legend()
    return figure


def gamma_of_layer(before: Tensor, after: Tensor, layer: str, threshold: float) -> Figure:
    """One layer's scale factors in order of size, trained without and with Eq. 4, and the pruning threshold."""
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.62, 2.4), layout="constrained")
    for values, name, marker in ((before, r"$\lambda = 0$", "o"), (after, r"with Eq. 4", "s")):
        ordered = values.sort(descending=True).values
        axis.plot(range(1, len(ordered) + 1), ordered, marker=marker, markersize=3.5, label=name)
    axis.axhline(threshold, color="#555555", linestyle="--", linewidth=1, label="threshold")
    axis.set(xlabel="channel, in order of size", ylabel=r"$|\gamma|$", title=layer, ylim=(0, None))
    axis.legend()
    return figure


def channels_left(plans: Mapping[str, PruningPlan]) -> Figure:
    """Channels that remain in each layer (Fig. 10)."""
    first = next(iter(plans.values())).summary()
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 2.9), layout="constrained")
    places = np.arange(len(first))
    axis.bar(places, first["total"], width=0.86, color="#dddddd", label="unpruned")
    for number, (name, plan) in enumerate(plans.items()):
        kept = plan.summary()["kept"]
        axis.step([-0.5, *(places + 0.5)], [kept.iloc[0], *kept], where="pre", color=COLOURS[number], label=name)
    axis.set_xticks(places, [layer.removesuffix(".conv") for layer in first["layer"]], rotation=60, ha="right")
    axis.set(ylabel="channels", title="Channels left in each layer")
    axis.legend(ncols=len(plans) + 1, fontsize=8)
    axis.grid(visible=False, axis="x")
    return figure


def ratio_curves(table: pd.DataFrame, baseline: pd.Series) -> Figure:
    """Accuracy and cost over the pruning ratio (Fig. 6).

    Args:
        table: columns `ratio`, `state` ("pruned" or "fine-tuned"), `map50`, `mb`, `gmacs`; one row per seed.
        baseline: `map50`, `mb`, `gmacs` of the unpruned model.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.7), layout="constrained")
    for number, (state, rows) in enumerate(table.groupby("state", sort=False)):
        points = rows.groupby("ratio")["map50"].agg(["mean", "min", "max"]) * 100
        left.plot(points.index * 100, points["mean"], marker="os"[number], markersize=4, label=state)
        left.fill_between(points.index * 100, points["min"], points["max"], alpha=0.2)
    left.axhline(baseline["map50"] * 100, color="#555555", linestyle="--", linewidth=1, label="unpruned")
    left.set(xlabel="channels pruned / %", ylabel="mAP at IoU 0.5 / %", title="Accuracy", ylim=(0, 100))
    left.legend()
    cost = table.groupby("ratio")[["mb", "gmacs"]].mean()
    for column, name in (("mb", "size"), ("gmacs", "multiply-accumulates")):
        right.plot(cost.index * 100, 100 * cost[column] / baseline[column], marker="o", markersize=4, label=name)
    right.set(xlabel="channels pruned / %", ylabel="share of the unpruned / %", title="Cost", ylim=(0, 100))
    right.legend()
    return figure


def components(runs: pd.DataFrame, models: Sequence[str]) -> Figure:
    """MAP of each row of Table 1: every seed a dot, the mean a bar."""
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.8, 0.34 * len(models) + 0.9), layout="constrained")
    for place, name in enumerate(models):
        values = 100 * runs.loc[runs["model"] == name, "map50"]
        axis.barh(place, values.mean(), height=0.62, color=COLOURS[place % 6], alpha=0.35)
        axis.plot(values, [place] * len(values), "o", color=COLOURS[place % 6], markersize=5)
        size = runs.loc[runs["model"] == name, "mb"].mean()
        axis.annotate(
            f"{values.mean():.1f}   ({size:.2f} MB)", (values.max(), place), (7, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axis.set_yticks(range(len(models)), models)
    axis.invert_yaxis()
    axis.set(xlabel="mAP at IoU 0.5 / %", xlim=(0, 100))
    axis.grid(visible=False, axis="y")
    return figure


def training_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Total loss and validation mAP per epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.4), layout="constrained")
    for name, rows in histories.items():
        left.plot(rows["epoch"], rows[["box", "objectness", "classes"]].sum(axis=1), label=name)
        judged = rows.dropna(subset="map50")
        right.plot(judged["epoch"], 100 * judged["map50"], marker="o", markersize=3.5, label=name)
    left.set(xlabel="epoch", ylabel="loss", title="Detection loss")
    right.set(xlabel="epoch", ylabel="mAP at IoU 0.5 / %", title="Validation", ylim=(0, 100))
    left.legend()
    return figure


def surgery(before: Tensor, after: Tensor, kept_inputs: Sequence[int], kept_outputs: Sequence[int]) -> Figure:
    """A convolution's kernels before and after: what goes, and what is left (Fig. 2).

    Args:
        before, after: weights `[outputs, inputs, k, k]`.
        kept_inputs, kept_outputs: the channels that stay.
    """
    figure, axes = plt.subplots(1, 2, figsize=(PAGE_WIDTH * 0.75, 2.9), layout="constrained")
    top = float(before.abs().sum((2, 3)).max())
    for axis, weight in zip(axes, (before, after), strict=True):
        axis.imshow(weight.abs().sum((2, 3)).numpy(), cmap="Greys", vmin=0, vmax=top, aspect="equal")
        axis.set(xlabel="input channel", ylabel="output channel")
        axis.grid(visible=False)
    gone = np.ones(before.shape[:2], dtype=bool)
    gone[np.ix_(kept_outputs, kept_inputs)] = False
    axes[0].imshow(np.where(gone[..., None], mpl.colors.to_rgba(COLOURS[1], 0.45), (0, 0, 0, 0)))
    axes[0].set_title(f"before: {before.shape[0]} x {before.shape[1]} kernels")
    axes[1].set_title(f"after: {after.shape[0]} x {after.shape[1]}")
    return figure


def bound(teacher_error: float = 1.0) -> Figure:
    """The regression bound of Eq. 12 for one coordinate, the ground truth at 0."""
    student = torch.linspace(-2, 2, 801)
    flat = torch.zeros(len(student), 4)
    own, teacher = flat.clone(), flat.clone()
    own[:, 0], teacher[:, 0] = student, teacher_error
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.62, 2.4), layout="constrained")
    axis.plot(student, student.square(), color="#999999", linestyle=":", label="squared error")
    axis.plot(student, bounded_regression(own, teacher, flat), label=r"$L_{rd}$ (Eq. 12)")
    axis.axvspan(-teacher_error, teacher_error, color=COLOURS[2], alpha=0.12, label="better than the teacher")
    axis.set(xlabel=r"student's error $R_s - y$", ylabel="loss", title="The teacher only bounds the student")
    axis.legend()
    return figure


def _grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    flat = list(axes.flat)
    for axis in flat:
        axis.set_axis_off()
    return figure, flat


def _draw_boxes(axis: Axes, boxes: Tensor, colours: Sequence[str], scores: Sequence[float] | None = None) -> None:
    for number, ((left, top, right, bottom), colour) in enumerate(zip(boxes.tolist(), colours, strict=True)):
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.3))
        if scores is not None:
            label = {"facecolor": colour, "linewidth": 0, "pad": 0.6}
            axis.text(left, top, f"{scores[number]:.2f}", bbox=label, fontsize=4.5, va="bottom", clip_on=True)


def _class_legend(figure: Figure, classes: Sequence[str]) -> None:
    handles = [Patch(color=colour, label=name) for colour, name in zip(CLASS_COLOURS, classes, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=7.5)
