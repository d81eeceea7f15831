"""The paper's experiments, one function per section, written in the workbench's steps.

Each takes a workbench (one seed) and its notebook's settings and gives the models it made, by name.
"""

from __future__ import annotations

from itertools import pairwise

from paperlib.settings import Components, CpuTiming, Datasets, Detectors, PruningRatio, StartHere
from paperlib.workbench import Model, Workbench

Models = dict[str, Model]


def start_here(bench: Workbench, settings: StartHere) -> Models:
    """Section 3 in five steps: a detector, trained with and without Eq. 4, cut, and tuned again."""
    new = bench.new()
    dense, sparse = bench.train(new), bench.train_sparse(new)
    pruned = bench.prune(sparse, settings.ratio)
    return {
        "dense": dense,
        "sparse": sparse,
        "pruned": pruned,
        "fine-tuned": bench.fine_tune(pruned),
    }


def pruning_ratio(bench: Workbench, settings: PruningRatio) -> Models:
    """Section 4.4.3: one sparse model cut at each ratio, before and after fine-tuning."""
    models = {"sparse": bench.train_sparse(bench.new())}
    for ratio in settings.ratios:
        models[f"pruned {ratio:.0%}"] = pruned = bench.prune(models["sparse"], ratio)
        models[f"fine-tuned {ratio:.0%}"] = bench.fine_tune(pruned, f"fine-tune {ratio:.0%}")
    return models


def components(bench: Workbench, settings: Components) -> Models:
    """Section 4.4.1, Table 1: every row starts from the same pruned weights and is trained equally long.

    The teacher is the sparsely trained original, as in Algorithm 1; the assistants are the models kept on the
    way to the student. A row that the paper leaves out: sparse training alone.
    """
    new = bench.new()
    teacher = bench.train_sparse(new)
    *assistants, student = prune_iteratively(bench, teacher, settings.ratios)
    link = teacher
    for number, assistant in enumerate(assistants, 1):
        link = bench.distil(assistant, link, f"distil assistant {number}")
    return {
        "baseline": bench.train(new),
        "sparse": teacher,
        "pruned": student,
        "SCP": bench.fine_tune(student),
        "SCP + KD": bench.distil(student, teacher, "distil by the teacher"),
        "SCP + TAKD": bench.distil(student, link, "distil by the last assistant"),
    }


def controls(bench: Workbench, settings: Components) -> Models:
    """What Table 1 leaves out: the student's shape trained from scratch, as long as the original was."""
    *_, student = prune_iteratively(bench, bench.train_sparse(bench.new()), settings.ratios)
    return {"scratch": bench.train(bench.reset(student), "train from scratch")}


def compression(bench: Workbench, settings: Datasets) -> Models:
    """Section 4.5, Tables 2-4: the whole method; each compressed model is the assistant of the next smaller one."""
    new = bench.new()
    models = {"baseline": bench.train(new)}
    if settings.ratios:
        teacher = bench.train_sparse(new)
        for ratio, pruned in zip(settings.ratios, prune_iteratively(bench, teacher, settings.ratios), strict=True):
            models[f"compressed {ratio:.0%}"] = teacher = bench.distil(pruned, teacher, f"distil {ratio:.0%}")
    return models


def detectors(bench: Workbench, settings: Detectors) -> Models:
    """Section 4.7, Table 6: the method in one step on a detector of another kind."""
    new = bench.new()
    teacher = bench.train_sparse(new)
    pruned = bench.prune(teacher, settings.ratio)
    return {"baseline": bench.train(new), "pruned": pruned, "compressed": bench.distil(pruned, teacher)}


def cpu_timing(bench: Workbench, settings: CpuTiming) -> Models:
    """Section 4.8, Table 7: a detector, what is left of it without channels, and what without residual blocks."""
    new = bench.new()
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


def prune_iteratively(bench: Workbench, model: Model, ratios: list[float]) -> list[Model]:
    """Algorithm 1, lines 10-20: prune, fine-tune, prune on; the pruned models, before their fine-tuning.

    `ratios` are shares of the original channels; each iteration cuts the rest that is due.
    """
    pruned = []
    for number, (before, after) in enumerate(pairwise([0.0, *ratios]), 1):
        if pruned:
            model = bench.fine_tune(pruned[-1], f"fine-tune {number - 1}", sparse=True)
        pruned.append(bench.prune(model, 1 - (1 - after) / (1 - before)))
    return pruned


TRAININGS = {
    start_here: lambda settings: 3,
    pruning_ratio: lambda settings: 1 + len(settings.ratios),
    components: lambda settings: 3 + 2 * len(settings.ratios),
    controls: lambda settings: 1 + len(settings.ratios),
    compression: lambda settings: 1 + 2 * len(settings.ratios),
    detectors: lambda settings: 3,
    cpu_timing: lambda settings: 3 + (settings.layers > 0) if settings.trained else 0,
}
"""How many trainings each experiment takes, for the progress display."""
