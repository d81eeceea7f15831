"""Students beside Algorithm 1's: candidates for delivery, and the controls with which the student is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from paperlib.data.records import Dataset
from paperlib.store.store import Store
from paperlib.training.recipe import Recipe
from paperlib.workbench.algorithm_1 import HasTime, always_time, make_partnership, make_workbench, run_algorithm_1
from paperlib.workbench.checks import check_classes, check_criterion, check_data, check_detector
from paperlib.workbench.options import CandidateName, Compression, CompressionOptions
from paperlib.workbench.stages import Candidate, Compressed
from paperlib.workbench.steps import Model, Workbench

TRAINED_HOW: dict[CandidateName, str] = {
    "direct": "distilled by the original directly",
    "dynamic": "distilled dynamically",
    "partners": "distilled with partners",
}
"""How the candidates beside Algorithm 1's are trained, in words for a report."""
CONTROLS_HOW = {
    "student, fine-tuned only": "fine-tuned for longer",
    "student, distilled by the original": TRAINED_HOW["direct"],
    "student, distilled without partners": "distilled without partners",
    "its shape from scratch": "trained from scratch",
    "its shape from scratch, twice as long": "trained from scratch for twice as long",
}
"""The same of the controls that have the student's shape, so that they are candidates, too."""


def compress(
    detector: nn.Module,
    train: Dataset,
    val: Dataset,
    recipe: Recipe,
    settings: Compression | None = None,
    *,
    store: Store | None = None,
) -> Compressed:
    """Compress a detector by Algorithm 1, and hand over the most accurate of several students of one shape.

    Sparse training, iterated pruning and distillation down the chain make the first students; `settings.candidates`
    names more. Killed at any moment and called again it continues, and ends with the same weights, bit for bit.

    Args:
        detector: made by `build_detector` or `load_detector`, trained or not; it is not changed.
        train: the training images.
        val: the validation images, on which every model is evaluated: when to stop, and how good the student is.
        recipe: recipe of the sparse training; its seed is the seed of every step.
        settings: options of Algorithm 1.
        store: where finished steps are kept; by default the one that notebooks share.

    Raises:
        ValueError: the data sets do not fit the detector or each other; before any training.
    """
    settings = settings or Compression()
    check_detector(detector, recipe.image_size)
    check_criterion(detector, settings.importance)
    check_data(train, val)
    check_classes(detector, train)
    workbench = make_workbench(train, val, recipe, settings, store)
    made = run_algorithm_1(
        workbench, workbench.adopt_detector(detector), settings, later=most_candidate_epochs(workbench, settings)
    )
    return train_candidates(made, settings)


def most_candidate_epochs(workbench: Workbench, settings: CompressionOptions) -> int:
    """Return the largest number of epochs that `train_candidates` can take, for the progress display."""
    return 0 if settings.pure else len(settings.candidates) * workbench.fine_tuning.epochs


def train_candidates(
    compressed: Compressed, settings: CompressionOptions, has_time: HasTime = always_time
) -> Compressed:
    """Train the further students that the settings name, from the weights that the student had before distillation.

    None is trained if `settings.pure`, or if nothing was compressed. `direct` is what Algorithm 1 did itself where no
    assistant stands between.
    """
    if settings.pure:
        return replace(compressed, pure=True)
    if len(compressed.chain) == 1:
        return compressed
    student = compressed.chain[-1].model
    for name in settings.candidates:
        if has_time(f"candidate {TRAINED_HOW[name]}", student, 1):
            model = _train_candidate(compressed, settings, name)
            compressed = add_candidates(compressed, {TRAINED_HOW[name]: model})
    return compressed


def _train_candidate(compressed: Compressed, settings: CompressionOptions, name: CandidateName) -> Model:
    workbench = compressed.workbench
    original, student, own_teacher = compressed.chain[0].model, compressed.chain[-1].model, compressed.chain[-2].final
    label = f"candidate, {TRAINED_HOW[name]}"
    if name == "direct":
        return workbench.distil(student, original, label)
    if name == "dynamic":
        return workbench.distil(student, own_teacher, label, how="dynamic")
    return workbench.distil(student, own_teacher, label, partners=make_partnership(settings))


def add_candidates(compressed: Compressed, models: Mapping[str, Model]) -> Compressed:
    """Return the result with further candidates: models of the student's shape, by how they were trained."""
    last = compressed.chain[-1]
    known = {candidate.model for candidate in last.candidates}
    evaluate = compressed.workbench.evaluate
    added = [Candidate(how, model, evaluate(model, "val")) for how, model in models.items() if model not in known]
    changed = replace(last, others=(*last.others, *added))
    return replace(compressed, stages=[changed if stage is last else stage for stage in compressed.stages])


def add_controls(compressed: Compressed, controls: Mapping[str, Model]) -> Compressed:
    """Return the result with those controls as candidates that have the student's shape; if there is a student."""
    if len(compressed.chain) == 1:
        return compressed
    return add_candidates(compressed, {CONTROLS_HOW[name]: controls[name] for name in CONTROLS_HOW if name in controls})


def train_controls(compressed: Compressed) -> dict[str, Model]:
    """Train the models with which the student is compared, by name: the claims of Section 3 hold only if it beats them.

    Two start from the weights that the student had before its distillation, and are trained as long; two have its
    shape and fresh weights. If all trained with partners, one more is distilled without.
    """
    workbench = compressed.workbench
    teacher = compressed.chain[0].model
    student = compressed.chain[-1].model
    fresh = workbench.reset_weights(student)
    controls = {
        "original, without Eq. 4": workbench.train(compressed.given, "control: train without sparsity"),
        "student, fine-tuned only": workbench.fine_tune(student, "control: fine-tune without a teacher"),
        "student, distilled by the original": workbench.distil(student, teacher, "control: distil by the original"),
        "its shape from scratch": workbench.train(fresh, "control: train from scratch"),
        "its shape from scratch, twice as long": workbench.train(fresh, "control: train from scratch, twice", times=2),
    }
    if workbench.partners:
        alone = replace(workbench, partners=None)
        own_teacher = compressed.chain[-2:][0].final
        name = "student, distilled without partners"
        controls[name] = alone.distil(student, own_teacher, "control: distil without partners")
    return controls


def most_control_epochs(workbench: Workbench) -> int:
    """Return how many epochs `train_controls` takes, for the progress display."""
    # Of the five controls two are short, and one of the three long ones is twice as long. Partners add a short one.
    return 4 * workbench.recipe.epochs + (2 + bool(workbench.partners)) * workbench.fine_tuning.epochs
