"""One detector on one data set: what a notebook's settings mean, and the workbench that they make."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from paperlib import paths
from paperlib.data import Dataset, load_dataset
from paperlib.detectors import DETECTORS, build_detector, transfer_coco_weights, usual_anchors
from paperlib.evaluation.evaluate import detect
from paperlib.experiments.settings import Settings
from paperlib.progress.report import track_items
from paperlib.pruning import Sparsity
from paperlib.store.store import Store
from paperlib.training.recipe import Recipe
from paperlib.workbench.options import Blueprint, DistillationChoices, PruningChoices
from paperlib.workbench.steps import Model, Workbench


@dataclass
class Splits:
    """The three parts of a data set, each read when it is first asked for.

    Raises:
        ValueError, FileNotFoundError: see `load_dataset`.
    """

    name: str

    @cached_property
    def train(self) -> Dataset:
        """What is learned from."""
        return load_dataset(self.name, "train")

    @cached_property
    def val(self) -> Dataset:
        """By which settings and the confidence of precision and recall are picked."""
        return load_dataset(self.name, "val")

    @cached_property
    def test(self) -> Dataset:
        """Which only the final evaluation sees."""
        return load_dataset(self.name, "test")

    def digests(self) -> dict[str, str]:
        """By split."""
        return {"train": self.train.digest, "val": self.val.digest, "test": self.test.digest}


@dataclass
class Case:
    """One of the cases of a notebook.

    Attributes:
        name: stands in front of the names of its models; empty for a notebook's only case.
        settings: those of the notebook, with what differs in this case.
        splits: its data.
    """

    name: str
    settings: Settings
    splits: Splits

    def prepare(self) -> None:
        """Meet what is missing before any work is done.

        Raises:
            ValueError: an unknown detector or data set.
            FileNotFoundError: the data set or the weights are not there.
        """
        self.blueprint  # noqa: B018 (a missing weights file should fail here, not after the data is read)
        self.splits.train  # noqa: B018

    def check_inputs(self) -> None:
        """Read every image, box and weight that will be needed, before hours are spent.

        Raises:
            ValueError, FileNotFoundError: the first fault; one line names file, place and fault.
        """
        blueprint = self.blueprint
        if blueprint.weights:
            shape = {"width": blueprint.width, "depth": blueprint.depth}
            transfer_coco_weights(build_detector(blueprint.name, 1, **shape), blueprint.weights)
        for dataset in (self.splits.train, self.splits.val, self.splits.test):
            for record in track_items(dataset.records, f"checking {dataset.name}"):
                record.read_pixels()

    @cached_property
    def blueprint(self) -> Blueprint:
        """The detector to start from."""
        chosen = self.settings
        if chosen.detector not in DETECTORS:
            raise ValueError(f"parameters: unknown detector {chosen.detector!r} (known: {', '.join(DETECTORS)})")
        weights = paths.weights_root() / chosen.weights if chosen.weights else None
        if weights and not weights.is_file():
            raise FileNotFoundError(
                f"{weights}: no such weights file; paperlib data fetch coco-weights brings the official ones"
            )
        anchors = usual_anchors(chosen.detector, scale=chosen.anchor_scale)
        return Blueprint(chosen.detector, chosen.width, chosen.depth, anchors, weights, chosen.gamma_level)

    def workbench(self, seed: int, store: Store | None = None) -> Workbench:
        """The steps for one seed, remembered by the usual store or another."""
        chosen = self.settings
        return Workbench(
            self.splits.train,
            self.splits.val,
            self.splits.test,
            self.blueprint,
            recipe=self._recipe(chosen.epochs, chosen.learning_rate, chosen.warmup_epochs, seed),
            fine_tuning=self._recipe(chosen.fine_tune_epochs, chosen.fine_tune_learning_rate, 0.0, seed),
            sparsity=Sparsity(chosen.sparsity, chosen.sparsity_method),
            pruning=PruningChoices("gamma", chosen.keep_floor, chosen.round_to, chosen.compensate),
            distillation=_pick(DistillationChoices, chosen),
            store=store,
        )

    def detections(self, model: Model) -> list[dict[str, Tensor]]:
        """A model's detections on every test image (see `paperlib.evaluation.evaluate.detect`)."""
        return detect(model.detector(), self.splits.test, image_size=self.settings.image_size)

    def examples(self, count: int) -> list[int]:
        """Test images to look at: spread evenly over those with three to twelve objects, not picked by hand."""
        return self.splits.test.spaced_indices(count, min_objects=3, max_objects=12)

    def _recipe(self, epochs: int, learning_rate: float, warmup_epochs: float, seed: int) -> Recipe:
        shared = Recipe.model_fields.keys() & type(self.settings).model_fields.keys()
        own = {"epochs": epochs, "learning_rate": learning_rate, "warmup_epochs": warmup_epochs, "seed": seed}
        return Recipe(**{**{name: getattr(self.settings, name) for name in shared}, **own})


def cases_of(settings: Settings) -> dict[str, Case]:
    """By name; cases on one data set share it."""
    each = {name: settings.case(name) for name in settings.cases}
    splits = {case.dataset: Splits(case.dataset) for case in each.values()}
    return {name: Case(name, case, splits[case.dataset]) for name, case in each.items()}


def _pick(kind: type, settings: Settings) -> Any:
    """The fields of a choices class that the settings name; its defaults for the rest."""
    return kind(**{name: getattr(settings, name) for name in kind.__dataclass_fields__ if hasattr(settings, name)})
