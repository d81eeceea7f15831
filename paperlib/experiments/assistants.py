"""The paper's experiments, one function per section, written in the workbench's steps and those of Algorithm 1.

Each takes a workbench (one seed) and its notebook's settings and returns the models it made, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from paperlib.workbench.algorithm_1 import distil_chain, prune_to_ratios
from paperlib.workbench.steps import Model, Workbench

Models = dict[str, Model]
Chain = tuple[int, ...]
"""The assistants between teacher and student, by number: 1 is the largest."""


def start_here(workbench: Workbench, settings: StartHere) -> Models:
    """Run Section 3 in five steps: train a new detector with and without Eq. 4, prune it, fine-tune it."""
    new = workbench.build_detector()
    dense = workbench.train(new)
    sparse = workbench.train_sparse(new)
    pruned = workbench.prune(sparse, settings.ratio)
    return {
        "dense": dense,
        "sparse": sparse,
        "pruned": pruned,
        "fine-tuned": workbench.fine_tune(pruned),
    }


def scale_factor(workbench: Workbench, settings: ScaleFactor) -> Models:
    """Train one new detector at each strength of Eq. 4 (Section 4.4.2, Fig. 5); strength 0 is ordinary training."""
    new = workbench.build_detector()
    models = {}
    # Strength 0 is made without the term: then it is the same step as the ordinary training of other notebooks.
    for strength in settings.sparsities:
        name = f"λ = {strength:g}"
        term = Sparsity(strength, settings.sparsity_method)
        models[name] = workbench.train_sparse(new, name, sparsity=term) if strength else workbench.train(new)
    return models


def proximal_step(workbench: Workbench, settings: ScaleFactor) -> Models:
    """Train the same new detector with the same term, minimised by a proximal step instead of Adam."""
    terms = {f"λ = {strength:g}, proximal": Sparsity(strength, "proximal") for strength in settings.proximal}
    return {
        name: workbench.train_sparse(workbench.build_detector(), name, sparsity=term) for name, term in terms.items()
    }


def pruning_ratio(workbench: Workbench, settings: PruningRatio) -> Models:
    """Prune one sparse model to each ratio, then fine-tune (Section 4.4.3); ordinary training is the baseline."""
    new = workbench.build_detector()
    models = {"baseline": workbench.train(new), "sparse": workbench.train_sparse(new)}
    # Every ratio starts from the sparse model: no iteration, so that the ratios can be compared.
    for ratio in settings.ratios:
        models[f"pruned {ratio:.0%}"] = pruned = workbench.prune(models["sparse"], ratio)
        models[f"fine-tuned {ratio:.0%}"] = workbench.fine_tune(pruned, f"fine-tune {ratio:.0%}")
    return models


def baseline(workbench: Workbench, settings: Components) -> Models:
    """Train in the ordinary way: the first row of Table 1 (Section 4.4.1)."""
    return {"baseline": workbench.train(workbench.build_detector())}


def components(workbench: Workbench, settings: Components) -> Models:
    """Train the other rows of Table 1 (Section 4.4.1), all from the same pruned weights and equally long.

    The teacher is the sparsely trained original, as in Algorithm 1; the assistants are the models kept on the
    way to the student. Rows that are not in the paper: sparse training alone and, if asked for, the assistants.
    """
    teacher = workbench.train_sparse(workbench.build_detector())
    *pruned, student = prune_to_ratios(workbench, teacher, settings.ratios)
    names = [f"assistant {ratio:.0%}" for ratio in settings.ratios[:-1]]
    assistants = dict(zip(names, distil_chain(workbench, teacher, pruned), strict=True))
    # The student is not fine-tuned first: the last three rows differ in nothing but the objective.
    models = {
        "sparse": teacher,
        "pruned": student,
        "SCP": workbench.fine_tune(student),
        "SCP + KD": workbench.distil(student, teacher, "distil by the teacher"),
        "SCP + TAKD": workbench.distil(student, assistants[names[-1]], "distil by the last assistant"),
    }
    return models | assistants if settings.assistants else models


def controls(workbench: Workbench, settings: Components) -> Models:
    """Train the student's shape from scratch, as long as the original: a control that Table 1 does not have."""
    *_, student = prune_to_ratios(workbench, workbench.train_sparse(workbench.build_detector()), settings.ratios)
    return {"scratch": workbench.train(workbench.reset_weights(student), "train from scratch")}


def compression(workbench: Workbench, settings: Datasets) -> Models:
    """Run the complete method (Section 4.5, Tables 2-4); each compressed model teaches the next smaller one."""
    new = workbench.build_detector()
    models = {"baseline": workbench.train(new)}
    # Without ratios there is no student, so that no teacher is needed.
    if settings.ratios:
        teacher = workbench.train_sparse(new)
        pruned = prune_to_ratios(workbench, teacher, settings.ratios)
        names = [f"compressed {ratio:.0%}" for ratio in settings.ratios]
        models |= zip(names, distil_chain(workbench, teacher, pruned), strict=True)
    return models


def detectors(workbench: Workbench, settings: Detectors) -> Models:
    """Compress a detector of another kind in one step (Section 4.7, Table 6)."""
    new = workbench.build_detector()
    teacher = workbench.train_sparse(new)
    pruned = workbench.prune(teacher, settings.ratio)
    return {"baseline": workbench.train(new), "pruned": pruned, "compressed": workbench.distil(pruned, teacher)}


