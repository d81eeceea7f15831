"""The experiments on dynamic distillation (DKD), and what its figures show of a student.

Zhang et al. (IEEE TGRS 60, 2022, 5613819) is public as an abstract only. The system is rebuilt from it; formulas ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.data.slices import aspect_ratio
from paperlib.distillation.answers import Answers, ask_both
from paperlib.distillation.hardness import box_weights
from paperlib.distillation.imitation import choose_valuable
from paperlib.distillation.imitation_methods import choose_method
from paperlib.distillation.methods import KeptChannels
from paperlib.evaluation.metrics import Metrics
from paperlib.experiments.assistants import TRAININGS, Models, Trainings
from paperlib.experiments.parameters import DynamicDistillation, DynamicRow
from paperlib.experiments.run import Run
from paperlib.figures.dynamic import ValuableCells, plot_valuable_cells
from paperlib.figures.tables import average_by
from paperlib.store.ancestry import find_prunings
from paperlib.workbench.algorithm_1 import prune_to_ratios
from paperlib.workbench.steps import PLAN, Model, Workbench

Settings = Mapping[str, Any]
NO_GD: Settings = {"feature_weight": 0.0}
NO_ISD: Settings = {"instance_weight": 0.0}
NO_TSA: Settings = {"box_weight": 0.0}
GD_ALONE: Settings = {**NO_ISD, **NO_TSA}
ISD_ALONE: Settings = {**NO_GD, **NO_TSA}
PARTS: Mapping[str, Settings] = {"GD": GD_ALONE, "ISD": ISD_ALONE, "GD + ISD": NO_TSA, "DKD": {}}
"""The parts of DKD and all of it, each by what is left out."""
ALIKE = 1e-6
"""An exponent of the hardness by which all boxes have the weight 1."""


def _imitate(method: str, **changes: Any) -> Settings:
    return {"imitation": choose_method(method, **changes), **GD_ALONE}


ROWS: Mapping[DynamicRow, Settings] = {
    # Regions: in which cells features are imitated.
    "GD, foreground only": _imitate("gd", background_weight=0.0),
    "GD, q = 1": _imitate("gd", fraction=1.0),
    "GD, q = 1/4": _imitate("gd", fraction=0.25),
    "GD, q = 1/8": _imitate("gd", fraction=0.125),
    # Instances: which of the teacher's are learned.
    "ISD, all instances": {"selection": "all", **ISD_ALONE},
    "ISD, correct instances": {"selection": "correct", **ISD_ALONE},
    "ISD, split masks": {"split_masks": True, **ISD_ALONE},
    # Regression: how boxes are weighted, and which box is learned.
    "DKD, all boxes alike": {"power": ALIKE},
    "DKD, boxes of the truth": {"goal": "truth"},
    "DKD, smooth L1 by status": {"regression": "smooth"},
    "DKD, L1 to the teacher": {"regression": "l1"},
    "DKD, bound (Eq. 12)": {"regression": "bound"},
    # Rivals, each by its own definition.
    "KD": {"how": "bounded", "bound_weight": 0.0},
    "Eqs. 10–12": {"how": "bounded"},
    "FitNets": _imitate("fitnets"),
    "FGFI": _imitate("fgfi"),
    "DeFeat": _imitate("defeat"),
    "FGD": _imitate("fgd"),
    "GID": {"how": "instances"},
    "DKD through the assistant": {},
}
"""The rows of the other tables: settings of `Workbench.distil`, by which they differ from DKD."""


T1 = ("teacher", "pruned", "fine-tuned", "fine-tuned longer", *PARTS)
"""The rows of the ablation."""
TABLES: Mapping[str, Sequence[str]] = {
    "T2 regions": (
        "fine-tuned longer", "FitNets", "GD, foreground only", "FGFI", "DeFeat", "GD, q = 1", "GD", "GD, q = 1/4",
        "GD, q = 1/8",
    ),
    "T3 instances": ("ISD, all instances", "ISD, correct instances", "ISD", "ISD, split masks"),
    "T4 boxes": (
        "GD + ISD", "DKD, bound (Eq. 12)", "DKD, L1 to the teacher", "DKD, all boxes alike", "DKD, boxes of the truth",
        "DKD, smooth L1 by status", "DKD",
    ),
    "T5 rivals": (
        "KD", "Eqs. 10–12", "FitNets", "FGFI", "DeFeat", "FGD", "GID", "DKD", "DKD through the assistant",
    ),
}  # fmt: skip
"""The rows of each other table; a scale may leave some out."""


def ablation(workbench: Workbench, settings: DynamicDistillation) -> Models:
    """Train the parts of DKD from the same pruned weights (T1), with two controls that have no teacher.

    One control is fine-tuned for as many epochs, the other for as long, since a distillation also asks the teacher.
    """
    teacher, _, student = _prepare(workbench, settings)
    models = {
        "teacher": teacher,
        "pruned": student,
        "fine-tuned": workbench.fine_tune(student),
        "fine-tuned longer": workbench.fine_tune(student, "fine-tune longer", times=settings.longer),
    }
    for name, left_out in PARTS.items():
        models[name] = workbench.distil(student, teacher, f"distil by {name}", how="dynamic", **left_out)
    return models


def other_rows(workbench: Workbench, settings: DynamicDistillation) -> Models:
    """Train the rows of the other tables (T2-T5) from the same pruned weights as DKD, with the first seeds only."""
    if workbench.recipe.seed not in settings.seeds[: settings.row_seeds]:
        return {}
    teacher, assistant, student = _prepare(workbench, settings)
    models = {}
    for name in settings.rows:
        changes = {"how": "dynamic", **ROWS[name]}
        if name == "DKD through the assistant":
            taught = workbench.distil(assistant, teacher, "distil the assistant", **changes)
            models[name] = workbench.distil(student, taught, f"distil by {name}", **changes)
        else:
            models[name] = workbench.distil(student, teacher, f"distil by {name}", **changes)
    return models


def half_way(workbench: Workbench, settings: DynamicDistillation) -> Models:
    """Train DKD for half as long, with the first seed: where it looks in the middle of a training."""
    if workbench.recipe.seed != settings.seeds[0]:
        return {}
    teacher, _, student = _prepare(workbench, settings)
    return {"DKD, half": workbench.distil(student, teacher, "distil for half as long", how="dynamic", times=0.5)}


TRAININGS[ablation] = lambda settings: Trainings(round(settings.teacher_times), 2 + round(settings.longer) + len(PARTS))
TRAININGS[other_rows] = lambda settings: Trainings(0, len(settings.rows) + 1)
TRAININGS[half_way] = lambda settings: Trainings(0, 1)


def draw_valuable_cells(workbench: Workbench, students: Mapping[str, Model], teacher: Model, index: int) -> Figure:
    """Draw the cells of a test image that GD would choose for each of several students, on each level.

    Args:
        workbench: its test split has the image; its settings say which fraction of the cells is chosen.
        students: by the moment of the training.
        teacher: the teacher of all.
        index: of the image.
    """
    assert workbench.test is not None
    boxed = workbench.test.letterboxed(workbench.recipe.image_size)
    moments = {name: _find_valuable_cells(workbench, student, teacher, index) for name, student in students.items()}
    return plot_valuable_cells(boxed.images[index], boxed.boxes[index], moments)


@torch.no_grad()
def _find_valuable_cells(workbench: Workbench, student: Model, teacher: Model, index: int) -> list[ValuableCells]:
    answers, targets = _answer(workbench, student, teacher, [index])
    prunings = find_prunings(teacher.folder, student.folder) or ()
    levels = answers.levels([KeptChannels.read(folder / PLAN) for folder in prunings])
    options = workbench.teaching.dynamic_options().imitation
    chosen = choose_valuable(levels, [each["boxes"] for each in targets], options=options)
    return [
        ValuableCells(foreground[0], background[0], level.stride)
        for (foreground, background), level in zip(chosen, levels, strict=True)
    ]


@torch.no_grad()
def weigh_instances(workbench: Workbench, student: Model, teacher: Model, status: float) -> pd.DataFrame:
    """Return size in pixels, aspect ratio and the weight by TSA of each positive of the test split.

    Args:
        workbench: has the test split.
        student, teacher: the models.
        status: m_t, the status at the end of the training.
    """
    assert workbench.test is not None
    options, area = workbench.teaching.dynamic_options(), float(workbench.recipe.image_size**2)
    parts = []
    for batch in torch.arange(len(workbench.test)).split(workbench.recipe.batch_size):
        own = _answer(workbench, student, teacher, batch.tolist())[0].responses[0]
        weights = box_weights(own.boxes, own.true_boxes, torch.tensor([status]), options, area)
        parts.append(torch.cat([own.true_boxes, weights[:, None]], 1))
    rows = torch.cat(parts).numpy()
    sides = rows[:, 2:4] - rows[:, :2]
    return pd.DataFrame({"size": sides.prod(1) ** 0.5, "ratio": aspect_ratio(rows[:, :4]), "weight": rows[:, 4]})


def compare_hard(metrics: Metrics) -> float:
    """Return by how much the mAP50 of small or elongated objects is above that of the others.

    Raises:
        ValueError: the shapes were not evaluated, or a slice has no object.
    """
    names = ("small or elongated", "neither small nor elongated")
    if missing := [name for name in names if name not in metrics.slices]:
        raise ValueError(f"no slice {missing[0]!r} was evaluated")
    hard, rest = (metrics.slices[name]["map50"] for name in names)
    return hard - rest


def time_trainings(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the time of each model's own training in seconds, over the seeds, and as a multiple of `fine-tuned`."""
    seconds = [(run.name, run.model.history()["seconds"].sum()) for run in runs if not run.name.endswith("pruned")]
    table = average_by(pd.DataFrame(seconds, columns=["model", "seconds"]), "model", ["seconds"]).reset_index()
    # Each detector is compared with itself.
    reference = {run.name: f"{run.case} fine-tuned".lstrip() for run in runs}
    took = dict(zip(table["model"], table["seconds"], strict=True))
    times = [round(took[name] / took[reference[name]], 2) for name in table["model"]]
    return table.assign(times=times, seconds=table["seconds"].round(1))


