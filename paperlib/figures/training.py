"""Figures of training and distillation: learning curves, the regression bound, the student over the assistants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paperlib.distillation.losses import bounded_regression_loss
from paperlib.figures.style import COLOURS, GREY, MAP_LABEL, MARKERS, make_axes, plot_seeds
from paperlib.figures.tables import average_by


def plot_training_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Plot total loss and validation mAP per epoch.

    Args:
        histories: by model, columns `epoch`, `loss`, `map50` (NaN for an epoch without validation).
    """
    figure, (left, right) = make_axes(1, 2.8, columns=2)
    for name, rows in histories.items():
        left.plot(rows["epoch"], rows["loss"], label=name)
        validated = rows.dropna(subset="map50")
        right.plot(validated["epoch"], 100 * validated["map50"], marker="o", markersize=3.5, label=name)
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="epoch", ylabel="loss", title="Training loss")
    right.set(xlabel="epoch", ylabel=MAP_LABEL, title="Validation", ylim=(0, 100))
    # Below the axes, because the curves of a training from scratch run through every corner.
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=3)
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
    plot_seeds(left, students, "assistants", "map50", 0, "distilled")
    control = 100 * runs.loc[runs["model"] == "SCP", "map50"].mean()
    left.axhline(control, color=GREY, linestyle="--", linewidth=1, label="fine-tuned only (SCP)")
    left.set_xticks(range(len(chains)), [f"{count}\n{name}" for name, count in counts.items()])
    left.set(xlabel="assistants", ylabel=MAP_LABEL, title="The student (small dots: seeds)")
    means = average_by(runs, "model", ["mb", "map50"])
    for number, (name, models) in enumerate(chains.items()):
        chain = means.loc[list(models)]
        right.plot(chain["mb"], 100 * chain["map50"], marker=MARKERS[number], markersize=4, label=name)
    right.invert_xaxis()
    right.set(xlabel="size / MB", ylabel=MAP_LABEL, title="The way through the assistants (means)")
    for axis in (left, right):
        axis.legend()
    return figure
