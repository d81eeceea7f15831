"""A notebook's hand: settings in, workbench, results out.

study = pl.Study.begin("03_components", globals())
runs = study.run(assistants.baseline, assistants.components, assistants.controls)
…
study.finish({"map50": …})
"""

from __future__ import annotations

import ast
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.figure import Figure

from paperlib import figures, files, paths
from paperlib.costs import Cost, cost
from paperlib.evaluation.evaluate import Metrics
from paperlib.experiments import assistants
from paperlib.experiments.case import Case, cases_of
from paperlib.experiments.parameters import validate
from paperlib.experiments.settings import Settings
from paperlib.figures import tables
from paperlib.progress.processes import run_jobs
from paperlib.progress.report import expect_work, plan_work
from paperlib.store.code_digest import notebook_code
from paperlib.store.provenance import make_certificate
from paperlib.store.store import FinishedSteps, Store, UnfinishedError
from paperlib.workbench.lineage import training_seconds
from paperlib.workbench.steps import Model, Workbench, weights_digest

PARAMETERS = "# Parameters"
"""How a notebook's parameters cell opens, and the one that papermill puts behind it."""
DONE = "metrics.json"

Experiment = Callable[[Workbench, Any], dict[str, Model]]
Job = tuple[Experiment, str, int]
"""An experiment, the name of a case, and a seed."""


@dataclass(frozen=True)
class Run:
    """One model of an experiment, at one seed, with all that tables and figures ask of it."""

    name: str
    case: str
    seed: int
    model: Model
    metrics: Metrics | None
    cost: Cost

    def row(self) -> dict[str, Any]:
        """Name, case, seed, size, GMACs and, of a trained model, the headline metrics."""
        row = {"model": self.name, "case": self.case, "seed": self.seed}
        row |= {"mb": self.cost.size_mb, "gmacs": self.cost.gmacs}
        return row | {metric: getattr(self.metrics, metric) for metric in tables.METRICS if self.metrics}


