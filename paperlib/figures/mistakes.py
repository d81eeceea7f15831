"""What a detector gets wrong: precision-recall curves, and images with missed objects and false detections marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from paperlib.data import Dataset
from paperlib.evaluation.mistakes import ImageMistakes
from paperlib.figures.detections import CLASS_COLOURS, height_over_width, make_image_grid
from paperlib.figures.style import make_axes

Style = tuple[str, Literal["-", "--"]]
RIGHT: Style = ("#117733", "-")
MISSED: Style = ("#EE7733", "--")
FALSE: Style = ("#CC3311", "-")
"""Colour and line of objects that are found, of missed objects, and of false detections."""


def plot_precision_recall(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], scores: Mapping[str, float]) -> Figure:
    """Plot precision over recall of each class, the best class first (Section 4.2).

    Args:
        curves: by class, recall `[N]` and precision `[N]`, in [0, 1].
        scores: by class, its average precision at IoU 0.5.
    """
    figure, (axis,) = make_axes(1.0, 3.6)
    for number, name in enumerate(sorted(curves, key=lambda name: -scores[name])):
        recall, precision = curves[name]
        # Each curve begins at recall 0 with the precision of its best detection.
        start = precision[:1] if len(precision) else np.ones(1)
        label = f"{name} {100 * scores[name]:.1f} %"
        x, y = 100 * np.r_[0, recall], 100 * np.r_[start, precision]
        axis.plot(x, y, label=label, clip_on=False, color=CLASS_COLOURS[number % len(CLASS_COLOURS)])
    axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="recall / %", ylabel="precision / %")
    figure.legend(loc="outside right upper", title="average precision", fontsize=7.5)
    return figure


def draw_mistakes(
    dataset: Dataset, indices: Sequence[int], mistakes: Sequence[ImageMistakes], columns: int = 3
) -> Figure:
    """Draw images with objects that are found, missed objects and false detections.

    Args:
        dataset: source of the images.
        indices: images to show.
        mistakes: of every image of the data set.
        columns: number of images in a row.
    """
    rows = [indices[start : start + columns] for start in range(0, len(indices), columns)]
    figure, axes = make_image_grid([max(height_over_width(dataset.records[i]) for i in row) for row in rows], columns)
    for axis, index in zip(axes, indices, strict=False):
        _draw_image(axis, dataset, index, mistakes[index])
    handles = [
        Line2D([], [], color=colour, linestyle=dashes, label=label)
        for (colour, dashes), label in ((RIGHT, "found"), (MISSED, "missed"), (FALSE, "false detection"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7.5)
    return figure


def _draw_image(axis: Axes, dataset: Dataset, index: int, mistakes: ImageMistakes) -> None:
    record = dataset.records[index]
    axis.imshow(record.read_pixels())
    for box, missed in zip(record.boxes.tolist(), mistakes.missed.tolist(), strict=True):
        _draw_box(axis, box, MISSED if missed else RIGHT)
    for box, label in zip(
        mistakes.boxes[mistakes.false].tolist(), mistakes.labels[mistakes.false].tolist(), strict=True
    ):
        _draw_box(axis, box, FALSE)
        text = axis.text(
            box[0], box[1], dataset.classes[label - 1], fontsize=5.5, color=FALSE[0], va="bottom", clip_on=True
        )
        text.set_path_effects([Stroke(linewidth=1.5, foreground="white"), Normal()])


def _draw_box(axis: Axes, box: Sequence[float], style: Style) -> None:
    left, top, right, bottom = box
    colour, dashes = style
    frame = Rectangle(
        (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linestyle=dashes, linewidth=1.2
    )
    frame.set_path_effects([Stroke(linewidth=2.2, foreground="white"), Normal()])
    axis.add_patch(frame)
