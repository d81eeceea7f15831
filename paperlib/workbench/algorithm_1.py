"""Algorithm 1: prune and fine-tune until accuracy falls, keep the models, thin them out, distil down the chain.

Written in the workbench's steps and nothing else, so that it reads like the paper's listing, whose line numbers stand
in comments, and resumes after every step. Notebooks, which prune to given ratios, and `paperlib compress`, which stops
at a drop of accuracy, call the same functions. Accuracy is mAP at IoU 0.5 on the validation split; the test split is
never used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil, floor
from typing import Any

from torch import nn

from paperlib.costs import cost
from paperlib.data.records import Dataset
from paperlib.partners.partnership import Partnership
from paperlib.progress.report import expect_work
from paperlib.pruning import Sparsity
from paperlib.store.store import Store
from paperlib.training.recipe import Recipe
from paperlib.workbench.checks import check_classes, check_data, check_detector
from paperlib.workbench.options import (
    Blueprint,
    Compression,
    DistillationOptions,
    IterationOptions,
    PruningOptions,
    TeachingOptions,
)
from paperlib.workbench.stages import Compressed, Reason, Role, Stage, channel_counts
from paperlib.workbench.steps import Model, Workbench

SMALLEST = 1 - 1e-9
"""Pruning ratio that removes every channel which the floor of its layer and its coupled layers let go."""


Cut = dict[str, Any]
"""How far to prune: `ratio`, `channels` or `size_mb` of `Workbench.prune`."""
NextCut = Callable[[Model], Cut | None]
"""Given the current model, how far to prune it; None ends the iterations."""


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
    check_data(train, val)
    check_classes(detector, train)
    workbench = make_workbench(train, val, recipe, settings, store)
    return replace(run_algorithm_1(workbench, workbench.adopt_detector(detector), settings), pure=settings.pure)


def make_workbench(
    train: Dataset, val: Dataset, recipe: Recipe, settings: Compression, store: Store | None,
    blueprint: Blueprint | None = None,
) -> Workbench:  # fmt: skip
    """Return a workbench for Algorithm 1, without a test split."""
    return Workbench(
        train_set=train,
        validation=val,
        test=None,
        blueprint=blueprint,
        recipe=recipe,
        fine_tuning=settings.fine_tuning_after(recipe),
        sparsity=Sparsity(settings.sparsity, settings.sparsity_method),
        pruning=settings.select(PruningOptions),
        distillation=settings.select(DistillationOptions),
        partners=Partnership(settings.diversity_weight, settings.diversity) if settings.partners else None,
        teaching=settings.select(TeachingOptions),
        store=store,
    )


def run_algorithm_1(
    workbench: Workbench, given: Model, options: IterationOptions, *, with_controls: bool = False
) -> Compressed:
    """Run the listing with its stop rule; `with_controls` tells the progress display that controls will follow."""
    expect_work(most_epochs(workbench, options, with_controls=with_controls))
    teacher = workbench.train_sparse(given)  # lines 2-3
    rule = StopRule(workbench, teacher, options)
    iterate_pruning(workbench, teacher, rule.next_cut)
    stages = thin_out(rule.stages, options)
    chain = [stage for stage in stages if stage.role in ("assistant", "student")]
    expect_work(_count_epochs(workbench, 0, len(chain), with_controls))
    taught = {}
    for stage, model in zip(chain, distil_chain(workbench, teacher, [stage.model for stage in chain]), strict=True):
        taught[stage.name] = replace(stage, distilled=(model, workbench.evaluate(model, "val")))
    return Compressed([taught.get(stage.name, stage) for stage in stages], rule.stopped, given, workbench)


def iterate_pruning(workbench: Workbench, teacher: Model, next_cut: NextCut, most: int | None = None) -> list[Model]:
    """Prune, fine-tune and go on from there, for as long as `next_cut` returns a further cut (lines 10-20).

    Args:
        workbench: makes the steps.
        teacher: the sparsely trained original, of which the floor of every layer is a fraction.
        next_cut: the stop rule, or a list of given cuts.
        most: number of cuts after which to stop, the last pruned model not fine-tuned; None: until `next_cut` stops.

    Returns:
        The pruned models as they were before their fine-tuning, the largest first.
    """
    current = teacher
    pruned: list[Model] = []
    while cut := next_cut(current):  # line 10
        original = teacher if pruned else None
        pruned.append(workbench.prune(current, original=original, **cut))  # lines 11-14
        if len(pruned) == most:
            break
        label = f"fine-tune pruned model {len(pruned)}"
        current = workbench.fine_tune(pruned[-1], label, sparse=True)  # lines 15 and 19
    return pruned


def prune_to_ratios(workbench: Workbench, teacher: Model, ratios: Sequence[float]) -> list[Model]:
    """Run the iterations to given fractions of removed channels, without delta.

    Args:
        workbench: makes the steps.
        teacher: the sparsely trained original.
        ratios: ascending fractions of the original channels that are removed after each iteration.

    Returns:
        The pruned models before any further training, one per ratio.
    """
    # A ratio of the original becomes a ratio of what the previous iteration has left.
    cuts = iter([{"ratio": 1 - (1 - after) / (1 - before)} for before, after in pairwise([0.0, *ratios])])
    return iterate_pruning(workbench, teacher, lambda _: next(cuts, None), most=len(ratios))


@dataclass
class StopRule:
    """The condition of line 10: go on while E_0 - E_p < delta; a target size or the floor of all layers ends it, too.

    Attributes:
        stages: the models evaluated so far, the original first.
        stopped: why the iterations ended.
    """

    workbench: Workbench
    teacher: Model
    options: IterationOptions
    stages: list[Stage] = field(default_factory=list)
    stopped: Reason = "drop"

    def next_cut(self, model: Model) -> Cut | None:
        """Evaluate a model, keep it, and return how far to prune it; None ends the iterations."""
        self.stages.append(self._evaluate_stage(model))  # lines 15 and 17
        current = self.stages[-1]
        # The listing prints E_p <- 0. Any detector worth compressing has E_0 > delta, so that loop would never begin:
        # E_0 is meant, because nothing has been lost yet.
        drop = self.stages[0].tuned.map50 - current.tuned.map50
        if drop >= self.options.max_drop:
            self.stages[-1] = replace(current, role="rejected")  # lines 21-22
            return None
        if self.options.target_mb and current.cost.size_mb <= self.options.target_mb:
            self.stopped = "target"
            return None
        cut = self._smaller_cut(current)
        if self.workbench.plan(model, original=self.teacher, **cut).channels_kept >= current.channels:
            self.stopped = "floor"
            return None
        return cut

    def _evaluate_stage(self, model: Model) -> Stage:
        detector = model.detector()
        name = f"pruned {len(self.stages)}" if self.stages else "original"
        model_cost = cost(detector, self.workbench.recipe.image_size)
        channels = sum(channel_counts(detector).values())
        return Stage(name, model, "teacher", channels, model_cost, self.workbench.evaluate(model, "val"))

    def _smaller_cut(self, current: Stage) -> Cut:
        """Return the cut of one step, not below the floor and not below the target size."""
        wanted = floor(current.channels - self.options.step * self.stages[0].channels)
        least = self.workbench.plan(current.model, SMALLEST, original=self.teacher)
        cut: Cut = {"channels": max(wanted, least.channels_kept)}
        if target := self.options.target_mb:
            plan = self.workbench.plan(current.model, original=self.teacher, **cut)
            if plan.cost_after and plan.cost_after.size_mb < target:
                return {"size_mb": target}
        return cut


def thin_out(stages: list[Stage], options: IterationOptions) -> list[Stage]:
    """Return the stages with their roles in the chain, after models of similar capacity are dropped (line 23)."""
    good = [stage for stage in stages if stage.role != "rejected"]
    kept = select_unlike([getattr(stage.cost, options.capacity) for stage in good], options.similar)
    roles: list[Role] = ["assistant" if index in kept else "similar" for index in range(len(good))]
    roles[-1] = "student"
    roles[0] = "teacher"
    named = [replace(stage, role=role) for stage, role in zip(good, roles, strict=True)]
    return named + stages[len(good) :]


def select_unlike(capacities: Sequence[float], similar: float) -> list[int]:
    """Return the indices of the models that stay, given falling capacities: both ends, and those between that differ.

    From the student up, a model is dropped if its lower neighbour has more than the fraction `similar` of its
    capacity; at the top the teacher stays, and the assistant goes.
    """
    kept = [len(capacities) - 1]
    for index in range(len(capacities) - 2, 0, -1):
        lower = capacities[kept[-1]]
        upper = capacities[index]
        if lower <= similar * upper and upper <= similar * capacities[0]:
            kept.append(index)
    return sorted({0, *kept})


def distil_chain(workbench: Workbench, teacher: Model, students: Sequence[Model]) -> Iterator[Model]:
    """Distil down the chain: each model is taught by the one before, after that one's own distillation (lines 24-26).

    Args:
        workbench: makes the steps.
        teacher: the teacher of the first student.
        students: the assistants and the student, the largest first.

    Yields:
        The distilled models, in the same order.
    """
    for number, student in enumerate(students, 1):
        teacher = workbench.distil(student, teacher, f"distil model {number} of {len(students)}")
        yield teacher


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


def most_epochs(workbench: Workbench, options: IterationOptions, *, with_controls: bool = False) -> int:
    """Return the largest number of epochs that Algorithm 1 can take, for the progress display."""
    least = workbench.pruning.min_keep_ratio
    steps = range(ceil((1 - least) / options.step) + 1)
    # Sizes fall about as the square of the channels.
    sizes = [max(1 - number * options.step, least) ** 2 for number in steps]
    distilled = len(select_unlike(sizes, options.similar)) - 1
    return _count_epochs(workbench, 1, len(sizes) - 1 + distilled, with_controls)


def _count_epochs(workbench: Workbench, long: int, short: int, with_controls: bool) -> int:
    # Of the five controls two are short, and one of the three long ones is twice as long. Partners add a short one.
    long += 4 * with_controls
    short += (2 + bool(workbench.partners)) * with_controls
    return long * workbench.recipe.epochs + short * workbench.fine_tuning.epochs
