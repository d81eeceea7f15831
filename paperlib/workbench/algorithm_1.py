"""Algorithm 1: prune and fine-tune until accuracy falls, keep the models, thin them out, distil down the chain.

Written in the workbench's steps and nothing else, so it reads like the paper's listing and resumes after every step.
Accuracy is the paper's mAP on the validation split; no test split is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, floor
from typing import Literal

import pandas as pd
from torch import nn

from paperlib.costs import Cost, cost
from paperlib.data.records import Dataset
from paperlib.evaluation.evaluate import Metrics
from paperlib.progress.report import expect_work
from paperlib.pruning import Sparsity, trace_channels
from paperlib.store.store import Store
from paperlib.training.recipe import Recipe
from paperlib.workbench.options import Blueprint, Compression, DistillationChoices, PruningChoices
from paperlib.workbench.steps import Model, Workbench

EVERYTHING = 1 - 1e-9
"""A pruning ratio that leaves what floor and ties leave."""


@dataclass(frozen=True)
class Stage:
    """One model of the iterations: TA_i of Algorithm 1.

    Attributes:
        name: for people.
        model: trained with Eq. 4's term: the original (i = 0), or a pruned model after its fine-tuning.
        role: what became of it. `similar` ones were dropped from the chain, the `rejected` one lost delta or more.
        channels: prunable channels that it has.
        tuned: its validation metrics.
        distilled: what the next larger model of the chain made of it, and the metrics after that.
    """

    name: str
    model: Model
    role: Literal["teacher", "assistant", "similar", "student", "rejected"]
    channels: int
    cost: Cost
    tuned: Metrics
    distilled: tuple[Model, Metrics] | None = None

    @property
    def final(self) -> Model:
        """The model as it ends up: distilled, if it was."""
        return self.distilled[0] if self.distilled else self.model

    @property
    def metrics(self) -> Metrics:
        """Validation metrics of `final`."""
        return self.distilled[1] if self.distilled else self.tuned


@dataclass(frozen=True)
class Compressed:
    """What Algorithm 1 leaves behind.

    Attributes:
        stages: all models of the iterations, from the teacher on down.
        stopped: why pruning ended: the accuracy's drop, the floor, or the size that was aimed at.
        given: the detector as it was handed in.
        bench: the workbench whose store holds it all.
    """

    stages: list[Stage]
    stopped: Literal["drop", "floor", "target"]
    given: Model
    bench: Workbench

    @cached_property
    def student(self) -> nn.Module:
        """The smallest detector of the chain, in evaluation mode."""
        return self.chain[-1].final.detector()

    @property
    def chain(self) -> list[Stage]:
        """Teacher, assistants and student; the teacher alone if no pruned model was good enough."""
        return [stage for stage in self.stages if stage.role in ("teacher", "assistant", "student")]

    @property
    def table(self) -> pd.DataFrame:
        """One row a stage: role, channels, costs, and validation mAP at IoU 0.5 before and after distillation."""
        return pd.DataFrame([_row(stage) for stage in self.stages])

    def reason(self) -> str:
        """In a sentence, why pruning ended."""
        share = f"{self.bench.pruning.keep_floor:.3g}"
        if self.stopped == "target":
            return "the size that was aimed at is reached"
        if self.stopped == "floor":
            return f"every layer is down to its floor of {share} of the original channels, or held by one tied to it"
        drop = self.stages[0].tuned.map50 - self.stages[-1].tuned.map50
        return f"the next model, {self.stages[-1].cost.size_mb:.3g} MB, lost {100 * drop:.1f} points of mAP"


def compress(
    detector: nn.Module,
    train: Dataset,
    val: Dataset,
    recipe: Recipe,
    settings: Compression | None = None,
    *,
    store: Store | None = None,
) -> Compressed:
    """Compress a detector by sparse training, iterated pruning and distillation down the chain (Algorithm 1).

    Killed at any moment and called again it continues, and ends with the same weights, bit for bit.

    Args:
        detector: made by `build_detector` or `load_detector`, trained or not; untouched.
        train: the training images.
        val: judges every model: when to stop, and how good the student is.
        recipe: of the sparse training; its seed is the seed of all.
        settings: of Algorithm 1.
        store: where finished steps are kept; by default the one that notebooks share.

    Raises:
        ValueError: the data sets do not fit the detector or each other; before any training.
    """
    settings = settings or Compression()
    check_detector(detector, recipe.image_size)
    check_data(train, val)
    check_classes(detector, train)
    bench = workbench(train, val, recipe, settings, store)
    return algorithm_1(bench, bench.adopt_detector(detector), settings)


def check_data(train: Dataset, val: Dataset) -> None:
    """Refuse data that nothing can be learned from or judged by.

    Raises:
        ValueError: classes that differ, a class that is never shown, or validation images without boxes.
    """
    if train.classes != val.classes:
        listed = " and ".join(", ".join(map(repr, data.classes)) for data in (train, val))
        raise ValueError(f"{train.name} and {val.name} differ in their classes: {listed}")
    if missing := [name for name, count in train.box_counts().items() if not count]:
        raise ValueError(f"{train.name}: category {missing[0]!r} has no boxes to learn from")
    if not any(val.box_counts().values()):
        raise ValueError(f"{val.name}: no boxes, so nothing to judge by")


def check_detector(detector: nn.Module, image_size: int) -> None:
    """Refuse what is no detector of this package, or one that images of this side do not suit, with a ValueError."""
    if not hasattr(detector, "build_arguments"):
        raise ValueError(f"{type(detector).__name__} was not made by build_detector or load_detector")
    if image_size % detector.image_multiple:
        raise ValueError(f"image size {image_size} is not a multiple of {detector.image_multiple} pixels")


def check_classes(detector: nn.Module, data: Dataset) -> None:
    """Refuse a detector of another number of classes than the data set has, with a ValueError."""
    if detector.num_classes != len(data.classes):
        raise ValueError(f"{data.name}: {len(data.classes)} classes, the detector has {detector.num_classes}")


def workbench(
    train: Dataset, val: Dataset, recipe: Recipe, settings: Compression, store: Store | None,
    blueprint: Blueprint | None = None,
) -> Workbench:  # fmt: skip
    """The bench that Algorithm 1 works on."""
    return Workbench(
        train_set=train,
        validation=val,
        test=None,
        blueprint=blueprint,
        recipe=recipe,
        fine_tuning=settings.fine_tuning_after(recipe),
        sparsity=Sparsity(settings.sparsity, settings.sparsity_method),
        pruning=PruningChoices(settings.importance, settings.keep_floor, settings.round_to, settings.compensate),
        distillation=DistillationChoices(settings.soft_weight, settings.bound_weight, settings.temperature),
        store=store,
    )


def algorithm_1(bench: Workbench, given: Model, settings: Compression, *, rivals: bool = False) -> Compressed:
    """The listing, from line 2 to its end; `rivals` tells the progress display that `controls` will follow."""
    expect_work(most_epochs(bench, settings, rivals=rivals))
    teacher = bench.train_sparse(given)
    stages, stopped = prune_and_keep(bench, teacher, settings)
    stages = thinned(stages, settings)
    expect_work(_epochs(bench, 0, sum(stage.role in ("assistant", "student") for stage in stages), rivals))
    return Compressed(distilled(bench, stages), stopped, given, bench)


def prune_and_keep(bench: Workbench, teacher: Model, settings: Compression) -> tuple[list[Stage], str]:
    """Lines 4-22: prune the current model, fine-tune, evaluate, until the drop reaches delta; and why it ended."""
    stages = [_stage(bench, "original", teacher)]
    # The listing prints E_p <- 0. Any detector worth compressing has E_0 > delta, so that loop would never begin:
    # E_0 is meant, for nothing has been lost yet.
    e_0 = e_p = stages[0].tuned.map50
    while e_0 - e_p < settings.max_drop:
        current, number = stages[-1], len(stages)
        if settings.target_mb and current.cost.size_mb <= settings.target_mb:
            return stages, "target"
        wanted = floor(current.channels - settings.step * stages[0].channels)
        pruned = _prune(bench, current.model, teacher, wanted, settings.target_mb)
        if _channels(pruned.detector()) >= current.channels:
            return stages, "floor"
        tuned = bench.fine_tune(pruned, f"fine-tune pruned model {number}", sparse=True)
        stages.append(_stage(bench, f"pruned {number}", tuned))
        e_p = stages[-1].tuned.map50
    stages[-1] = replace(stages[-1], role="rejected")
    return stages, "drop"


def thinned(stages: list[Stage], settings: Compression) -> list[Stage]:
    """Line 23: who is who in the chain, once models of similar capacity are deleted from it."""
    good = [stage for stage in stages if stage.role != "rejected"]
    stay = unlike([getattr(stage.cost, settings.capacity) for stage in good], settings.similar)
    roles = {len(good) - 1: "student", 0: "teacher"}
    named = [
        replace(stage, role=roles.get(place, "assistant" if place in stay else "similar"))
        for place, stage in enumerate(good)
    ]
    return named + stages[len(good) :]


def distilled(bench: Workbench, stages: list[Stage]) -> list[Stage]:
    """Lines 24-26: down the chain each model is taught by the one before, as that one was taught itself."""
    result, link = [], stages[0].model
    for stage in stages:
        if stage.role in ("assistant", "student"):
            link = bench.distil(stage.model, link, f"distil {stage.name} ({stage.role})")
            stage = replace(stage, distilled=(link, bench.evaluate(link, "val")))
        result.append(stage)
    return result


def unlike(capacities: Sequence[float], similar: float) -> list[int]:
    """Places of the models that stay, from falling capacities: the ends, and those unlike their neighbours that stay.

    From the student up, a model is dropped if its lower neighbour has more than the share `similar` of its
    capacity; at the top the teacher stays, and the assistant goes.
    """
    stay = [len(capacities) - 1]
    for place in range(len(capacities) - 2, 0, -1):
        lower, upper = capacities[stay[-1]], capacities[place]
        if lower <= similar * upper and upper <= similar * capacities[0]:
            stay.append(place)
    return sorted({0, *stay})


def controls(compressed: Compressed) -> dict[str, Model]:
    """What the student is to be compared with, by name: the claims of Section 3 hold only if it beats these.

    Two start from the weights that the student had before its teacher came, and are trained as long; two have its
    shape and fresh weights.
    """
    bench, teacher, student = compressed.bench, compressed.chain[0].model, compressed.chain[-1].model
    fresh = bench.reset_weights(student)
    return {
        "original, without Eq. 4": bench.train(compressed.given, "control: train without sparsity"),
        "student, fine-tuned only": bench.fine_tune(student, "control: fine-tune without a teacher"),
        "student, distilled by the original": bench.distil(student, teacher, "control: distil by the original"),
        "its shape from scratch": bench.train(fresh, "control: train from scratch"),
        "its shape from scratch, twice as long": bench.train(fresh, "control: train from scratch, longer", times=2),
    }


def _stage(bench: Workbench, name: str, model: Model) -> Stage:
    detector = model.detector()
    price = cost(detector, bench.recipe.image_size)
    return Stage(name, model, "teacher", _channels(detector), price, bench.evaluate(model, "val"))


def channel_counts(detector: nn.Module) -> dict[str, int]:
    """Output channels of each prunable convolution, in forward order."""
    return {name: detector.get_submodule(name).out_channels for name in trace_channels(detector).prunable}


def _channels(detector: nn.Module) -> int:
    return sum(channel_counts(detector).values())


def _prune(bench: Workbench, model: Model, teacher: Model, wanted: int, target_mb: float | None) -> Model:
    """Down to the wanted number of channels, but not below the floor, nor smaller than is aimed at."""
    channels = max(wanted, bench.plan(model, EVERYTHING, original=teacher).channels_kept)
    if target_mb and bench.plan(model, channels=channels, original=teacher).cost_after.size_mb < target_mb:
        return bench.prune(model, size_mb=target_mb, original=teacher)
    return bench.prune(model, channels=channels, original=teacher)


def _most_trainings(settings: Compression) -> tuple[int, int]:
    """How many iterations and distillations there can be at most, if sizes fall as the square of the channels."""
    steps = range(ceil((1 - settings.keep_floor) / settings.step) + 1)
    sizes = [max(1 - number * settings.step, settings.keep_floor) ** 2 for number in steps]
    return len(sizes) - 1, len(unlike(sizes, settings.similar)) - 1


def most_epochs(bench: Workbench, settings: Compression, *, rivals: bool = False) -> int:
    """Return how many epochs Algorithm 1 takes at most, for the progress display; `rivals` counts `controls`, too."""
    return _epochs(bench, 1, sum(_most_trainings(settings)), rivals)


def _epochs(bench: Workbench, long: int, short: int, rivals: bool) -> int:
    # Of the five controls two are short, and one of the three long ones is twice as long.
    long += 4 * rivals
    short += 2 * rivals
    return long * bench.recipe.epochs + short * bench.fine_tuning.epochs


def _row(stage: Stage) -> dict[str, str | int | float | None]:
    return {
        "model": stage.name,
        "role": stage.role,
        "channels": stage.channels,
        "parameters": stage.cost.parameters,
        "mb": stage.cost.size_mb,
        "gmacs": stage.cost.gmacs,
        "map50": stage.tuned.map50,
        "map50_distilled": stage.distilled[1].map50 if stage.distilled else None,
    }
