"""Figures of scene classification: the confusion matrix, and examples of every class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure

from paperlib.data import SceneDataset
from paperlib.data.scenes import crop_square
from paperlib.figures.style import PAGE_WIDTH, make_axes

EXAMPLE_SIDE = 96
"""Side of an example in pixels."""
GAP = 3
"""Pixels between two examples."""


def plot_confusion_matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Plot which classes are taken for which: rows are true classes, columns predictions.

    A cell is the share of its row in percent. It is written out from 1 % on, with more than 20 classes from 5 % on.

    Args:
        confusion: numbers of images `[C, C]`, as `SceneMetrics.confusion`.
        classes: the C class names.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    # A class without images has an empty row.
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    many = len(classes) > 20
    width = 1 if many else 0.75
    figure, (axis,) = make_axes(width, 0.95 * width * PAGE_WIDTH)
    percent = 100 * shares
    written = np.where(shares >= (0.05 if many else 0.01), np.char.mod("%.0f", percent), "")
    sns.heatmap(
        percent, ax=axis, cmap="Blues", vmin=0, vmax=100, square=True, annot=written, fmt="",
        annot_kws={"fontsize": 4 if many else 6.5}, xticklabels=classes, yticklabels=classes,
        cbar_kws={"label": "share of the true class / %", "shrink": 0.5, "aspect": 30, "pad": 0.01},
    )  # fmt: skip
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.tick_params(length=0, labelsize=5.5 if many else 7.5)
    axis.grid(visible=False)
    return figure


def draw_scene_sheet(dataset: SceneDataset, per_class: int = 6) -> Figure:
    """Draw up to `per_class` examples of every class, at equal distances in the data set, cut to squares."""
    columns = 2 if len(dataset.classes) <= 20 else 3
    rows = math.ceil(len(dataset.classes) / columns)
    height = rows * (PAGE_WIDTH / columns / per_class + 0.2)
    figure, axes = make_axes(1, height, rows, columns)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.01, wspace=0, hspace=0)
    for axis in axes:
        axis.set_axis_off()
    for label, (axis, name) in enumerate(zip(axes, dataset.classes, strict=False)):
        found = [index for index, record in enumerate(dataset.records) if record.label == label]
        chosen = found[:: max(1, len(found) // per_class)][:per_class]
        axis.set_title(name, fontsize=7.5, fontweight="normal", pad=2)
        axis.imshow(_join_examples(dataset, chosen, per_class))
    return figure


def _join_examples(dataset: SceneDataset, indices: Sequence[int], width: int) -> np.ndarray:
    """Return examples beside each other on white, uint8 `[H, W, 3]`, with room for `width` of them."""
    strip = torch.full((3, EXAMPLE_SIDE, width * (EXAMPLE_SIDE + GAP) - GAP), 255, dtype=torch.uint8)
    for position, index in enumerate(indices):
        left = position * (EXAMPLE_SIDE + GAP)
        strip[:, :, left : left + EXAMPLE_SIDE] = crop_square(dataset[index][0], EXAMPLE_SIDE)
    return strip.permute(1, 2, 0).numpy()
