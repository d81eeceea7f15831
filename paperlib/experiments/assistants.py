"""The paper's experiments, one function per section, written in the workbench's steps.

Each takes a workbench (one seed) and its notebook's settings and gives the models it made, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from paperlib.costs import cost
from paperlib.experiments.parameters import (
    AssistantCount,
    Components,
    CpuTiming,
    Datasets,
    Detectors,
    PruningMethods,
    PruningRatio,
    ScaleFactor,
    StartHere,
)
from paperlib.pruning import Sparsity
from paperlib.workbench.steps import Model, Workbench

Models = dict[str, Model]
Links = tuple[int, ...]
"""Which assistants a chain goes through, counted from 1, the largest first."""


def start_here(bench: Workbench, settings: StartHere) -> Models:
    """Section 3 in five steps: a detector, trained with and without Eq. 4, cut, and tuned again."""
    new = bench.build_detector()
    dense, sparse = bench.train(new), bench.train_sparse(new)
    pruned = bench.prune(sparse, settings.ratio)
    return {
        "dense": dense,
        "sparse": sparse,
        "pruned": pruned,
        "fine-tuned": bench.fine_tune(pruned),
    }


def scale_factor(bench: Workbench, settings: ScaleFactor) -> Models:
    """Section 4.4.2, Fig. 5: one start, trained at each strength of Eq. 4; strength 0 is ordinary training."""
    new, models = bench.build_detector(), {}
    for strength in settings.sparsities:
        name, term = f"λ = {strength:g}", Sparsity(strength, settings.sparsity_method)
        models[name] = bench.train_sparse(new, name, sparsity=term) if strength else bench.train(new)
    return models


def proximal_step(bench: Workbench, settings: ScaleFactor) -> Models:
    """The same start and the same term, minimised by a proximal step in place of Adam's."""
    terms = {f"λ = {strength:g}, proximal": Sparsity(strength, "proximal") for strength in settings.proximal}
    return {name: bench.train_sparse(bench.build_detector(), name, sparsity=term) for name, term in terms.items()}


def pruning_ratio(bench: Workbench, settings: PruningRatio) -> Models:
    """Section 4.4.3: one sparse model cut at each ratio, before and after fine-tuning; ordinary training beside it."""
    new = bench.build_detector()
    models = {"baseline": bench.train(new), "sparse": bench.train_sparse(new)}
    for ratio in settings.ratios:
        models[f"pruned {ratio:.0%}"] = pruned = bench.prune(models["sparse"], ratio)
        models[f"fine-tuned {ratio:.0%}"] = bench.fine_tune(pruned, f"fine-tune {ratio:.0%}")
    return models


def baseline(bench: Workbench, settings: Components) -> Models:
    """Section 4.4.1, Table 1, first row: ordinary training."""
    return {"baseline": bench.train(bench.build_detector())}


def components(bench: Workbench, settings: Components) -> Models:
    """Section 4.4.1, Table 1: every other row starts from the same pruned weights and is trained equally long.

    The teacher is the sparsely trained original, as in Algorithm 1; the assistants are the models kept on the
    way to the student. A row that the paper leaves out: sparse training alone.
    """
    teacher = bench.train_sparse(bench.build_detector())
    *assistants, student = prune_iteratively(bench, teacher, settings.ratios)
    link = teacher
    for number, assistant in enumerate(assistants, 1):
        link = bench.distil(assistant, link, f"distil assistant {number}")
    return {
        "sparse": teacher,
        "pruned": student,
        "SCP": bench.fine_tune(student),
        "SCP + KD": bench.distil(student, teacher, "distil by the teacher"),
        "SCP + TAKD": bench.distil(student, link, "distil by the last assistant"),
    }


def controls(bench: Workbench, settings: Components) -> Models:
    """What Table 1 leaves out: the student's shape trained from scratch, as long as the original was."""
    *_, student = prune_iteratively(bench, bench.train_sparse(bench.build_detector()), settings.ratios)
    return {"scratch": bench.train(bench.reset_weights(student), "train from scratch")}


def compression(bench: Workbench, settings: Datasets) -> Models:
    """Section 4.5, Tables 2-4: the whole method; each compressed model is the assistant of the next smaller one."""
    new = bench.build_detector()
    models = {"baseline": bench.train(new)}
    if settings.ratios:
        teacher = bench.train_sparse(new)
        for ratio, pruned in zip(settings.ratios, prune_iteratively(bench, teacher, settings.ratios), strict=True):
            models[f"compressed {ratio:.0%}"] = teacher = bench.distil(pruned, teacher, f"distil {ratio:.0%}")
    return models


def detectors(bench: Workbench, settings: Detectors) -> Models:
    """Section 4.7, Table 6: the method in one step on a detector of another kind."""
    new = bench.build_detector()
    teacher = bench.train_sparse(new)
    pruned = bench.prune(teacher, settings.ratio)
    return {"baseline": bench.train(new), "pruned": pruned, "compressed": bench.distil(pruned, teacher)}


def cpu_timing(bench: Workbench, settings: CpuTiming) -> Models:
    """Section 4.8, Table 7: a detector, what is left of it without channels, and what without residual blocks."""
    new = bench.build_detector()
    if settings.trained:
        baseline, sparse, tune = bench.train(new), bench.train_sparse(new), bench.fine_tune
    else:
        baseline = sparse = bench.draw_gammas(new)
        tune = _as_it_is
    models = {"baseline": baseline, "compressed": tune(bench.prune(sparse, settings.ratio))}
    if settings.layers:
        models["shallow"] = tune(bench.prune(sparse, 0.0, layers=settings.layers))
    return models


def _as_it_is(model: Model) -> Model:
    return model