def cpu_timing(workbench: Workbench, settings: CpuTiming) -> Models:
    """Make a detector, one with fewer channels and one with fewer residual blocks (Section 4.8, Table 7)."""
    new = workbench.build_detector()
    if settings.trained:
        baseline = workbench.train(new)
        sparse = workbench.train_sparse(new)
        tune = workbench.fine_tune
    else:
        baseline = sparse = workbench.draw_gammas(new)
        tune = _leave_untrained
    models = {"baseline": baseline, "compressed": tune(_cut_for_timing(workbench, sparse, settings))}
    # Ratio 0 keeps all channels, so that only the effect of the blocks is timed.
    if settings.layers:
        models["shallow"] = tune(workbench.prune(sparse, 0.0, layers=settings.layers))
    return models


def _cut_for_timing(workbench: Workbench, model: Model, settings: CpuTiming) -> Model:
    if settings.compute_share is None:
        return workbench.prune(model, settings.ratio)
    gmacs = cost(model.architecture(), settings.image_size).gmacs
    return workbench.prune(model, gmacs=settings.compute_share * gmacs)


def _leave_untrained(model: Model) -> Model:
    return model


def assistant_count(workbench: Workbench, settings: AssistantCount) -> Models:
    """Distil one student by the teacher (TK) or through assistants (TAK1, TAK2, ...; Section 4.4.4, Fig. 8).

    All students start from the same pruned weights; SCP is fine-tuned without a teacher. An assistant that two chains
    reach through the same teachers is distilled once: the second chain finds it in the store.
    """
    teacher = workbench.train_sparse(workbench.build_detector())
    *assistants, student = prune_to_ratios(workbench, teacher, settings.ratios)
    models = {"teacher": teacher, "pruned": student, "SCP": workbench.fine_tune(student)}
    for name, chain in spread_chains(len(assistants)).items():
        names = [*(name_assistant(name, settings.ratios[number - 1]) for number in chain), name]
        students = [*(assistants[number - 1] for number in chain), student]
        models |= zip(names, distil_chain(workbench, teacher, students), strict=True)
    return models


def pruning_methods(workbench: Workbench, settings: PruningMethods) -> Models:
    """Prune one sparse model to one size by each criterion, and fine-tune equally long (Section 4.6, Table 5)."""
    new = workbench.build_detector()
    baseline = workbench.train(new)
    sparse = workbench.train_sparse(new)
    pruned = cut_to_size(workbench, sparse, ("gamma", "l1", "l1-layerwise", "taylor"), settings.size_share)
    return {"baseline": baseline, "sparse": sparse, **pruned}


def without_sparsity(workbench: Workbench, settings: PruningMethods) -> Models:
    """Prune by the other criteria as their authors do: a network trained without Eq. 4."""
    criteria = ("l1", "l1-layerwise", "taylor")
    dense = workbench.train(workbench.build_detector())
    return cut_to_size(workbench, dense, criteria, settings.size_share, " without Eq. 4")


def at_equal_compute(workbench: Workbench, settings: PruningMethods) -> Models:
    """Prune the sparse model to one number of multiply-accumulates by each criterion, and fine-tune equally long.

    At one size, criteria that remove other layers leave other amounts of compute, so a comparison needs both.
    """
    if settings.compute_share is None:
        return {}
    sparse = workbench.train_sparse(workbench.build_detector())
    gmacs = settings.compute_share * cost(sparse.architecture(), settings.image_size).gmacs
    models = {}
    for name in ("gamma", "l1-layerwise", "taylor"):
        label = f"{name} at equal compute"
        models[f"{label} pruned"] = pruned = workbench.prune(sparse, gmacs=gmacs, importance=name)
        models[label] = workbench.fine_tune(pruned, f"fine-tune {label}")
    return models


def cut_to_size(workbench: Workbench, model: Model, criteria: Sequence[str], ratio: float, suffix: str = "") -> Models:
    """Prune a model by each criterion to a fraction of its size, and fine-tune the results."""
    # At one ratio the criteria would give models of different sizes, whose accuracies cannot be compared.
    size = ratio * cost(model.architecture()).size_mb
    models = {}
    for name in criteria:
        models[f"{name}{suffix} pruned"] = pruned = workbench.prune(model, size_mb=size, importance=name)
        models[f"{name}{suffix}"] = workbench.fine_tune(pruned, f"fine-tune {name}{suffix}")
    return models


def spread_chains(assistants: int) -> dict[str, Chain]:
    """Return the chains of Fig. 8 by name: none of the assistants, one, ..., all, spread evenly.

    Of three assistants TAK1 takes the second, TAK2 the first and the third. The paper does not say which it takes.
    """
    names = {count: f"TAK{count}" if count else "TK" for count in range(assistants + 1)}
    return {name: _spread_evenly(count, assistants) for count, name in names.items()}


def name_assistant(chain: str, ratio: float) -> str:
    """Return the name of an assistant within a chain."""
    return f"{chain}: assistant {ratio:.0%}"


def _spread_evenly(count: int, total: int) -> Chain:
    # Halves are rounded up, so the smaller of two assistants that are equally near is taken.
    return tuple(int(index * (total + 1) / (count + 1) + 0.5) for index in range(1, count + 1))


def _count_in_chains(assistants: int) -> int:
    """Return how many distillations all chains ask for, those included that the store already has."""
    return sum(len(chain) + 1 for chain in spread_chains(assistants).values())


class Trainings(NamedTuple):
    """How many trainings an experiment takes: long ones from scratch, and short ones such as fine-tuning."""

    long: int
    short: int = 0

    @property
    def both_kinds(self) -> int:
        """Return the number of both kinds together."""
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
    assistant_count: lambda settings: Trainings(1, len(settings.ratios) + _count_in_chains(len(settings.ratios) - 1)),
    pruning_methods: lambda settings: Trainings(2, 4),
    without_sparsity: lambda settings: Trainings(1, 3),
    at_equal_compute: lambda settings: Trainings(1, 3) if settings.compute_share else Trainings(0),
}
"""How many trainings each experiment asks for, for the progress display."""
