"""Figures of dynamic distillation (DKD): where the student imitates, which instances it selects, what it finds hard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from paperlib.figures.style import COLOURS, GREY, PAGE_WIDTH, line_style, make_axes

FOREGROUND, BACKGROUND = COLOURS[1], COLOURS[0]
BINS = 6
"""Number of groups of equally many instances whose mean weight is shown."""


class ValuableCells(NamedTuple):
    """The valuable cells of one image on one level: bool `[H, W]` each, and the side of a cell in pixels."""

    foreground: Tensor
    background: Tensor
    stride: int


def plot_valuable_cells(image: Tensor, boxes: Tensor, moments: Mapping[str, Sequence[ValuableCells]]) -> Figure:
    """Draw the valuable cells over an image: a column for each moment of the training, a row for each level.

    Args:
        image: uint8 `[3, S, S]`.
        boxes: its ground truth, `[N, 4]` xyxy pixels.
        moments: by name, the cells of each level.
    """
    levels = len(next(iter(moments.values())))
    figure, axes = make_axes(1, PAGE_WIDTH / len(moments) * levels + 0.6, levels, len(moments))
    for column, (name, cells) in enumerate(moments.items()):
        for row, level in enumerate(cells):
            axis = axes[row * len(moments) + column]
            _draw_cells(axis, image, boxes, level)
            axis.set_title(f"{name}, cells of {level.stride} px")
    handles = [Patch(color=FOREGROUND, alpha=0.5, label="valuable foreground")]
    handles += [Patch(color=BACKGROUND, alpha=0.5, label="valuable background")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def plot_selection(histories: Mapping[str, pd.DataFrame], columns: tuple[str, str]) -> Figure:
    """Plot over the epochs which fraction of the instances is selected, and the status of the training.

    Args:
        histories: by model, one row per epoch, with the column `epoch` and those of `columns` that it has.
        columns: the fraction of selected instances, and the status.
    """
    figure, (left, right) = make_axes(1, 2.7, columns=2)
    for axis, column, scale in ((left, columns[0], 100), (right, columns[1], 1)):
        for number, (name, rows) in enumerate(histories.items()):
            if column in rows:
                axis.plot(
                    rows["epoch"], scale * rows[column], marker="o", markersize=3, label=name, **line_style(number)
                )
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="epoch", ylabel="instances selected / %", ylim=(0, 100), title="Where the teacher is better")
    right.set(xlabel="epoch", ylabel="status $m_t$ (mean 1 − IoU)", title="How wrong the boxes are")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=3)
    return figure


def plot_instance_weights(instances: pd.DataFrame) -> Figure:
    """Plot the weight of each instance over its size and over its aspect ratio, with the means of equal groups.

    Args:
        instances: columns `size` (square root of the area in pixels), `ratio` (longer side over the shorter) and
            `weight`; one row per instance.
    """
    figure, axes = make_axes(1, 2.7, columns=2, sharey=True)
    labels = {"size": "size / pixels", "ratio": "aspect ratio $r$"}
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        axis.plot(
            instances[column], instances["weight"], ".", color=GREY, markersize=3, alpha=0.35, label="an instance"
        )
        groups = pd.qcut(instances[column], BINS, duplicates="drop")
        means = pd.DataFrame(instances.groupby(groups, observed=True)[[column, "weight"]].mean())
        axis.plot(means[column], means["weight"], "o-", color=COLOURS[1], markersize=4.5, label="mean of a group")
        axis.axhline(1, color=GREY, linewidth=1, linestyle="--")
        axis.set(xlabel=label)
    axes[0].set(ylabel="weight $w_i$")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _draw_cells(axis: Axes, image: Tensor, boxes: Tensor, cells: ValuableCells) -> None:
    """Draw a pale image, its boxes, and the cells of both regions in their colours."""
    height, width = image.shape[1:]
    axis.imshow(image.permute(1, 2, 0).numpy(), alpha=0.6)
    for mask, colour in ((cells.foreground, FOREGROUND), (cells.background, BACKGROUND)):
        layer = np.zeros((*mask.shape, 4))
        layer[mask.numpy()] = to_rgba(colour, 0.5)
        side = cells.stride
        axis.imshow(layer, extent=(0, mask.shape[1] * side, mask.shape[0] * side, 0), interpolation="nearest")
    for left, top, right, bottom in boxes.tolist():
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1.2))
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
