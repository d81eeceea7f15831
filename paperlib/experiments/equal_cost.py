"""Controls at equal cost for Table 1 (Section 4.4.1), and both readings of Algorithm 1; the paper has none of them.

Every row starts from models of `assistants.components`, which the store has by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paperlib.experiments.assistants import TRAININGS, Models, Trainings
from paperlib.experiments.parameters import Components, ControlRow
from paperlib.workbench.algorithm_1 import distil_chain, prune_to_ratios
from paperlib.workbench.steps import Model, Workbench


@dataclass
class Start:
    """What the rows start from.

    Attributes:
        workbench: makes the steps.
        settings: those of the notebook.
        new: the network before any training.
        teacher: the sparsely trained original.
        assistant: the last assistant, distilled.
        student: the pruned student, not trained further.
    """

    workbench: Workbench
    settings: Components
    new: Model
    teacher: Model
    assistant: Model
    student: Model

    @property
    def whole_times(self) -> float:
        """Return how many times as long as one training of the original the student is trained in all."""
        short = len(self.settings.ratios) * self.settings.fine_tune_epochs
        return 1 + short / self.settings.epochs


def equal_cost(workbench: Workbench, settings: Components) -> Models:
    """Train the rows that `settings.rows` names, with the first `row_seeds` seeds."""
    if not settings.rows or workbench.recipe.seed not in settings.seeds[: settings.row_seeds]:
        return {}
    new = workbench.build_detector()
    teacher = workbench.train_sparse(new)
    *assistants, student = prune_to_ratios(workbench, teacher, settings.ratios)
    *_, assistant = distil_chain(workbench, teacher, assistants)
    start = Start(workbench, settings, new, teacher, assistant, student)
    models: Models = {}
    for row in settings.rows:
        models |= ROWS[row](start, row)
    return models


Row = Callable[[Start, ControlRow], Models]


def tune_longer(start: Start, row: ControlRow) -> Models:
    """Fine-tune the student for the time that a distillation takes, or for twice the epochs."""
    times = start.settings.longer if row == "SCP, longer" else 2
    return {row: start.workbench.fine_tune(start.student, row, times=times)}


def distil_tuned(start: Start, row: ControlRow) -> Models:
    """Distil the student after its fine-tuning, as Algorithm 1 is printed; `components` distils instead of it."""
    tuned = start.workbench.fine_tune(start.student)
    teacher = start.teacher if row == "SCP, then KD" else start.assistant
    return {row: start.workbench.distil(tuned, teacher, row)}


def distil_longer(start: Start, row: ControlRow) -> Models:
    """Distil the student for longer, as the text says of the last training."""
    times = start.settings.longer if row == "SCP + TAKD, longer" else 2
    return {row: start.workbench.distil(start.student, start.assistant, row, times=times)}


def train_whole_longer(start: Start, row: ControlRow) -> Models:
    """Train the unpruned network as long as all trainings on the way to the student take together."""
    train = start.workbench.train if row == "baseline, longer" else start.workbench.train_sparse
    return {row: train(start.new, row, times=start.whole_times)}


def prune_dense(start: Start, row: ControlRow) -> Models:
    """Prune a network trained without Eq. 4 by its scale factors, which the paper says does great damage."""
    dense = start.workbench.train(start.new)
    pruned = start.workbench.prune(dense, start.settings.ratios[-1])
    return {f"pruned {row}": pruned, f"SCP {row}": start.workbench.fine_tune(pruned, f"fine-tune, {row}")}


def train_shape_longer(start: Start, row: ControlRow) -> Models:
    """Train the student's shape from scratch for twice as long as the original."""
    return {row: start.workbench.train(start.workbench.reset_weights(start.student), row, times=2)}


ROWS: dict[ControlRow, Row] = {
    "SCP, longer": tune_longer,
    "SCP, twice": tune_longer,
    "SCP, then KD": distil_tuned,
    "SCP, then TAKD": distil_tuned,
    "SCP + TAKD, longer": distil_longer,
    "SCP + TAKD, twice": distil_longer,
    "baseline, longer": train_whole_longer,
    "sparse, longer": train_whole_longer,
    "without Eq. 4": prune_dense,
    "scratch, twice": train_shape_longer,
}


def _count_trainings(settings: Components) -> Trainings:
    """Count those of the rows and those that lead to their start, which the store usually has."""
    long = [row for row in settings.rows if ROWS[row] in (train_whole_longer, train_shape_longer, prune_dense)]
    steps = 2 * (len(settings.ratios) - 1) + len(settings.rows) - len(long) if settings.rows else 0
    return Trainings(2 * len(long) + bool(settings.rows), steps)


TRAININGS[equal_cost] = _count_trainings
