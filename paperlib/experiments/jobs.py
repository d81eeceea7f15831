"""The jobs of a batch on a cluster: every experiment of a notebook, for each case and seed, and what each waits for.

    for job in plan_jobs({"03_components": settings}): print(job.name, job.after)

Nothing is trained for a plan. The experiments run on a store in which every training leaves the network unchanged, so
only the order of steps and their digests are learned. A training that two jobs need belongs to the first of them, and
the others wait for it in the queue; those from scratch are jobs of their own, because most others start from them.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paperlib import files
from paperlib.costs import cost
from paperlib.experiments import assistants, dynamic, partners
from paperlib.experiments.case import Case
from paperlib.experiments.equal_cost import equal_cost
from paperlib.experiments.planning import PlanningStore, UnplannableError
from paperlib.experiments.run import Experiment
from paperlib.experiments.settings import Common, Settings
from paperlib.experiments.study import Study
from paperlib.progress.processes import keep_memory
from paperlib.progress.report import plan_work
from paperlib.store.imported import read_network_metadata
from paperlib.store.store import Step
from paperlib.workbench.algorithm_1 import run_algorithm_1
from paperlib.workbench.architecture import load_architecture
from paperlib.workbench.options import IterationOptions
from paperlib.workbench.steps import DETECTOR, Workbench

PASSES = 3
"""Of the student, for each image of a training: the backward pass counts twice. A teacher makes one."""


def from_scratch(workbench: Workbench, settings: Any) -> assistants.Models:
    """Train a new network without the term of Eq. 4."""
    return {"dense": workbench.train(workbench.build_detector())}


def from_scratch_sparse(workbench: Workbench, settings: Any) -> assistants.Models:
    """Train a new network with the term of Eq. 4."""
    return {"sparse": workbench.train_sparse(workbench.build_detector())}


def algorithm_1(workbench: Workbench, settings: Any) -> assistants.Models:
    """Do what `Study.run_algorithm_1` does. How long it goes on depends on the accuracy, so this cannot be planned."""
    run_algorithm_1(workbench, workbench.build_detector(), settings.select(IterationOptions))
    return {}


ROOTS: Sequence[Experiment] = (from_scratch, from_scratch_sparse)
EXPERIMENTS: Mapping[str, Sequence[Experiment]] = {
    "00_start_here": (assistants.start_here, algorithm_1),
    "01_scale_factor": (assistants.scale_factor, assistants.proximal_step),
    "02_pruning_ratio": (assistants.pruning_ratio,),
    "03_components": (assistants.baseline, assistants.components, assistants.controls, equal_cost),
    "04_assistant_count": (assistants.assistant_count,),
    "05_datasets": (assistants.compression,),
    "06_pruning_methods": (
        assistants.pruning_methods, assistants.without_sparsity, assistants.at_equal_compute,
    ),
    "07_detectors": (assistants.detectors,),
    "08_cpu_timing": (assistants.cpu_timing,),
    "09_dynamic_distillation": (dynamic.ablation, dynamic.other_rows, dynamic.half_way),
    "10_partner_learning": (partners.components, partners.rivals, partners.keep_rates, partners.detection),
}  # fmt: skip
"""What each notebook gives to `Study.run`."""


@dataclass(frozen=True)
class PlannedJob:
    """An experiment for one case and seed.

    Attributes:
        name: of the job: letters, digits, `_`, `-`, and a `.`, which no notebook's name has.
        notebook, experiment, case, seed: what it does.
        trainings: digests of its training steps, as far as they can be known before.
        after: the names of the jobs whose trainings it needs.
        gmacs: multiply-accumulates / 10^9 of the trainings that no earlier job does, as if nothing were pruned.
        megabytes: size of its training images, as they are kept in memory.
        megapixels: size of a batch of them.
        threads: of its process.
    """

    name: str
    notebook: str
    experiment: str
    case: str
    seed: int
    trainings: tuple[str, ...]
    after: tuple[str, ...]
    gmacs: float
    megabytes: float
    megapixels: float
    threads: int


def experiments_of(notebook: str, case: Case, seed: int) -> Sequence[Experiment]:
    """Return the experiments of a notebook that a case takes part in with a seed."""
    every = EXPERIMENTS[notebook]
    if notebook == "10_partner_learning":
        return [part for part in every if (part is partners.detection) != case.is_classifier]
    first = case.name == "" and seed == case.settings.seeds[0]
    return every if first else [part for part in every if part is not algorithm_1]


def plan_jobs(settings: Mapping[str, Common]) -> list[PlannedJob]:
    """Return the jobs of notebooks, each after those that it waits for.

    Args:
        settings: those of the notebooks, by name; notebooks that train nothing have no jobs.

    Raises:
        ValueError, FileNotFoundError: data or weights are missing or do not fit.
    """
    threads = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory(prefix="paperlib-plan-") as folder:
            drafts = list(_trace_all(settings, Path(folder)))
    finally:
        torch.set_num_threads(threads)
    roots = {digest for draft in drafts if draft.part in ROOTS for digest in draft.work}
    needed = [roots & draft.work.keys() for draft in drafts if draft.part not in ROOTS]
    uses = Counter(digest for each in needed for digest in each)
    # A root comes first. It is a part of the job that needs it only if no other job does and that job needs no other
    # root, so that the trainings with and without Eq. 4 can run at the same time.
    apart = {digest for each in needed for digest in each if len(each) > 1 or uses[digest] > 1}
    drafts = [draft for draft in drafts if draft.part not in ROOTS or draft.work.keys() & apart]
    drafts.sort(key=lambda draft: draft.part not in ROOTS)
    return list(_arrange(drafts))


def run_planned(job: PlannedJob, settings: Settings) -> list[str]:
    """Do a job, and return the names of the steps that its models are.

    Raises:
        Exception: whatever the experiment raises.
    """
    keep_memory()
    torch.set_num_threads(settings.threads)
    part = {each.__name__: each for each in (*ROOTS, *EXPERIMENTS[job.notebook])}[job.experiment]
    study = Study(job.notebook, settings)
    study.cases[job.case].require_inputs()
    plan_work(study.expected_epochs(part, job.case))
    if part in ROOTS:
        # Other jobs start from these models; those whose notebooks show them evaluate them.
        case = study.cases[job.case]
        return [model.folder.name for model in part(case.make_workbench(job.seed), case.settings).values()]
    return [run.model.folder.name for run in study.run_job(part, job.case, job.seed)]


def read_plan(path: Path) -> list[PlannedJob]:
    """Return the jobs in a JSON file."""
    return [PlannedJob(**fields) for fields in files.read_json(path)]


@dataclass(frozen=True)
class _Draft:
    """A job before it is known which others it shares trainings with: `work` is in GMACs by training."""

    notebook: str
    part: Experiment
    case: str
    seed: int
    work: dict[str, float]
    megabytes: float
    megapixels: float
    threads: int

    @property
    def name(self) -> str:
        parts = (self.notebook, self.part.__name__, self.case, f"seed{self.seed}")
        return ".".join(re.sub(r"[^A-Za-z0-9_-]+", "-", part) for part in parts if part)


def _trace_all(settings: Mapping[str, Common], folder: Path) -> Iterator[_Draft]:
    known: dict[str, float] = {}
    for notebook, chosen in settings.items():
        if notebook in EXPERIMENTS and isinstance(chosen, Settings):
            torch.set_num_threads(chosen.threads)
            for case in Study(notebook, chosen).cases.values():
                for seed in chosen.seeds:
                    for part in (*ROOTS, *experiments_of(notebook, case, seed)):
                        work = _trace(part, case, seed, folder, known)
                        area = case.settings.image_size**2 / 1e6
                        size, batch = 3 * area * len(case.splits_of(seed).train), area * case.settings.batch_size
                        draft = _Draft(notebook, part, case.name, seed, work, size, batch, chosen.threads)
                        if work:
                            yield draft


def _trace(part: Experiment, case: Case, seed: int, folder: Path, known: dict[str, float]) -> dict[str, float]:
    """Return the GMACs of each training of an experiment, by the digest of its step; `known` are those of networks."""
    with tempfile.TemporaryDirectory(dir=folder) as root:
        store = PlanningStore(Path(root), folder / "networks")
        workbench = case.make_workbench(seed, store)
        with suppress(UnplannableError):
            part(workbench, case.settings)
        images, size = len(workbench.train_set), case.settings.image_size
        return {digest: _count_work(store, step, images, size, known) for digest, step in store.trainings.items()}


def _count_work(store: PlanningStore, step: Step, images: int, image_size: int, known: dict[str, float]) -> float:
    """Return the GMACs of a training."""

    def of_one(digest: str) -> float:
        path = store.folders[digest] / DETECTOR
        seal = read_network_metadata(path)["seal"]
        if seal not in known:
            known[seal] = cost(load_architecture(path), image_size).gmacs
        return known[seal]

    student, *teachers = (of_one(parent) for parent in step.parents)
    return step.settings["recipe"]["epochs"] * images * (PASSES * student + sum(teachers))


def _arrange(drafts: Sequence[_Draft]) -> Iterator[PlannedJob]:
    owner: dict[str, str] = {}
    for draft in drafts:
        own = [digest for digest in draft.work if digest not in owner]
        if draft.part in ROOTS and not own:
            continue
        after = dict.fromkeys(owner[digest] for digest in draft.work if digest in owner)
        owner |= dict.fromkeys(own, draft.name)
        yield PlannedJob(
            draft.name, draft.notebook, draft.part.__name__, draft.case, draft.seed, tuple(draft.work), tuple(after),
            sum(draft.work[digest] for digest in own), draft.megabytes, draft.megapixels, draft.threads,
        )  # fmt: skip