def compare_on_validation(runs: Sequence[Run]) -> pd.DataFrame:
    """Return per seed the validation mAP of teacher and fine-tuned student: only a better teacher can teach."""
    names = ("teacher", "fine-tuned")
    rows = [(run.seed, run.name, run.model.history()["map50"].iloc[-1]) for run in runs if run.name in names]
    table = pd.DataFrame(rows, columns=["seed", "model", "map50"]).pivot(index="seed", columns="model", values="map50")
    table = (100 * table[list(names)]).round(1)
    return table.assign(ahead=(table["teacher"] - table["fine-tuned"]).round(1)).reset_index()


def compare_detectors(frame: pd.DataFrame, detectors: Mapping[str, str]) -> pd.DataFrame:
    """Return what DKD brings each detector over the control that takes as long (T6): mAP50 in percent, over the seeds.

    Args:
        frame: columns `model` and `map50`, one row per model and seed.
        detectors: by case, the name of its detector; the names of its models begin with that of the case.
    """
    names = ("teacher", "fine-tuned longer", "DKD")
    means = average_by(frame, "model", ["map50"])["map50"].to_dict()
    rows = []
    for case, detector in detectors.items():
        found = [100 * means[f"{case} {name}".lstrip()] for name in names]
        rows.append([detector, *found, found[2] - found[1]])
    return pd.DataFrame(rows, columns=["detector", *names, "gain"]).round(1)


def select_tables(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Return the rows of each table of `TABLES` that were run, by its title."""
    ran = set(frame["model"])
    return {title: [name for name in names if name in ran] for title, names in TABLES.items()}


def _prepare(workbench: Workbench, settings: DynamicDistillation) -> tuple[Model, Model, Model]:
    """Return the sparsely trained teacher, the largest assistant and the student, the last two pruned only."""
    teacher = workbench.train_sparse(workbench.build_detector(), times=settings.teacher_times)
    assistant, *_, student = prune_to_ratios(workbench, teacher, settings.ratios)
    return teacher, assistant, student


def _answer(
    workbench: Workbench, student: Model, teacher: Model, indices: list[int]
) -> tuple[Answers, list[dict[str, Tensor]]]:
    """Ask student and teacher, in evaluation mode, about images of the test split."""
    assert workbench.test is not None
    boxed = workbench.test.letterboxed(workbench.recipe.image_size)
    targets = [{"boxes": boxed.boxes[index], "labels": boxed.labels[index]} for index in indices]
    images = boxed.images[indices].float() / 255
    return ask_both(student.detector(), teacher.detector(), images, targets), targets
