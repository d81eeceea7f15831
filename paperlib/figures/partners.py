"""Figures of partner learning (BPL): the pair of convolutions, its fusion, its diversity, and accuracy over compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paperlib.figures.style import COLOURS, GREY, line_style, make_axes, marker_style, plot_seeds
from paperlib.figures.tables import average_by

FEW_EPOCHS = 10
"""Up to so many epochs a line has a dot for each; one epoch alone has no line."""
Box = tuple[float, float, str, str]
"""Centre x and y of a box, its text and its colour."""
IN_TRAINING: Sequence[Box] = (
    (0.0, 0.0, "$x$", "white"),
    (1.9, 0.8, "convolution $W$", COLOURS[0]), (4.4, 0.8, r"batch norm $\gamma, \beta$", COLOURS[0]),
    (1.9, -0.8, "partner $P$", COLOURS[1]), (4.4, -0.8, r"batch norm $\gamma', \beta'$", COLOURS[1]),
    (6.3, 0.0, "+", GREY), (7.7, 0.0, "activation", GREY), (9.2, 0.0, "", "white"),
)  # fmt: skip
AFTER_FUSION: Sequence[Box] = (
    (0.0, 0.0, "$x$", "white"), (2.9, 0.0, "convolution $W_f$ with bias", COLOURS[2]),
    (5.8, 0.0, "activation", GREY), (7.3, 0.0, "", "white"),
)  # fmt: skip


def draw_twin_block() -> Figure:
    """Draw a convolution with its partner in training, and the single convolution that is left after fusion."""
    figure, axes = make_axes(1, 1.8, columns=2, width_ratios=(9.4, 7.5))
    _draw_boxes(axes[0], "in training", IN_TRAINING, [(0, 1), (0, 3), (1, 2), (3, 4), (2, 5), (4, 5), (5, 6), (6, 7)])
    _draw_boxes(axes[1], "after fusion", AFTER_FUSION, [(0, 1), (1, 2), (2, 3)])
    return figure


def plot_pair_angles(scan: pd.DataFrame) -> Figure:
    """Plot both diversity losses and what a pair still emits, over the angle between original and partner.

    Args:
        scan: columns `angle` (degrees), `public`, `orthogonal` and `output` (root mean square, largest 1).
    """
    figure, [axis] = make_axes(0.75, 2.6)
    names = {
        "public": "loss of the public code, cos + 1",
        "orthogonal": "our loss, cos²",
        "output": "what the pair emits (RMS, largest = 1)",
    }
    for number, (column, label) in enumerate(names.items()):
        axis.plot(scan["angle"], scan[column], label=label, linewidth=1.8, **line_style(number))
    axis.set(xlabel="angle between convolution and partner / degrees", xlim=(0, 180), xticks=range(0, 181, 45))
    axis.set(ylim=(0, 2.05))
    axis.legend()
    return figure


def plot_fusion_errors(errors: pd.DataFrame) -> Figure:
    """Plot how far each fused convolution is from its pair, at both precisions.

    Args:
        errors: columns `layer`, `precision`, `difference` (relative, largest over the layer's outputs).
    """
    layers = list(dict.fromkeys(errors["layer"]))
    figure, [axis] = make_axes(0.75, 0.19 * len(layers) + 1.1)
    for number, (precision, rows) in enumerate(errors.groupby("precision", sort=False)):
        # Some layers may be equal to the last bit, and a logarithmic axis has no 0.
        seen = rows.set_index("layer")["difference"].loc[layers].clip(lower=1e-18)
        axis.plot(seen, range(len(layers)), linestyle="", label=precision, **marker_style(number))
    axis.set_xscale("log")
    axis.set_yticks(range(len(layers)), layers, fontsize=7.5)
    axis.invert_yaxis()
    axis.set(xlabel="largest difference between pair and fused convolution, relative", xlim=(1e-18, 1e-3))
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def plot_diversity(histories: Mapping[str, pd.DataFrame], cosine: str, energy: str) -> Figure:
    """Plot the cosine between original and partner, and the energy lost in fusion, of each block over the epochs.

    Args:
        histories: by diversity loss, the history of a training with partners.
        cosine, energy: how the columns of both quantities begin; the name of the block follows.
    """
    figure, axes = make_axes(1, 3.6, rows=2, columns=len(histories), sharex=True, sharey="row")
    quantities = ((cosine, "mean cosine"), (energy, "lost in fusion / %"))
    for row, (start, label) in enumerate(quantities):
        for column, (kind, history) in enumerate(histories.items()):
            axis = axes[row * len(histories) + column]
            blocks = [name for name in history if name.startswith(start)]
            for number, name in enumerate(blocks):
                colour = colormaps["viridis"](0.92 * number / max(len(blocks) - 1, 1))
                values = history[name] * (1 if row == 0 else 100)
                dot = "o" if len(history) <= FEW_EPOCHS else ""
                axis.plot(
                    history["epoch"], values, color=colour, linestyle="-", marker=dot, markersize=3,
                    label=name.removeprefix(start),
                )  # fmt: skip
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axis.axhline(0, color=GREY, linewidth=0.8)
            axis.set(title=kind if row == 0 else None, xlabel="epoch" if row else None)
        axes[row * len(histories)].set_ylabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    # Of many blocks, the first, one in the middle and the last tell the colours.
    shown = range(len(labels)) if len(labels) <= 4 else (0, len(labels) // 2, len(labels) - 1)
    figure.legend([handles[i] for i in shown], [labels[i] for i in shown], loc="outside upper right", ncols=4)
    return figure


def plot_keep_rates(runs: Mapping[str, pd.DataFrame], original: float) -> Figure:
    """Plot accuracy over compute, one line for each way of training, with a dot for each seed.

    Args:
        runs: by way of training, columns `gmacs` and `top1`, one row per keep rate and seed.
        original: mean accuracy of the unpruned network.
    """
    figure, [axis] = make_axes(0.75, 2.9)
    for number, (label, rows) in enumerate(runs.items()):
        # The seeds prune different channels, and so differ a little in compute: a keep rate is one point.
        mean = average_by(rows, "keep_rate", ["gmacs"])["gmacs"].to_dict()
        mmacs = [1000 * mean[rate] for rate in rows["keep_rate"]]
        plot_seeds(axis, rows.assign(mmacs=mmacs), "mmacs", "top1", number, label)
    axis.axhline(100 * original, color=GREY, linewidth=1)
    axis.annotate("unpruned", (1, 100 * original), (0, 3), ("axes fraction", "data"), "offset points", ha="right")
    axis.set(xlabel="compute / million multiply–accumulates", ylabel="top-1 accuracy / %")
    axis.legend()
    return figure


def _draw_boxes(axis: Axes, title: str, boxes: Sequence[Box], arrows: Sequence[tuple[int, int]]) -> None:
    """Draw boxes, and arrows from one to another by their numbers."""
    axis.set_title(title)
    axis.set(xlim=(-0.3, boxes[-1][0] + 0.1), ylim=(-1.5, 1.5))
    axis.axis("off")
    frames = []
    for x, y, text, colour in boxes:
        style = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour, "linewidth": 1.4}
        drawn = axis.text(x, y, text, ha="center", va="center", fontsize=7.5, bbox=style)
        frames.append(drawn.get_bbox_patch())
    for start, end in arrows:
        # Cut at the frames of both boxes, and drawn after them, because their size is known only then.
        look = {"patchA": frames[start], "patchB": frames[end], "arrowstyle": "-|>", "color": GREY, "linewidth": 1.2}
        axis.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=look, zorder=4)
