"""Images of a data set with boxes on them: ground truth, and the detections of several detectors side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor

from paperlib.data import Dataset, Record
from paperlib.figures.style import PAGE_WIDTH, make_axes

CLASS_COLOURS = (
    "#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#EE7733",
    "#0077BB", "#CC3311", "#BBBBBB", "#000000", "#EE99AA",
)  # fmt: skip
"""Tol's muted palette and an orange, which any colour vision can tell apart; five more for more than ten classes."""
MAX_HEIGHT = 1.3
"""Largest height over width of the axes that show an image."""
SCORE_SIZE = 6
"""Font size of scores in points."""
SCORE_PLATE = (0.17, 0.12)
"""Width and height of a written score in inches."""


def draw_contact_sheet(dataset: Dataset, indices: Sequence[int], columns: int = 4) -> Figure:
    """Draw images of a data set with their boxes, one colour per class."""
    rows = [indices[start : start + columns] for start in range(0, len(indices), columns)]
    # A row is as high as its highest image.
    shapes = [max(height_over_width(dataset.records[index]) for index in row) for row in rows]
    figure, axes = make_image_grid(shapes, columns)
    shown: set[int] = set()
    for axis, index in zip(axes, indices, strict=False):
        image, truth = dataset[index]
        shown |= _draw_objects(axis, image, truth, columns)
    _add_class_legend(figure, dataset.classes, shown)
    return figure


def draw_detections(
    dataset: Dataset,
    indices: Sequence[int],
    found: Mapping[str, Sequence[dict[str, Tensor]] | Mapping[int, dict[str, Tensor]]],
    confidence: Mapping[str, float],
) -> Figure:
    """Draw ground truth and the detections of several detectors side by side (as in Figs. 9, 11 and 13).

    Args:
        dataset: source of the images.
        indices: images to show, one per row; for instance those of a slice (`paperlib.data.slices`).
        found: by detector, the result of `paperlib.evaluation.evaluate.detect` for the whole data set, or for these
            images, by index.
        confidence: by detector, the score below which its detections are not drawn.
    """
    names = ["ground truth", *found]
    columns = len(names)
    figure, axes = make_image_grid([height_over_width(dataset.records[index]) for index in indices], columns)
    for axis, name in zip(axes, names, strict=False):
        axis.set_title(f"{name} (≥ {confidence[name]:.2f})" if name in found else name)
    shown: set[int] = set()
    for row, index in enumerate(indices):
        image, truth = dataset[index]
        seen = [truth, *(_confident(answers[index], confidence[name]) for name, answers in found.items())]
        for axis, objects in zip(axes[row * columns :], seen, strict=False):
            shown |= _draw_objects(axis, image, objects, columns)
    _add_class_legend(figure, dataset.classes, shown)
    return figure


def make_image_grid(shapes: Sequence[float], columns: int) -> tuple[Figure, list[Axes]]:
    """Create axes for images over the page width, one row per shape (height over width), without gaps between rows."""
    height = PAGE_WIDTH / columns * sum(shapes) + 0.7
    figure, axes = make_axes(1, height, len(shapes), columns, height_ratios=shapes)
    figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def height_over_width(record: Record) -> float:
    """Return the shape of the axes for an image; a very high image does not fill their width."""
    width, height = record.size()
    return min(height / width, MAX_HEIGHT)


def _confident(answer: dict[str, Tensor], confidence: float) -> dict[str, Tensor]:
    kept = answer["scores"] >= confidence
    return {key: value[kept] for key, value in answer.items()}


def _draw_objects(axis: Axes, image: Tensor, objects: Mapping[str, Any], columns: int) -> set[int]:
    """Draw an image, its `boxes` in the colours of their `labels`, and `scores` if there are any; return the labels."""
    axis.imshow(image.permute(1, 2, 0).numpy())
    for box, label in zip(objects["boxes"].tolist(), objects["labels"].tolist(), strict=True):
        left, top, right, bottom = box
        colour = _class_colour(label)
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.1)
        # A white border keeps dark colours visible on dark ground.
        frame.set_path_effects([Stroke(linewidth=1.9, foreground="white"), Normal()])
        axis.add_patch(frame)
    if "scores" in objects:
        _write_scores(axis, image, objects, columns)
    return set(objects["labels"].tolist())


def _write_scores(axis: Axes, image: Tensor, objects: Mapping[str, Any], columns: int) -> None:
    """Write scores above their boxes, best first; leave out those that would cover another score."""
    height, width = image.shape[1:]
    pixels_per_inch = max(width, height / MAX_HEIGHT) / (PAGE_WIDTH / columns)
    size = np.array(SCORE_PLATE) * pixels_per_inch
    taken = np.empty((0, 2))
    for index in objects["scores"].argsort(descending=True, stable=True).tolist():
        left, top = objects["boxes"][index, :2].tolist()
        corner = np.array([min(max(left, 0), width - size[0]), max(top, size[1])])
        # Plates of one size overlap if both distances are smaller than the size.
        if (np.abs(taken - corner) < size).all(1).any():
            continue
        taken = np.vstack([taken, corner])
        edge = _class_colour(int(objects["labels"][index]))
        plate = {"facecolor": "white", "edgecolor": edge, "linewidth": 0.6, "pad": 0.7, "alpha": 0.85}
        text = f"{float(objects['scores'][index]):.2f}".lstrip("0")
        axis.text(corner[0], corner[1], text, bbox=plate, fontsize=SCORE_SIZE, va="bottom", clip_on=True)


def _class_colour(label: int) -> str:
    # Label 0 is the background.
    return CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]


def _add_class_legend(figure: Figure, classes: Sequence[str], shown: set[int]) -> None:
    """Name the classes that were drawn below the figure."""
    handles = [Patch(color=_class_colour(label), label=classes[label - 1]) for label in sorted(shown)]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=7.5, columnspacing=1.2)
