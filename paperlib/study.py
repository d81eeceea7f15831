"""A notebook's hand: settings in, workbench, results out.

study = pl.Study.begin("03_components", globals())
runs = study.run(experiments.components, experiments.controls)
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
from torch import Tensor

from paperlib import experiments, figures, files, paths, progress, tables
from paperlib.choices import Blueprint, DistillationChoices, PruningChoices
from paperlib.costs import Cost, cost
from paperlib.data import Dataset, load_dataset
from paperlib.detectors import DETECTORS, build_detector, transfer_coco_weights, usual_anchors
from paperlib.evaluation import Metrics, detect
from paperlib.parallel import call_all
from paperlib.provenance import certificate
from paperlib.pruning import Sparsity
from paperlib.recipe import Recipe
from paperlib.settings import Settings, validate
from paperlib.workbench import Model, Workbench

PARAMETERS = "# Parameters"
"""How a notebook's parameters cell opens, and the one that papermill puts behind it."""
DONE = "metrics.json"

Experiment = Callable[[Workbench, Any], dict[str, Model]]


@dataclass(frozen=True)
class Run:
    """One model of an experiment, at one seed, with all that tables and figures ask of it."""

    name: str
    seed: int
    model: Model
    metrics: Metrics
    cost: Cost

    def row(self) -> dict[str, Any]:
        """Name, seed, size, GMACs and the headline metrics."""
        headline = {metric: getattr(self.metrics, metric) for metric in tables.METRICS}
        return {"model": self.name, "seed": self.seed, "mb": self.cost.size_mb, "gmacs": self.cost.gmacs, **headline}


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
        self.blueprint  # noqa: B018 (a missing weights file should fail here, not after the data is read)
        self.train_set  # noqa: B018

    def check_inputs(self) -> None:
        """Read every image, box and weight that the notebook will need, before hours are spent.

        Raises:
            ValueError, FileNotFoundError: the first fault; one line names file, place and fault.
        """
        blueprint = self.blueprint
        if blueprint.weights:
            shape = {"width": blueprint.width, "depth": blueprint.depth}
            transfer_coco_weights(build_detector(blueprint.name, 1, **shape), blueprint.weights)
        for dataset in (self.train_set, self.validation, self.test):
            for record in progress.bar(dataset.records, f"checking {dataset.name}"):
                record.pixels()

    @cached_property
    def train_set(self) -> Dataset:
        """The training split."""
        return load_dataset(self.settings.dataset, "train")

    @cached_property
    def validation(self) -> Dataset:
        """The validation split, by which epochs and thresholds are picked."""
        return load_dataset(self.settings.dataset, "val")

    @cached_property
    def test(self) -> Dataset:
        """The test split, which only the final evaluation sees."""
        return load_dataset(self.settings.dataset, "test")

    @cached_property
    def blueprint(self) -> Blueprint:
        """The detector to start from."""
        chosen = self.settings
        if chosen.detector not in DETECTORS:
            raise ValueError(f"parameters: unknown detector {chosen.detector!r} (known: {', '.join(DETECTORS)})")
        weights = paths.weights_root() / chosen.weights if chosen.weights else None
        if weights and not weights.is_file():
            raise FileNotFoundError(f"{weights}: no such weights file (see data/README.md)")
        anchors, scale = usual_anchors(chosen.detector), chosen.anchor_scale
        if anchors:
            anchors = tuple((w * scale, h * scale) for w, h in anchors)
        return Blueprint(chosen.detector, chosen.width, chosen.depth, anchors, weights, chosen.gamma_level)

    def workbench(self, seed: int, trainings: int = 0) -> Workbench:
        """The steps for one seed."""
        chosen = self.settings
        return Workbench(
            self.train_set,
            self.validation,
            self.test,
            self.blueprint,
            recipe=self._recipe(chosen.epochs, chosen.learning_rate, chosen.warmup_epochs, seed),
            fine_tuning=self._recipe(chosen.fine_tune_epochs, chosen.fine_tune_learning_rate, 0.0, seed),
            sparsity=Sparsity(chosen.sparsity, chosen.sparsity_method),
            pruning=PruningChoices("gamma", chosen.keep_floor, chosen.round_to, chosen.compensate),
            distillation=_pick(DistillationChoices, chosen),
            trainings=trainings,
        )

    def run(self, *parts: Experiment) -> dict[int, dict[str, Run]]:
        """Make the models of experiments for every seed, and judge each on the test split.

        When `workers` allows, several seeds are trained at a time, each in a process of its own; so are one seed's
        experiments, where no other seed is left to begin.

        Returns:
            By seed, by model name.
        """
        seeds, workers = self.settings.seeds, self.settings.workers
        if (workers := min(len(seeds), workers)) > 1:
            # The processes fill the store; below, everything is found finished.
            jobs = [(self.notebook, self.settings, part, seed) for part in parts for seed in seeds]
            call_all(_one_seed, jobs, workers)
        made = {seed: {} for seed in seeds}
        for part in parts:
            for seed in seeds:
                made[seed] |= self._run_seed(part, seed)
        fresh = {(run.name, run.seed): run for runs in made.values() for run in runs.values()}
        # A cell that is run again replaces its runs; doubled, they would count as more seeds.
        self.runs = [run for run in self.runs if (run.name, run.seed) not in fresh] + [*fresh.values()]
        return made

    @staticmethod
    def show(*parts: Experiment) -> Markdown:
        """The source of experiments: the very code that `run` runs."""
        return Markdown("".join(f"```python\n{inspect.getsource(part)}```\n" for part in parts))

    def detections(self, run: Run) -> list[dict[str, Tensor]]:
        """A model's detections on every test image (see `paperlib.evaluation.detect`)."""
        return detect(run.model.detector(), self.test, image_size=self.settings.image_size)

    def examples(self, count: int) -> list[int]:
        """Test images to look at: spread evenly over those with three to twelve objects, not picked by hand."""
        fitting = [index for index, record in enumerate(self.test.records) if 3 <= len(record.labels) <= 12]
        return fitting[:: max(1, len(fitting) // count)][:count]

    def frame(self) -> pd.DataFrame:
        """One row per model and seed of all that has been run."""
        return pd.DataFrame([run.row() for run in self.runs])

    def save_figure(self, figure: Figure, name: str) -> Figure:
        """Write `figure_<name>.svg` and `.png` into the results."""
        for suffix in ("svg", "png"):
            with files.replacing(self._place(f"figure_{name}.{suffix}")) as target:
                figures.write(figure, target)
        return figure

    def save_page(self, page: str, name: str) -> None:
        """Write `figure_<name>.html` into the results: a figure that answers to the mouse."""
        files.write_text_atomically(self._place(f"figure_{name}.html"), page)

    def save_table(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write `table_<name>.csv`, `.md` and `.tex` into the results."""
        for suffix, text in tables.render(table).items():
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
        born = certificate(settings=self.settings.model_dump(), wall_seconds=wall, **self.origin())
        files.write_json_atomically(self._place("provenance.json"), born)
        beside = [] if measured is None else measured.to_dict("records")
        files.write_json_atomically(self._place(DONE), {"summary": summary, **self.rows(), "measured": beside})
        return summary

    def origin(self) -> dict[str, Any]:
        """What the results rest on, for their certificate: the data, the seeds and the stored steps."""
        data = {split: getattr(self, name).digest for split, name in _SPLITS.items()}
        steps = sorted({run.model.digest for run in self.runs})
        return {"data_digest": data, "seeds": self.settings.seeds, "steps": steps}

    def rows(self) -> dict[str, Any]:
        """What `metrics.json` holds for each model and seed."""
        models = [{**run.row(), "metrics": run.metrics.to_dict(), "cost": asdict(run.cost)} for run in self.runs]
        return {"models": models}

    def _place(self, name: str) -> Path:
        """Where a result goes. From the first one written until `finish`, the notebook does not count as done."""
        (self.folder / DONE).unlink(missing_ok=True)
        return self.folder / name

    def _recipe(self, epochs: int, learning_rate: float, warmup_epochs: float, seed: int) -> Recipe:
        shared = Recipe.model_fields.keys() & type(self.settings).model_fields.keys()
        own = {"epochs": epochs, "learning_rate": learning_rate, "warmup_epochs": warmup_epochs, "seed": seed}
        return Recipe(**{**{name: getattr(self.settings, name) for name in shared}, **own})

    def _run_seed(self, experiment: Experiment, seed: int) -> dict[str, Run]:
        count = experiments.TRAININGS.get(experiment)  # unknown for a reader's own experiment
        bench = self.workbench(seed, count(self.settings) if count else 0)
        models = experiment(bench, self.settings)
        return {name: self._judge(bench, name, model) for name, model in models.items()}

    def _judge(self, bench: Workbench, name: str, model: Model) -> Run:
        price = cost(model.detector(), self.settings.image_size)
        return Run(name, bench.recipe.seed, model, bench.evaluate(model, "test"), price)


_SPLITS = {"train": "train_set", "val": "validation", "test": "test"}


def _pick(kind: type, settings: Settings) -> Any:
    """The fields of a choices class that the settings name; its defaults for the rest."""
    return kind(**{name: getattr(settings, name) for name in kind.__dataclass_fields__ if hasattr(settings, name)})


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


def _one_seed(notebook: str, settings: Settings, experiment: Experiment, seed: int) -> None:
    """Fill the store with one seed's models; runs in a process of its own."""
    torch.set_num_threads(settings.threads)
    Study(notebook, settings)._run_seed(experiment, seed)
