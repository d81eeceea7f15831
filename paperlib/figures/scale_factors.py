"""Figures of the batch-normalisation scale factors gamma, and what sparse training (Eq. 4) does to them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.figures.style import COLOURS, GREY, MAP_LABEL, line_style, make_axes, plot_seeds


def plot_gamma_histogram(gammas: Mapping[str, Tensor]) -> Figure:
    """Plot the distribution of the scale factors over the whole network (Fig. 5).

    Args:
        gammas: by title, |gamma| of all prunable channels, `[C]`.
    """
    # A few extreme channels would squeeze all others into the first bins. They are left out, and counted in the label.
    top = max(float(values.quantile(0.995)) for values in gammas.values())
    figure, [axis] = make_axes(0.62, 2.6)
    for number, (name, values) in enumerate(gammas.items()):
        beyond = int((values > top).sum())
        label = f"{name} ({beyond} beyond)" if beyond else name
        look = {"bins": 60, "binrange": (0, top), "element": "step", "alpha": 0.25}
        sns.histplot(x=values.numpy(), ax=axis, label=label, legend=False, **look, **line_style(number))
    title = "Scale factors of all prunable channels"
    # The axis starts left of 0, so that the first bin, the channels near zero, is seen whole.
    axis.set(xlabel=r"$|\gamma|$", ylabel="channels", title=title, xlim=(-0.02 * top, top))
    axis.legend()
    return figure


def plot_gamma_panels(gammas: Mapping[str, Tensor], near_zero: float = 0.01) -> Figure:
    """Plot the distribution of the scale factors of each network in its own panel, on one scale (Fig. 5).

    Args:
        gammas: by title, |gamma| of all prunable channels, `[C]`.
        near_zero: width of a bin; the first bin, in another colour, holds the channels that count as near zero.
    """
    columns = 2 if len(gammas) == 4 else min(3, len(gammas))
    rows = -(-len(gammas) // columns)
    figure, axes = make_axes(1, 0.7 + 1.55 * rows, rows, columns, sharex=True, sharey=True)
    top = max(float(values.max()) for values in gammas.values())
    bins = near_zero * np.arange(np.floor(top / near_zero) + 2)
    counted = [np.histogram(values.numpy(), bins)[0] for values in gammas.values()]
    highest = max(int(counts.max()) for counts in counted)
    for axis, counts, (name, values) in zip(axes, counted, gammas.items(), strict=False):
        axis.stairs(counts, bins, fill=True, color=COLOURS[0])
        axis.stairs(counts[:1], bins[:2], fill=True, color=COLOURS[1])
        note = f"{100 * (values < near_zero).float().mean():.1f} % below {near_zero:g}"
        # A line of its own: beside the title there is no room in a narrow panel.
        axis.set_title(name, pad=16)
        axis.annotate(note, (0, 1), (0, 4), "axes fraction", "offset points", color=COLOURS[1], fontsize=8.5)
        # The axes start left of 0 and below 1, so that the first bin, and a bin with a single channel, are seen whole.
        # The panels share the upper limit, which is that of the highest bin in any of them.
        axis.set(yscale="log", xlim=(-0.02 * bins[-1], bins[-1]), ylim=(0.7, 1.5 * highest))
        axis.yaxis.set_major_formatter("{x:g}")
    for axis in axes[len(gammas) :]:
        axis.set_axis_off()
    figure.supxlabel(r"scale factor $|\gamma|$", fontsize=9)
    figure.supylabel(f"channels, in bins of {near_zero:g}", fontsize=9)
    return figure


def plot_layer_gammas(before: Tensor, after: Tensor, layer: str, threshold: float) -> Figure:
    """Plot the scale factors of one layer, sorted, trained without and with Eq. 4, and the pruning threshold.

    Args:
        before, after: |gamma| of the layer, `[C]`.
        layer: name of the layer, used as the title.
        threshold: scale factor below which channels are pruned.
    """
    figure, [axis] = make_axes(0.62, 2.4)
    for values, name, marker in ((before, r"$\lambda = 0$", "o"), (after, r"$\lambda > 0$ (Eq. 4)", "s")):
        ordered = values.sort(descending=True).values.numpy()
        axis.plot(range(1, len(ordered) + 1), ordered, marker=marker, markersize=3, linewidth=1, label=name)
    axis.axhline(threshold, color=GREY, linestyle="--", linewidth=1, label="pruning threshold")
    axis.axhspan(0, threshold, color=GREY, alpha=0.1, linewidth=0)
    axis.set(xlabel="channel, in order of size", ylabel=r"$|\gamma|$", title=layer, ylim=(0, None))
    axis.legend()
    return figure


def plot_sparsity_sweep(runs: pd.DataFrame) -> Figure:
    """Plot accuracy and the fraction of scale factors near zero over lambda of Eq. 4.

    Args:
        runs: columns `strength`, `method`, `map50`, `near_zero`; one row per seed.
    """
    figure, axes = make_axes(1, 2.7, columns=2)
    strengths = sorted(set(runs["strength"].tolist()))
    smallest = next(strength for strength in strengths if strength > 0)
    for axis, column, label in zip(
        axes, ("map50", "near_zero"), (MAP_LABEL, r"$|\gamma|$ below 0.01 / %"), strict=True
    ):
        for number, (method, rows) in enumerate(runs.groupby("method", sort=False)):
            plot_seeds(axis, rows, "strength", column, number, str(method))
        # Linear from 0 to the smallest value, so that a logarithmic axis can show 0.
        axis.set_xscale("symlog", linthresh=smallest, linscale=0.5)
        axis.set_xticks(strengths, [f"{strength:g}" for strength in strengths], rotation=45)
        axis.xaxis.minorticks_off()
        axis.set(xlabel=r"$\lambda$ of Eq. 4", ylabel=label, ylim=(0, 100))
    axes[0].set_title("Accuracy")
    axes[1].set_title("Scale factors near zero")
    axes[0].legend()
    return figure
