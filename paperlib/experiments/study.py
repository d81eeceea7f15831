"""API that a notebook uses: read its settings, run experiments, write its results.

study = pl.Study.begin("03_components", globals())
runs = study.run(assistants.baseline, assistants.components, assistants.controls)
…
study.finish({"map50": …})
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, cast

import pandas as pd
import torch
from matplotlib.figure import Figure

from paperlib import figures, paths
from paperlib.costs import cost
from paperlib.data.slices import SliceGroup
from paperlib.evaluation.evaluate import Metrics
from paperlib.experiments import assistants, partners
from paperlib.experiments.case import Case, Splits, cases_of
from paperlib.experiments.cells import read_parameters
from paperlib.experiments.folding import fold_traceback
from paperlib.experiments.outputs import Outputs
from paperlib.experiments.parameters import load_profile, profile_path, validate_settings
from paperlib.experiments.run import Experiment, Job, Run
from paperlib.experiments.settings import Settings
from paperlib.extras import needs_extra
from paperlib.progress import group
from paperlib.progress.processes import keep_memory, run_jobs
from paperlib.progress.report import expect_work, plan_work
from paperlib.progress.slots import occupy_slots, take_slots
from paperlib.store.code_digest import notebook_code
from paperlib.store.provenance import make_certificate
from paperlib.store.results import SCRATCH, digest_source, write_results
from paperlib.store.staleness import compare_values
from paperlib.store.store import FinishedSteps, Store, UnfinishedError
from paperlib.workbench.algorithm_1 import run_algorithm_1
from paperlib.workbench.lineage import describe_origins, training_seconds
from paperlib.workbench.options import IterationOptions
from paperlib.workbench.stages import Compressed
from paperlib.workbench.steps import Model, Workbench, weights_digest

if TYPE_CHECKING:
    from IPython.display import Markdown


@dataclass
class Study(Outputs):
    """One notebook at one scale.

    Attributes:
        notebook: its name, such as `03_components`.
        settings: its checked parameters.
        runs: all models of all experiments so far.
        stages: all models of Algorithm 1, if the notebook runs it.
        differences: how the settings differ from the profile's, each as "epochs: 12 -> 3"; none if they are the same.
        folder: where the results are written: `results/<profile>/<notebook>`, or `results/scratch/<notebook>` if the
            settings differ.
    """

    notebook: str
    settings: Settings
    runs: list[Run] = field(default_factory=list)
    stages: list[Model] = field(default_factory=list)

    def __post_init__(self) -> None:
        group.refuse_several_processes(
            f"the notebook {self.notebook}",
            "start it alone: `workers` in its profile trains several models at a time, and `paperlib reproduce --jobs` "
            "runs several notebooks",
        )
        self._started = time.perf_counter()
        self.differences = _compare_with_profile(self.notebook, self.settings)
        scale = SCRATCH if self.differences else self.settings.profile
        super().__init__(paths.results_root() / scale / self.notebook)

    @classmethod
    def begin(cls, notebook: str, namespace: Mapping[str, Any]) -> Self:
        """Check the notebook's parameters and prepare the machine.

        Args:
            notebook: its name, such as `03_components`.
            namespace: the notebook's `globals()`.

        Raises:
            ValueError: an unknown parameter, or one of a wrong type or range; one line says which and why.
            FileNotFoundError: the data set or the weights are not there.
        """
        figures.use_style()
        with fold_traceback():
            # Only the scoreboard has fewer settings, and its own subclass, which uses none of the others.
            settings = cast(Settings, validate_settings(notebook, read_parameters(notebook, namespace)))
            study = cls(notebook, settings)
            if study.differences:
                print(study.describe_scratch())
            study.prepare_run()
        return study

    def describe_scratch(self) -> str:
        """Return one line that says where results go whose settings are not the profile's, and why."""
        more = f" and {len(self.differences) - 1} more" if len(self.differences) > 1 else ""
        place = f"{self.folder.parent.parent.name}/{SCRATCH}/{self.notebook}"
        reason = f"The settings differ from the profile {self.settings.profile} ({self.differences[0]}{more})"
        return f"{reason}: the results go to {place}, which no claim reads."

    def prepare_run(self) -> None:
        """Set threads and memory of the process, and fail early if data or weights are missing (see `begin`)."""
        keep_memory()
        torch.set_num_threads(self.settings.threads)
        if self.settings.workers == 1:
            take_slots(self.settings.threads)  # to the end: what is not done by workers is done, or timed, here
        for case in self.cases.values():
            case.require_inputs()

    def check_inputs(self) -> None:
        """Read every image, box and weight that the notebook will need, so that a damaged file is found first.

        Raises:
            ValueError, FileNotFoundError: the first fault; one line names file, place and fault.
        """
        for case in self.cases.values():
            case.check_inputs()

    @cached_property
    def cases(self) -> dict[str, Case]:
        """Return the compared cases by name."""
        return cases_of(self.settings)

    @property
    def case(self) -> Case:
        """Return the first case, in most notebooks the only one."""
        return next(iter(self.cases.values()))

    def run(self, *parts: Experiment, case: str | None = None) -> dict[int, dict[str, Run]]:
        """Make the models of experiments for every seed, and evaluate each on the test split.

        Each case, seed and experiment is a job; `workers` of them run at a time, each in a process of its own. `case`
        names the only case that takes part; by default all do.

        Returns:
            The runs by seed and by model name, which begins with the name of the case.
        """
        cases = [case] if case else list(self.cases)
        return self._run_all([(part, name, seed) for part in parts for name in cases for seed in self.settings.seeds])

    def run_by_case(self, parts: Mapping[str, Sequence[Experiment]]) -> dict[int, dict[str, Run]]:
        """Do what `run` does where each case, by its name, has experiments of its own; no process waits for a case."""
        seeds = self.settings.seeds
        return self._run_all([(part, name, seed) for name, own in parts.items() for part in own for seed in seeds])

    def _run_all(self, jobs: list[Job]) -> dict[int, dict[str, Run]]:
        """Run the jobs, and return the runs by seed and by model name."""
        epochs = [self.expected_epochs(part, case) for part, case, _ in jobs]
        plan_work(sum(epochs))
        made = self._find_runs(jobs)
        if made is None:
            if (workers := min(len(jobs), self.settings.workers)) > 1:
                # The processes fill the store; then everything is found finished.
                run_jobs(_run_in_process, [(self.notebook, self.settings, *job) for job in jobs], epochs, workers)
                made = [run for job in jobs for run in self.run_job(*job)]
            else:
                made = self._run_in_turn(jobs, epochs)
        fresh = {(run.name, run.seed): run for run in made}
        # A cell that is run again replaces its runs; doubled, they would count as more seeds.
        self.runs = [run for run in self.runs if (run.name, run.seed) not in fresh] + [*fresh.values()]
        return {
            seed: {name: run for (name, its_seed), run in fresh.items() if its_seed == seed}
            for seed in self.settings.seeds
        }

    def run_algorithm_1(self) -> Compressed:
        """Run Algorithm 1 with its stop rule on the first case and seed, evaluated on the validation split."""
        workbench = self.case.make_workbench(self.settings.seeds[0])
        compressed = run_algorithm_1(workbench, workbench.build_detector(), self.case.settings.select(IterationOptions))
        # Not among the runs, which are evaluated on the test split; but the provenance has to name them.
        self.stages = [stage.final for stage in compressed.stages]
        return compressed

    @staticmethod
    def show(*parts: Callable[..., Any]) -> Markdown:
        """Return the source of experiments: the code that `run` runs."""
        with needs_extra("notebooks"):
            from IPython.display import Markdown

        return Markdown("".join(f"```python\n{inspect.getsource(part)}```\n" for part in parts))

    def edge_cases(self, run: Run) -> Metrics:
        """Return the metrics of a run on the whole test split, each slice and each corruption of it (Section 4.5.4)."""
        return self._evaluate_slices(run, ["edge cases", "corruptions"])

    def shapes(self, run: Run) -> Metrics:
        """Return the metrics of a run on the whole test split, and by size and aspect ratio of the objects."""
        return self._evaluate_slices(run, ["shapes"])

    def seed_to_draw(self, runs: Mapping[int, Mapping[str, Run]]) -> int:
        """Return the first seed whose models have their weights here, or the first seed if none has.

        Steps that were imported may be without weights (see `paperlib store import`), and some pictures need them.
        """
        complete = (seed for seed, own in runs.items() if all(run.model.has_weights() for run in own.values()))
        return next(complete, self.settings.seeds[0])

    def draw_detections(self, runs: Mapping[str, Run], count: int) -> Figure:
        """Draw what models detect on a few test images beside the ground truth (as in Figs. 9, 11 and 13).

        Args:
            runs: models of one case and seed, by the name that the figure gives them.
            count: number of images (see `Case.examples`).
        """
        first = next(iter(runs.values()))
        case, workbench = self.cases[first.case], self.cases[first.case].make_workbench(first.seed)
        indices = case.examples(count, first.seed)
        found = {name: workbench.detect(run.model, indices) for name, run in runs.items()}
        confidence = {name: run.metrics.confidence for name, run in runs.items()}
        return figures.draw_detections(workbench.test, indices, found, confidence)

    def frame(self) -> pd.DataFrame:
        """Return one row per model and seed of all that has been run."""
        return pd.DataFrame([run.row() for run in self.runs])

    def finish(self, summary: dict[str, Any], measured: pd.DataFrame | None = None) -> dict[str, Any]:
        """Write `provenance.json`, then `metrics.json`, whose presence says that the notebook is done.

        The certificate holds a digest of every figure and table that was saved, and of `metrics.json`.

        Args:
            summary: rounded facts, the same on all machines.
            measured: other measurements, such as times: columns `model`, `seed`, and one for each quantity. Claims
                refer to them (`notebooks/claims.yaml`).
        """
        wall = time.perf_counter() - self._started
        notebook = paths.source_root() / "notebooks" / f"{self.notebook}.ipynb"
        code = notebook_code(notebook) if notebook.is_file() else None
        Store().record_code(code)
        settings = self.settings.model_dump()
        certificate = make_certificate(settings=settings, wall_seconds=wall, code=code, **self.collect_origin())
        certificate |= {"source": digest_source(notebook) if notebook.is_file() else None, "read": self.collect_read()}
        others = [] if measured is None else measured.to_dict("records")
        self.save_detections(self.runs)
        metrics = {"summary": summary, **self.collect_rows(), "measured": others}
        write_results(self.folder, certificate, metrics, self.written)
        return summary

    def collect_read(self) -> dict[str, str]:
        """Return the digests of other files that the results were made from, by name."""
        return {}

    def collect_origin(self) -> dict[str, Any]:
        """Return what the results were made from: the data, the seeds, the stored steps and their time."""
        data = {
            _name_splits(splits): splits.collect_digests()
            for case in self.cases.values()
            for splits in (case.splits_of(seed) for seed in self.settings.seeds)
        }
        models = [run.model for run in self.runs] + self.stages
        steps = sorted({model.digest for model in models})
        seconds = training_seconds(model.folder for model in models)
        machines = describe_origins(model.folder for model in models)
        weights = {case.blueprint.weights for case in self.cases.values() if case.blueprint.weights}
        return {
            "data_digest": data,
            "weights_digest": {path.name: weights_digest(path) for path in sorted(weights)},
            "seeds": self.settings.seeds,
            "steps": steps,
            "training_seconds": seconds,
            "precision": {name: self._name_precisions(case) for name, case in self.cases.items()},
            "machines": machines,
        }

    def collect_rows(self) -> dict[str, Any]:
        """Return the part of `metrics.json` about each model and seed."""
        models = []
        for run in self.runs:
            metrics = {"metrics": run.metrics.to_dict()} if run.metrics else {}
            models.append(run.row() | metrics | {"cost": asdict(run.cost)})
        return {"models": models}

    def _name_precisions(self, case: Case) -> str:
        return ", ".join(sorted({case.recipe(seed).precision for seed in self.settings.seeds}))

    def _evaluate_slices(self, run: Run, groups: Sequence[SliceGroup]) -> Metrics:
        return self.cases[run.case].make_workbench(run.seed).evaluate(run.model, slices=groups)

    def _find_runs(self, jobs: list[Job]) -> list[Run] | None:
        """Return the runs of the jobs if the store has all their steps, else None; no process is started for it."""
        try:
            return [run for job in jobs for run in self.run_job(*job, store=FinishedSteps())]
        except UnfinishedError:
            return None

    def expected_epochs(self, experiment: Experiment, case: str) -> int:
        """Return about how many epochs an experiment trains for one seed."""
        settings = self.cases[case].settings
        count = assistants.TRAININGS.get(experiment) or partners.TRAININGS.get(experiment)
        if count is None:  # a reader's own experiment
            return settings.epochs
        return count(settings).epochs(settings.epochs, settings.fine_tune_epochs)

    def _run_in_turn(self, jobs: list[Job], epochs: list[int]) -> list[Run]:
        made = []
        plan_work(sum(epochs))
        for number, job in enumerate(jobs):
            expect_work(epochs[number], later=sum(epochs[number + 1 :]))
            made += self.run_job(*job)
        return made

    def run_job(self, experiment: Experiment, case: str, seed: int, store: Store | None = None) -> list[Run]:
        """Run one experiment for one case and seed, in this process, and evaluate its models."""
        settings = self.cases[case].settings
        workbench = self.cases[case].make_workbench(seed, store)
        models = experiment(workbench, settings)
        return [self._evaluate_run(workbench, case, name, model) for name, model in models.items()]

    def _evaluate_run(self, workbench: Workbench, case: str, name: str, model: Model) -> Run:
        metrics = kept = None
        if self.cases[case].settings.has_metrics:
            metrics, kept = workbench.evaluate(model), workbench.keep_detections(model)
        model_cost = cost(model.architecture(), workbench.recipe.image_size)
        return Run(f"{case} {name}".lstrip(), case, workbench.recipe.seed, model, metrics, model_cost, kept)


def _name_splits(splits: Splits) -> str:
    return splits.name if splits.fold is None else f"{splits.name}, fold {splits.fold}"


def _compare_with_profile(notebook: str, settings: Settings) -> list[str]:
    """Return how settings differ from those of the profile that they name."""
    path = profile_path(notebook, settings.profile)
    if path.is_file():
        usual = load_profile(notebook, path)
    elif settings.profile == "quick":  # an installed package has no profiles, but the defaults are this one
        usual = validate_settings(notebook, {})
    else:
        return [f"{settings.profile}: no such profile"]
    return compare_values(usual.model_dump(), settings.model_dump())


def _run_in_process(notebook: str, settings: Settings, experiment: Experiment, case: str, seed: int) -> None:
    """Fill the store with the models of one job, in a process of its own."""
    torch.set_num_threads(settings.threads)
    with occupy_slots(settings.threads):
        Study(notebook, settings).run_job(experiment, case, seed)