def assistant_count(bench: Workbench, settings: AssistantCount) -> Models:
    """Section 4.4.4, Fig. 8: one student, taught by the teacher (TK) or through assistants (TAK1, TAK2, ...).

    All students start from the same pruned weights; SCP is the one that is fine-tuned without any teacher. An
    assistant is distilled once for all chains that are the same up to it.
    """
    teacher = bench.train_sparse(bench.build_detector())
    *assistants, student = prune_iteratively(bench, teacher, settings.ratios)
    models = {"teacher": teacher, "pruned": student, "SCP": bench.fine_tune(student)}
    taught = {(): teacher}
    for name, links in chains(len(assistants)).items():
        for number, link in enumerate(links):
            before, here = links[:number], links[: number + 1]
            if here not in taught:
                taught[here] = bench.distil(assistants[link - 1], taught[before], f"distil assistant {link}")
            models[link_name(name, settings.ratios[link - 1])] = taught[here]
        models[name] = bench.distil(student, taught[links], f"distil the student, {name}")
    return models


def pruning_methods(bench: Workbench, settings: PruningMethods) -> Models:
    """Section 4.6, Table 5: one sparse model, cut to one size by each criterion and fine-tuned equally long."""
    new = bench.build_detector()
    baseline, sparse = bench.train(new), bench.train_sparse(new)
    cut = cut_to_size(bench, sparse, ("gamma", "l1", "l1-layerwise", "taylor"), settings.size_share)
    return {"baseline": baseline, "sparse": sparse, **cut}


def without_sparsity(bench: Workbench, settings: PruningMethods) -> Models:
    """The rivals as their authors use them: on a network trained without Eq. 4."""
    rivals = ("l1", "l1-layerwise", "taylor")
    return cut_to_size(bench, bench.train(bench.build_detector()), rivals, settings.size_share, " without Eq. 4")


def cut_to_size(bench: Workbench, model: Model, criteria: Sequence[str], share: float, suffix: str = "") -> Models:
    """A model cut by each criterion to a share of its size, before and after fine-tuning."""
    models, size = {}, share * cost(model.detector()).size_mb
    for name in criteria:
        models[f"{name}{suffix} pruned"] = pruned = bench.prune(model, size_mb=size, importance=name)
        models[f"{name}{suffix}"] = bench.fine_tune(pruned, f"fine-tune {name}{suffix}")
    return models


def chains(assistants: int) -> dict[str, Links]:
    """The chains of Fig. 8 by name: none of the assistants, one, ..., all; spread evenly, ties to the smaller one.

    Of three assistants TAK1 takes the second, TAK2 the first and the third. The paper does not say which it takes.
    """
    names = {count: f"TAK{count}" if count else "TK" for count in range(assistants + 1)}
    return {name: _spread_evenly(count, assistants) for count, name in names.items()}


def link_name(chain: str, ratio: float) -> str:
    """The name of an assistant within a chain."""
    return f"{chain}: assistant {ratio:.0%}"


def prune_iteratively(bench: Workbench, model: Model, ratios: list[float]) -> list[Model]:
    """Algorithm 1, lines 10-20: prune, fine-tune, prune on; the pruned models, before their fine-tuning.

    `ratios` are shares of the original channels; each iteration cuts the rest that is due. The floor of a layer, too,
    is a share of what it had in the original.
    """
    whole, pruned = model, []
    for number, (before, after) in enumerate(pairwise([0.0, *ratios]), 1):
        if pruned:
            model = bench.fine_tune(pruned[-1], f"fine-tune {number - 1}", sparse=True)
        ratio = 1 - (1 - after) / (1 - before)
        pruned.append(bench.prune(model, ratio, original=whole if pruned else None))
    return pruned


def _spread_evenly(count: int, total: int) -> Links:
    return tuple(int(place * (total + 1) / (count + 1) + 0.5) for place in range(1, count + 1))


def _assistants_distilled(total: int) -> int:
    """How many distillations make the assistants of all chains."""
    return len({links[: number + 1] for links in chains(total).values() for number in range(len(links))})


class Trainings(NamedTuple):
    """How many trainings an experiment takes: long ones from scratch, and short ones such as fine-tuning."""

    long: int
    short: int = 0

    @property
    def count(self) -> int:
        """Both kinds together."""
        return self.long + self.short

    def epochs(self, long: int, short: int) -> int:
        """Return the epochs of all trainings, from those of a long and of a short one."""
        return self.long * long + self.short * short


TRAININGS: dict[Callable[..., Models], Callable[[Any], Trainings]] = {
    start_here: lambda settings: Trainings(2, 1),
    scale_factor: lambda settings: Trainings(len(settings.sparsities)),
    proximal_step: lambda settings: Trainings(len(settings.proximal)),
    pruning_ratio: lambda settings: Trainings(2, len(settings.ratios)),
    baseline: lambda settings: Trainings(1),
    components: lambda settings: Trainings(1, 1 + 2 * len(settings.ratios)),
    controls: lambda settings: Trainings(2, len(settings.ratios) - 1),
    compression: lambda settings: Trainings(1 + bool(settings.ratios), max(2 * len(settings.ratios) - 1, 0)),
    detectors: lambda settings: Trainings(2, 1),
    cpu_timing: lambda settings: Trainings(2, 1 + (settings.layers > 0)) if settings.trained else Trainings(0),
    assistant_count: lambda settings: Trainings(
        1, 2 * len(settings.ratios) + _assistants_distilled(len(settings.ratios) - 1)
    ),
    pruning_methods: lambda settings: Trainings(2, 4),
    without_sparsity: lambda settings: Trainings(1, 3),
}
"""How many trainings each experiment takes, for the progress display."""