@dataclass
class Study:
    """One notebook at one scale."""

    notebook: str
    settings: Settings
    runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started = time.perf_counter()
        self.folder = paths.results_root() / self.settings.profile / self.notebook

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
        study = cls(notebook, validate(notebook, _parameters(notebook, namespace)))
        study.prepare()
        return study

    def prepare(self) -> None:
        """Set the number of threads, and meet what is missing before any work is done (see `begin`)."""
        torch.set_num_threads(self.settings.threads)
        for case in self.cases.values():
            case.prepare()

    def check_inputs(self) -> None:
        """Read every image, box and weight that the notebook will need, before hours are spent.

        Raises:
            ValueError, FileNotFoundError: the first fault; one line names file, place and fault.
        """
        for case in self.cases.values():
            case.check_inputs()

    @cached_property
    def cases(self) -> dict[str, Case]:
        """What stands side by side, by name."""
        return cases_of(self.settings)

    @property
    def case(self) -> Case:
        """The first case, of most notebooks the only one."""
        return next(iter(self.cases.values()))

    def run(self, *parts: Experiment) -> dict[int, dict[str, Run]]:
        """Make the models of experiments for every seed, and judge each on the test split.

        Each case, seed and experiment is a job; `workers` of them run at a time, each in a process of its own.

        Returns:
            By seed, by model name, which begins with the name of the case.
        """
        jobs = [(part, case, seed) for part in parts for case in self.cases for seed in self.settings.seeds]
        epochs = [self._expected_epochs(part, case) for part, case, _ in jobs]
        plan_work(sum(epochs))
        made = self._found(jobs)
        if made is None:
            if (workers := min(len(jobs), self.settings.workers)) > 1:
                # The processes fill the store; then everything is found finished.
                run_jobs(_run_job, [(self.notebook, self.settings, *job) for job in jobs], epochs, workers)
                made = [run for job in jobs for run in self._run(*job)]
            else:
                made = self._run_in_turn(jobs, epochs)
        fresh = {(run.name, run.seed): run for run in made}
        # A cell that is run again replaces its runs; doubled, they would count as more seeds.
        self.runs = [run for run in self.runs if (run.name, run.seed) not in fresh] + [*fresh.values()]
        return {
            seed: {name: run for (name, its_seed), run in fresh.items() if its_seed == seed}
            for seed in self.settings.seeds
        }

    @staticmethod
    def show(*parts: Experiment) -> Markdown:
        """The source of experiments: the very code that `run` runs."""
        return Markdown("".join(f"```python\n{inspect.getsource(part)}```\n" for part in parts))

    def edge_cases(self, run: Run) -> Metrics:
        """Metrics of a run with those of each slice and change of the test split (Section 4.5.4)."""
        return self.cases[run.case].workbench(run.seed).evaluate(run.model, slices=True)

    def frame(self) -> pd.DataFrame:
        """One row per model and seed of all that has been run."""
        return pd.DataFrame([run.row() for run in self.runs])

    def save_figure(self, figure: Figure, name: str) -> Figure:
        """Write `figure_<name>.svg` and `.png` into the results."""
        for suffix in ("svg", "png"):
            with files.replace_file(self._place(f"figure_{name}.{suffix}")) as target:
                figures.write_figure(figure, target)
        return figure

    def save_page(self, page: str, name: str) -> None:
        """Write `figure_<name>.html` into the results: a figure that answers to the mouse."""
        files.write_text_atomically(self._place(f"figure_{name}.html"), page)

    def save_table(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write `table_<name>.csv`, `.md` and `.tex` into the results."""
        for suffix, text in tables.render_table(table).items():
            files.write_text_atomically(self._place(f"table_{name}.{suffix}"), text)
        return table

    def finish(self, summary: dict[str, Any], measured: pd.DataFrame | None = None) -> dict[str, Any]:
        """Write `provenance.json`, then `metrics.json`, whose presence says that the notebook is done.

        Args:
            summary: rounded, the same on all machines.
            measured: what was measured beside the metrics of `run`, such as times: columns `model`, `seed`, and one
                for each quantity. Claims find it there (`notebooks/claims.yaml`).
        """
        wall = time.perf_counter() - self._started
        notebook = paths.repository_root() / "notebooks" / f"{self.notebook}.ipynb"
        code = notebook_code(notebook) if notebook.is_file() else None
        Store().record_code(code)
        born = make_certificate(settings=self.settings.model_dump(), wall_seconds=wall, code=code, **self.origin())
        files.write_json_atomically(self._place("provenance.json"), born)
        beside = [] if measured is None else measured.to_dict("records")
        files.write_json_atomically(self._place(DONE), {"summary": summary, **self.rows(), "measured": beside})
        return summary

    def origin(self) -> dict[str, Any]:
        """What the results rest on, for their certificate: the data, the seeds, the stored steps and their time."""
        data = {case.settings.dataset: case.splits.digests() for case in self.cases.values()}
        steps = sorted({run.model.digest for run in self.runs})
        seconds = training_seconds(run.model.folder for run in self.runs)
        weights = {plan.weights for case in self.cases.values() if (plan := case.blueprint).weights}
        return {
            "data_digest": data,
            "weights_digest": {path.name: weights_digest(path) for path in sorted(weights)},
            "seeds": self.settings.seeds,
            "steps": steps,
            "training_seconds": seconds,
        }

    def rows(self) -> dict[str, Any]:
        """What `metrics.json` holds for each model and seed."""
        models = []
        for run in self.runs:
            metrics = {"metrics": run.metrics.to_dict()} if run.metrics else {}
            models.append(run.row() | metrics | {"cost": asdict(run.cost)})
        return {"models": models}

    def _place(self, name: str) -> Path:
        """Where a result goes. From the first one written until `finish`, the notebook does not count as done."""
        (self.folder / DONE).unlink(missing_ok=True)
        return self.folder / name

    def _found(self, jobs: list[Job]) -> list[Run] | None:
        """The runs of jobs of which every step is finished; None if any is not. To look is quicker than to start."""
        try:
            return [run for job in jobs for run in self._run(*job, store=FinishedSteps())]
        except UnfinishedError:
            return None

    def _expected_epochs(self, experiment: Experiment, case: str) -> int:
        """Return about how many epochs an experiment trains for one seed."""
        settings = self.cases[case].settings
        count = assistants.TRAININGS.get(experiment)
        if count is None:  # a reader's own experiment
            return settings.epochs
        return count(settings).epochs(settings.epochs, settings.fine_tune_epochs)

    def _run_in_turn(self, jobs: list[Job], epochs: list[int]) -> list[Run]:
        made = []
        plan_work(sum(epochs))
        for number, job in enumerate(jobs):
            expect_work(epochs[number], later=sum(epochs[number + 1 :]))
            made += self._run(*job)
        return made

    def _run(self, experiment: Experiment, case: str, seed: int, store: Store | None = None) -> list[Run]:
        here = self.cases[case]
        bench = here.workbench(seed, store)
        models = experiment(bench, here.settings)
        return [self._judge(bench, case, name, model) for name, model in models.items()]

    def _judge(self, bench: Workbench, case: str, name: str, model: Model) -> Run:
        metrics = bench.evaluate(model) if self.cases[case].settings.judged else None
        price = cost(model.detector(), bench.recipe.image_size)
        return Run(f"{case} {name}".lstrip(), case, bench.recipe.seed, model, metrics, price)


def _parameters(notebook: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all known settings, and of whatever else the parameters cells set.

    Nobody else notices a misspelt name: to Python it is one more variable, and papermill only prints a notice. So
    the cells last run (the notebook's own, papermill's behind it) are read for names.
    """
    known = validate(notebook, {}).model_dump()
    latest = dropwhile(lambda cell: not cell.startswith(PARAMETERS), reversed(namespace.get("In", [])))
    cells = takewhile(lambda cell: cell.startswith(PARAMETERS), latest)
    named = set().union(*map(_names_set_by, cells))
    return {name: namespace[name] for name in sorted(known.keys() | named) if name in namespace}


def _names_set_by(cell: str) -> set[str]:
    try:
        nodes = list(ast.walk(ast.parse(cell)))
    except SyntaxError:  # it never ran
        return set()
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _run_job(notebook: str, settings: Settings, experiment: Experiment, case: str, seed: int) -> None:
    """Fill the store with the models of one job; runs in a process of its own."""
    torch.set_num_threads(settings.threads)
    Study(notebook, settings)._run(experiment, case, seed)
