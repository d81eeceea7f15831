"""Figures of training and distillation: learning curves, the regression bound, the student over the assistants."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paperlib.distillation.losses import bounded_regression_loss
from paperlib.figures.style import COLOURS, GREY, LABELS, MAP_LABEL, MARKERS, SPREAD, line_style, make_axes
from paperlib.figures.tables import average_by

LEAST_SPAN = 10.0
"""Points of mAP that an axis of accuracy spans at least."""


def plot_training_curves(histories: Mapping[str, pd.DataFrame], distilled: Collection[str] = ()) -> Figure:
    """Plot total loss and validation accuracy per epoch.

    Args:
        histories: by model, columns `epoch`, `loss`, and `map50` or `top1` (NaN for an epoch without validation).
        distilled: models that were distilled. The terms of the teacher belong to their loss, so it has axes of its own.
    """
    titles = ["Training loss", *["Loss of distillation"] * bool(distilled), "Validation"]
    figure, axes = make_axes(1, 2.8, columns=len(titles))
    score = "top1" if all("top1" in rows for rows in histories.values()) else "map50"
    for number, (name, rows) in enumerate(histories.items()):
        look = {"label": name, **line_style(number)}
        axes[int(name in distilled)].plot(rows["epoch"], rows["loss"], **look)
        validated = rows.dropna(subset=score)
        axes[-1].plot(validated["epoch"], 100 * validated[score], marker="o", markersize=3.5, **look)
    for axis, title in zip(axes, titles, strict=True):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="epoch", ylabel="loss", title=title)
    axes[-1].set(ylabel=LABELS[score], ylim=(0, 100))
    # Below the axes, because the curves of a training from scratch run through every corner.
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=3)
    return figure


def plot_regression_bound(teacher_error: float = 1.0) -> Figure:
    """Plot the bounded regression loss of Eq. 12 for one coordinate; the ground truth is at 0.

    Args:
        teacher_error: distance of the teacher's coordinate from the ground truth.
    """
    student = torch.linspace(-2, 2, 801)
    truth = torch.zeros(len(student), 4)
    own, teacher = truth.clone(), truth.clone()
    own[:, 0], teacher[:, 0] = student, teacher_error
    bounded = bounded_regression_loss(own, teacher, truth)
    figure, [axis] = make_axes(0.62, 2.4)
    axis.plot(student.numpy(), student.square().numpy(), color="#999999", linestyle=":", label="squared error")
    axis.plot(student.numpy(), bounded.numpy(), label=r"$L_{rd}$ (Eq. 12)")
    axis.axvspan(-teacher_error, teacher_error, color=COLOURS[2], alpha=0.12, linewidth=0)
    axis.text(0, 3.6, "better than the teacher", ha="center", color=COLOURS[2])
    axis.set(xlabel=r"student's error $R_s - y$", ylabel="loss", title="The teacher only bounds the student")
    axis.legend(loc="center")
    return figure


def plot_assistants(runs: pd.DataFrame, chains: Mapping[str, Sequence[str]]) -> Figure:
    """Plot the student's accuracy over the number of assistants, and the models on the way to it (Fig. 8).

    Args:
        runs: columns `model`, `mb`, `map50`, one row per seed; a model `SCP` is the student without any teacher.
        chains: by name, the models from the teacher to the student; in order of the number of assistants.
    """
    figure, (left, right) = make_axes(1, 2.9, columns=2)
    counts = {name: count for count, name in enumerate(chains)}
    students = pd.DataFrame(runs[runs["model"].isin(list(counts))])
    students["assistants"] = [counts[name] for name in students["model"]]
    _plot_students(left, students, runs.loc[runs["model"] == "SCP", "map50"].tolist())
    left.set_xticks(range(len(chains)), [f"{count}\n{name}" for name, count in counts.items()])
    means = average_by(runs, "model", ["mb", "map50"])
    for number, (name, models) in enumerate(chains.items()):
        chain = means.loc[list(models)]
        right.plot(chain["mb"], 100 * chain["map50"], marker=MARKERS[number], markersize=4, label=name)
    right.invert_xaxis()
    right.set(xlabel="size / MB", ylabel=MAP_LABEL, title="The way through the assistants (means)")
    for axis in (left, right):
        axis.legend()
    return figure


def _plot_students(axis: Axes, students: pd.DataFrame, undistilled: Sequence[float]) -> None:
    """Plot the students' accuracy, without a line between them: their order is no trend where the seeds scatter."""
    percent = students.assign(map50=100 * students["map50"])
    repeated = bool(percent["assistants"].duplicated().any())
    look = {"x": "assistants", "y": "map50", "color": COLOURS[0], "native_scale": True, "ax": axis}
    sns.pointplot(
        percent, errorbar="sd", linestyle="none", markersize=5, err_kws=SPREAD, label="distilled",
        legend=False, **look,
    )  # fmt: skip
    if repeated:
        sns.stripplot(percent, jitter=False, size=3.5, alpha=0.5, legend=False, zorder=3, **look)
    control = 100 * fmean(undistilled)
    axis.axhline(control, color=GREY, linestyle="--", linewidth=1, label="fine-tuned only (SCP)")
    # At least ten points high, so that the noise of a seed does not fill the axis.
    seen = [*percent["map50"], control]
    middle, reach = (min(seen) + max(seen)) / 2, max(max(seen) - min(seen), LEAST_SPAN) / 2 + 1
    title = "The student (bars: standard deviation)" if repeated else "The student (one seed)"
    axis.set(xlabel="assistants", ylabel=MAP_LABEL, title=title, ylim=(middle - reach, middle + reach))
