"""Figures of Sections 4.4.2, 4.4.4 and 4.6: what sparsity, assistants and criteria do to a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.figures.detections import PAGE_WIDTH
from paperlib.figures.method import COLOURS, DASHES, GREY, MARKERS

MAP = "mAP at IoU 0.5 / %"


def gamma_panels(gammas: Mapping[str, Tensor], near_zero: float = 0.01) -> Figure:
    """The distribution of the scale factors of each network in a panel of its own, on one scale (Fig. 5).

    Args:
        gammas: by title, |gamma| of all prunable channels, `[C]`.
        near_zero: width of a bin; the first, in a colour of its own, holds what counts as near zero.
    """
    columns = 2 if len(gammas) == 4 else min(3, len(gammas))
    rows = -(-len(gammas) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(PAGE_WIDTH, 0.7 + 1.4 * rows), layout="constrained", sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    top = max(float(values.max()) for values in gammas.values())
    bins = near_zero * np.arange(np.floor(top / near_zero) + 2)
    for axis, (name, values) in zip(axes.flat, gammas.items(), strict=False):
        counts, _ = np.histogram(values.numpy(), bins)
        axis.stairs(counts, bins, fill=True, color=COLOURS[0])
        axis.stairs(counts[:1], bins[:2], fill=True, color=COLOURS[1])
        note = f"{100 * (values < near_zero).float().mean():.1f} % below {near_zero:g}"
        axis.set_title(note, loc="right", color=COLOURS[1], fontsize=9, fontweight="normal")
        axis.set(title=name, yscale="log", xlim=(0, bins[-1]), ylim=(0.7, None))
        axis.yaxis.set_major_formatter("{x:g}")
    for axis in axes.flat[len(gammas) :]:
        axis.set_axis_off()
    figure.supxlabel(r"scale factor $|\gamma|$", fontsize=9)
    figure.supylabel(f"channels, in bins of {near_zero:g}", fontsize=9)
    return figure


def sparsity_sweep(runs: pd.DataFrame) -> Figure:
    """Accuracy and the share of scale factors near zero over lambda of Eq. 4.

    Args:
        runs: columns `strength`, `method`, `map50`, `near_zero`; one row per seed.
    """
    figure, axes = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.7), layout="constrained")
    strengths = sorted(runs["strength"].unique())
    smallest = next(strength for strength in strengths if strength > 0)
    for axis, column, label in zip(axes, ("map50", "near_zero"), (MAP, r"$|\gamma|$ below 0.01 / %"), strict=True):
        for number, (method, rows) in enumerate(runs.groupby("method", sort=False)):
            _over(axis, rows, "strength", column, number, method)
        # From 0 to the smallest the axis is linear, so that 0 has a place on it.
        axis.set_xscale("symlog", linthresh=smallest, linscale=0.5)
        axis.set_xticks(strengths, [f"{strength:g}" for strength in strengths], rotation=45)
        axis.xaxis.minorticks_off()
        axis.set(xlabel=r"$\lambda$ of Eq. 4", ylabel=label, ylim=(0, 100))
    axes[0].set_title("Accuracy")
    axes[1].set_title("Scale factors near zero")
    axes[0].legend()
    return figure


def assistants(runs: pd.DataFrame, chains: Mapping[str, Sequence[str]]) -> Figure:
    """The student's accuracy over the number of assistants, and the way through the assistants (Fig. 8).

    Args:
        runs: columns `model`, `mb`, `map50`, one row per seed; a model `SCP` is the student without any teacher.
        chains: by name, the models from the teacher to the student; in order of the number of assistants.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.9), layout="constrained")
    places = {name: place for place, name in enumerate(chains)}
    students = runs[runs["model"].isin(places)].assign(place=lambda rows: rows["model"].map(places))
    _over(left, students, "place", "map50", 0, "distilled")
    control = 100 * runs.loc[runs["model"] == "SCP", "map50"].mean()
    left.axhline(control, color=GREY, linestyle="--", linewidth=1, label="fine-tuned only (SCP)")
    left.set_xticks(range(len(chains)), [f"{place}\n{name}" for name, place in places.items()])
    left.set(xlabel="assistants", ylabel=MAP, title="The student (small dots: seeds)")
    means = runs.groupby("model")[["mb", "map50"]].mean()
    for number, (name, models) in enumerate(chains.items()):
        way = means.loc[list(models)]
        right.plot(way["mb"], 100 * way["map50"], marker=MARKERS[number], markersize=4, label=name)
    right.invert_xaxis()
    right.set(xlabel="size / MB", ylabel=MAP, title="The way through the assistants (means)")
    for axis in (left, right):
        axis.legend()
    return figure


def criteria(runs: pd.DataFrame, models: Sequence[str], references: Sequence[str]) -> Figure:
    """Accuracy before and after fine-tuning of a detector cut by each criterion (Table 5).

    Args:
        runs: columns `model`, `mb`, `map50`, one row per seed; `<model> pruned` is a model before fine-tuning.
        models: the fine-tuned models.
        references: models that were not cut, drawn as lines.
    """
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH * 0.8, 0.36 * len(models) + 1.2), layout="constrained")
    accuracy = {name: 100 * rows["map50"] for name, rows in runs.groupby("model")}
    for place, name in enumerate(models):
        before, after = accuracy[f"{name} pruned"], accuracy[name]
        heights = (place - 0.16, place + 0.16)
        axis.plot([before.mean(), after.mean()], heights, color=GREY, linestyle="-", linewidth=1)
        for number, (values, state) in enumerate(((before, "pruned"), (after, "fine-tuned"))):
            look = {"color": COLOURS[1 - number], "linestyle": "none", "clip_on": False}
            axis.plot(values.mean(), heights[number], marker="|", markersize=9, markeredgewidth=2, **look)
            label = None if place else state
            here = [heights[number]] * len(values)
            axis.plot(values, here, marker=MARKERS[number], markersize=4.5, label=label, **look)
    for number, name in enumerate(references, 2):
        axis.axvline(accuracy[name].mean(), color=COLOURS[number], linestyle=DASHES[number], linewidth=1, label=name)
    size = runs.groupby("model")["mb"].mean()
    axis.set_yticks(range(len(models)), [f"{name}  ({size[name]:.2f} MB)" for name in models])
    axis.set(xlabel=f"{MAP}   (bar: mean, dot: one seed)", xlim=(0, 100), ylim=(len(models) - 0.5, -0.5))
    axis.grid(visible=False, axis="y")
    axis.legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, columnspacing=1.2, handlelength=1.5)
    return figure


def _over(axis: Axes, runs: pd.DataFrame, place: str, column: str, number: int, label: str) -> None:
    """A line through the means in percent, and a dot for each seed."""
    mean = runs.groupby(place)[column].mean()
    look = {"color": COLOURS[number], "marker": MARKERS[number], "clip_on": False}
    axis.plot(mean.index, 100 * mean, markersize=5, linestyle=DASHES[number], label=label, **look)
    axis.plot(runs[place], 100 * runs[column], markersize=3, linestyle="none", alpha=0.5, **look)
