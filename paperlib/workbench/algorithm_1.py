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

from paperlib.costs import cost
from paperlib.data.records import Dataset
from paperlib.partners.partnership import Partnership
from paperlib.progress.report import expect_work
from paperlib.pruning import Sparsity
from paperlib.store.store import Store
from paperlib.training.recipe import Recipe
from paperlib.workbench.options import (
    Blueprint,
    Compression,
    DistillationOptions,
    IterationOptions,
    PartnerOptions,
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
HasTime = Callable[[str, Model, int], bool]
"""Given the name of what comes next, a model at least as large as those to train, and the number of short trainings
that it needs, whether there is time for it."""


def always_time(_name: str, _model: Model, _trainings: int) -> bool:
    """Return True: without a budget there is time for everything."""
    return True


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
        partners=make_partnership(settings) if settings.partners else None,
        teaching=settings.select(TeachingOptions),
        store=store,
    )


def make_partnership(settings: PartnerOptions) -> Partnership:
    """Return how partners train."""
    return Partnership(settings.diversity_weight, settings.diversity)


def run_algorithm_1(
    workbench: Workbench, given: Model, options: IterationOptions, *, later: int = 0, has_time: HasTime = always_time
) -> Compressed:
    """Run the listing with its stop rule.

    Args:
        workbench: makes the steps.
        given: the detector, trained or not.
        options: when to stop, and which models teach.
        later: epochs of what will follow, for the progress display.
        has_time: asked before each further pruning, and before the distillation of the assistants, which is left out
            if the answer is no: then the original teaches the student.
    """
    expect_work(most_epochs(workbench, options) + later)
    teacher = workbench.train_sparse(given)  # lines 2-3
    rule = StopRule(workbench, teacher, options, has_time)
    iterate_pruning(workbench, teacher, rule.next_cut)
    stages = thin_out(rule.stages, options)
    chain = [stage for stage in stages if stage.role in ("assistant", "student")]
    if len(chain) > 1 and not has_time("distillation of the assistants", chain[0].model, len(chain)):
        stages = [replace(stage, role="similar") if stage.role == "assistant" else stage for stage in stages]
        chain = chain[-1:]
    expect_work(len(chain) * workbench.fine_tuning.epochs + later)
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
    has_time: HasTime = always_time
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
        # The next model is fine-tuned, and the last one is distilled afterwards.
        if not self.has_time(f"pruning {len(self.stages)}", model, 2):
            self.stopped = "time"
            return None
        return cut

    def _evaluate_stage(self, model: Model) -> Stage:
        detector = model.architecture()
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


def most_epochs(workbench: Workbench, options: IterationOptions) -> int:
    """Return the largest number of epochs that Algorithm 1 can take, for the progress display."""
    least = workbench.pruning.min_keep_ratio
    steps = range(ceil((1 - least) / options.step) + 1)
    # Sizes fall about as the square of the channels.
    sizes = [max(1 - number * options.step, least) ** 2 for number in steps]
    distilled = len(select_unlike(sizes, options.similar)) - 1
    return workbench.recipe.epochs + (len(sizes) - 1 + distilled) * workbench.fine_tuning.epochs
