"""The style that all figures share: colours, marks, page width, and how a figure is written to a file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which readers with any colour vision can tell apart."""
DASHES = (
    "-", (0, (6, 2)), (0, (2, 1.2)), (0, (6, 2, 1.5, 2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (1, 1)), (0, (9, 2, 1, 2)),
)  # fmt: skip
"""Dash patterns, which tell lines apart in grey print, too."""
MARKERS = "os^DvPX*"
STATES = {"pruned": 1, "fine-tuned": 0}
"""Number of the colour and mark of a pruned network before and after fine-tuning, the same in every figure."""
SPREAD = {"linewidth": 1.2, "linestyle": "-"}
"""Look of a bar that spans the standard deviation."""
GREY = "#555555"
"""Colour of references that other values are compared with."""
PAGE_WIDTH = 7.2
"""Width of a page in inches."""
MAP_LABEL = "mAP at IoU 0.5 / %"
LABELS = {"map50": MAP_LABEL, "top1": "top-1 accuracy / %"}
"""Label of the axis of each score."""
STYLE: dict[Any, Any] = {
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
    "axes.prop_cycle": cycler(color=COLOURS, linestyle=DASHES),
    # Without a fixed salt, matplotlib writes other identifiers into an SVG each time.
    "svg.hashsalt": "paperlib",
    "svg.fonttype": "path",
}
LIGHT = {"text": "#1d1f23", "grid": "#e4e4e4", "page": "#ffffff"}
DARK = {"text": "#e6e6e6", "grid": "#3a3d44", "page": "#17191d"}
NO_DATE = {"svg": {"Date": None}, "png": {"Software": None}}
"""Metadata that matplotlib leaves out, by format, so that equal figures are equal files."""


def use_style() -> None:
    """Make the style of the companion the default of this process."""
    plt.rcParams.update(STYLE)


@contextmanager
def use_theme(colours: Mapping[str, str]) -> Iterator[None]:
    """Draw the figures made inside in the colours of a page, `LIGHT` or `DARK`; figures elsewhere keep theirs."""
    text = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), colours["text"]
    )
    page = dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), colours["page"])
    with plt.rc_context({**STYLE, **text, **page, "grid.color": colours["grid"]}):
        yield


def make_axes(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Create a figure and return it with its axes, row by row.

    Args:
        width: fraction of the page width.
        height: in inches.
        rows, columns: number of axes.
        options: passed to `Figure.subplots`, such as `sharey=True`.
    """
    figure = plt.figure(figsize=(width * PAGE_WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def line_style(number: int) -> dict[str, Any]:
    """Return the colour and dashes of the line with this number."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}


def marker_style(number: int, size: float = 5) -> dict[str, Any]:
    """Return the colour, shape and size (in points) of the mark with this number."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    return {"color": colour, "marker": marker, "markersize": size}


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Write names beside rows 0, 1, …, the first row on top."""
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()


def offset_marks(count: int, reach: float) -> NDArray[np.float64]:
    """Return offsets `[count]` from -reach to reach for the marks of one row, so that equal values stay visible."""
    return np.linspace(-reach, reach, count) if count > 1 else np.zeros(count)


def plot_seeds(axis: Axes, runs: pd.DataFrame, x: str, y: str, number: int, label: str) -> None:
    """Plot a line through the means of column `y` (a fraction, shown in percent), and what the seeds scatter.

    Bars span one standard deviation on either side of a mean, and each seed is a small dot; one seed has neither.
    """
    percent = pd.DataFrame({x: runs[x], y: 100 * runs[y]})
    look = {"linestyle": DASHES[number], "clip_on": False, **marker_style(number)}
    sns.lineplot(
        percent,
        x=x,
        y=y,
        ax=axis,
        label=label,
        errorbar="sd",
        err_style="bars",
        err_kws={"elinewidth": 1.2},
        legend=False,
        **look,
    )
    if runs[x].duplicated().any():
        axis.plot(percent[x], percent[y], linestyle="none", alpha=0.5, clip_on=False, **marker_style(number, 3))


def plot_rows(axis: Axes, values: Mapping[str, Sequence[float]], number: int, label: str, shift: float = 0.0) -> None:
    """Plot a row for each name: the mean of its values, one standard deviation as a bar, and a dot for each value.

    Args:
        axis: its rows are the names, from 0 on.
        values: by row, one value for each seed.
        number: of the colour and mark.
        label: in the legend.
        shift: distance from the middle of the row, so that several calls fit beside each other.
    """
    colour, marker, size = (marker_style(number)[part] for part in ("color", "marker", "markersize"))
    points = [(row + shift, value) for row, name in enumerate(values) for value in values[name]]
    frame = pd.DataFrame(points, columns=["row", "value"])
    look = {"color": colour, "orient": "y", "native_scale": True, "ax": axis, "clip_on": False}
    sns.pointplot(
        frame, x="value", y="row", errorbar="sd", linestyle="none", marker=marker, markersize=size, label=label,
        legend=False, err_kws=SPREAD, **look,
    )  # fmt: skip
    if len(frame) > len(values):
        sns.stripplot(frame, x="value", y="row", jitter=False, size=3, alpha=0.5, legend=False, zorder=3, **look)
    axis.set_ylabel("")  # seaborn writes the name of the column


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as SVG or PNG; equal figures give equal files."""
    if path.suffix != ".svg":
        figure.savefig(path, bbox_inches="tight", metadata=NO_DATE["png"])
        return
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", bbox_inches="tight", metadata=NO_DATE["svg"])
    path.write_text(_compress_photographs(drawn.getvalue()), encoding="utf-8", newline="\n")


def encode_figure(figure: Figure, kind: Literal["svg", "png"] = "svg") -> str:
    """Return a figure as a `data:image/...` address, so that a page needs no other file; closes the figure."""
    content = io.BytesIO()
    figure.savefig(content, format=kind, bbox_inches="tight", metadata=NO_DATE[kind], dpi=130)
    plt.close(figure)
    mime = {"svg": "svg+xml", "png": "png"}[kind]
    return f"data:image/{mime};base64,{base64.b64encode(content.getvalue()).decode()}"


def load_template(path: Path) -> jinja2.Template:
    """Return a Jinja template, which raises `jinja2.UndefinedError` for a name that it is not given."""
    return jinja2.Template(
        path.read_text(encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _compress_photographs(svg: str) -> str:
    """Store the photographs inside an SVG as JPEG instead of PNG: a quarter of the size, or less."""
    return re.sub(r"data:image/png;base64,([\w+/=\s]+)", _as_jpeg, svg)


def _as_jpeg(found: re.Match[str]) -> str:
    picture = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGBA")
    # At most 256 colours: a drawing, whose edges JPEG would blur.
    if picture.getcolors(256):
        return found[0]
    on_paper = Image.new("RGB", picture.size, "white")
    on_paper.paste(picture, mask=picture.getchannel("A"))
    written = io.BytesIO()
    on_paper.save(written, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
