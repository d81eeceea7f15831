"""Pictures of a data set with boxes on them: ground truth, and what detectors find, side by side."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke
from PIL import Image
from torch import Tensor

from paperlib.data import Dataset, Record

CLASS_COLOURS = (
    "#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#EE7733",
    "#0077BB", "#CC3311", "#BBBBBB", "#000000", "#EE99AA",
)  # fmt: skip
"""For classes: Tol's muted palette and an orange, likewise; five more where there are more than ten."""
PAGE_WIDTH = 7.2
"""Inches."""
HIGHEST = 1.3
"""Height over width of the highest place that a picture gets."""
SCORE_SIZE = 6
"""Points, on a page."""


def contact_sheet(dataset: Dataset, indices: Sequence[int], columns: int = 4) -> Figure:
    """Images of a data set with their boxes, a colour per class."""
    rows = [indices[start : start + columns] for start in range(0, len(indices), columns)]
    shapes = [max(_shape(dataset.records[index]) for index in row) for row in rows]
    figure, axes = _grid(shapes, columns)
    shown = set()
    for axis, index in zip(axes, indices, strict=False):
        image, truth = dataset[index]
        shown |= _draw(axis, image, truth)
    _class_legend(figure, dataset.classes, shown)
    return figure


def detections(
    dataset: Dataset,
    indices: Sequence[int],
    found: Mapping[str, Sequence[dict[str, Tensor]]],
    confidence: Mapping[str, float],
) -> Figure:
    """Ground truth and the detections of several detectors side by side (as in Figs. 9, 11 and 13).

    Args:
        dataset: where the images come from.
        indices: which images, one per row; those of a slice, for instance (`paperlib.data.slices`).
        found: by detector, `paperlib.evaluation.evaluate.detect`'s answer for the whole data set.
        confidence: by detector, the score below which its detections are not drawn.
    """
    columns = ["ground truth", *found]
    figure, axes = _grid([_shape(dataset.records[index]) for index in indices], len(columns))
    for axis, name in zip(axes, columns, strict=False):
        axis.set_title(f"{name} (≥ {confidence[name]:.2f})" if name in found else name)
    shown = set()
    for row, index in enumerate(indices):
        image, truth = dataset[index]
        seen = [truth, *(_confident(answers[index], confidence[name]) for name, answers in found.items())]
        for axis, objects in zip(axes[row * len(columns) :], seen, strict=False):
            shown |= _draw(axis, image, objects)
    _class_legend(figure, dataset.classes, shown)
    return figure


def _grid(shapes: Sequence[float], columns: int) -> tuple[Figure, list[Axes]]:
    """Places for pictures over the width of a page, a row per shape (height over width), with no gaps between rows."""
    height = PAGE_WIDTH / columns * sum(shapes) + 0.7
    figure, axes = plt.subplots(
        len(shapes), columns, figsize=(PAGE_WIDTH, height), layout="constrained", squeeze=False,
        gridspec_kw={"height_ratios": shapes},
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    flat = list(axes.flat)
    for axis in flat:
        axis.set_axis_off()
    return figure, flat


def _shape(record: Record) -> float:
    """Height over width of the place that a picture gets; a very high one does not fill its place's width."""
    width, height = record.size()
    return min(height / width, HIGHEST)


def _confident(answer: dict[str, Tensor], confidence: float) -> dict[str, Tensor]:
    kept = answer["scores"] >= confidence
    return {key: value[kept] for key, value in answer.items()}


def _draw(axis: Axes, image: Tensor, objects: Mapping[str, Any]) -> set[int]:
    """A picture, its `boxes` in the colours of their `labels`, and `scores` where there are some; the labels drawn."""
    axis.imshow(image.permute(1, 2, 0).numpy())
    for box, label in zip(objects["boxes"].tolist(), objects["labels"].tolist(), strict=True):
        left, top, right, bottom = box
        colour = _class_colour(label)
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.1)
        frame.set_path_effects([Stroke(linewidth=1.9, foreground="white"), Normal()])
        axis.add_patch(frame)
    if "scores" in objects:
        _write_scores(axis, image.shape[2], image.shape[1], objects)
    return set(objects["labels"].tolist())


def _write_scores(axis: Axes, width: int, height: int, objects: Mapping[str, Tensor]) -> None:
    """Above each box, best first; one that would cover another is left out, since neither could be read."""
    column = PAGE_WIDTH / axis.get_gridspec().ncols
    dots_per_inch = max(width, height / HIGHEST) / column
    size = np.array([0.17, 0.12]) * dots_per_inch
    taken = np.empty((0, 2))
    for index in objects["scores"].argsort(descending=True, stable=True).tolist():
        left, top = objects["boxes"][index, :2].tolist()
        place = np.array([min(max(left, 0), width - size[0]), max(top, size[1])])
        if len(taken) and (np.abs(taken - place) < size).all(1).any():
            continue
        taken = np.vstack([taken, place])
        edge = _class_colour(int(objects["labels"][index]))
        plate = {"facecolor": "white", "edgecolor": edge, "linewidth": 0.6, "pad": 0.7, "alpha": 0.85}
        text = f"{float(objects['scores'][index]):.2f}".lstrip("0")
        axis.text(*place, text, bbox=plate, fontsize=SCORE_SIZE, va="bottom", clip_on=True)


def _class_colour(label: int) -> str:
    return CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]


def _class_legend(figure: Figure, classes: Sequence[str], shown: set[int]) -> None:
    """The classes that were drawn."""
    handles = [Patch(color=_class_colour(label), label=classes[label - 1]) for label in sorted(shown)]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=7.5, columnspacing=1.2)


def with_photographs_as_jpeg(svg: str) -> str:
    """An SVG whose pictures of more than 256 colours are JPEG in place of PNG: a quarter of the size, or less."""
    return re.sub(r"data:image/png;base64,([\w+/=\s]+)", _as_jpeg, svg)


def _as_jpeg(found: re.Match[str]) -> str:
    picture = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGBA")
    if picture.getcolors(256):
        return found[0]
    on_paper = Image.new("RGB", picture.size, "white")
    on_paper.paste(picture, mask=picture.getchannel("A"))
    written = io.BytesIO()
    on_paper.save(written, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
