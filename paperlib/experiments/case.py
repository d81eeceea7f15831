"""One detector on one data set: the data, the blueprint and the workbench that a notebook's settings describe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from paperlib import paths
from paperlib.data import Dataset, SceneDataset, load_dataset
from paperlib.data.own import SPLIT_MARK, find_own_splits, is_own
from paperlib.data.splits import refuse_shared_images, refuse_shared_pictures
from paperlib.detectors import find_coco_rows, usual_anchors
from paperlib.experiments.settings import Settings
from paperlib.files import quote_value
from paperlib.limits import CLASSIFIER_NAMES
from paperlib.network_files import family_of, transfer_coco_weights
from paperlib.progress.report import track_items
from paperlib.pruning import Sparsity
from paperlib.store.store import Store
from paperlib.training.recipe import Recipe, TrainingOptions
from paperlib.workbench.options import Blueprint, DistillationOptions, PruningOptions, TeachingOptions
from paperlib.workbench.steps import Workbench


@dataclass
class Splits:
    """The three splits of a data set, of images with boxes or of scenes, each read when it is first needed.

    Raises:
        ValueError: the name is that of own data of one split, which cannot be three; see also `load_dataset`.
        FileNotFoundError: see `load_dataset`.
    """

    name: str
    fold: int | None = None

    def __post_init__(self) -> None:
        if is_own(self.name) and SPLIT_MARK not in self.name and not find_own_splits(self.name):
            raise ValueError(
                f"parameters: dataset {quote_value(self.name)} would be train, val and test at once; "
                f"give each its file, with {SPLIT_MARK} in the name: coco:own/{SPLIT_MARK}.json, or distribute the "
                f"images by a fixed seed: {self.name}#70/15/15"
            )

    @cached_property
    def train(self) -> Any:
        """Return the training split."""
        return load_dataset(self.name, "train", fold=self.fold)

    @cached_property
    def val(self) -> Any:
        """Return the validation split, used to select settings and the confidence of precision and recall."""
        return self._load_other("val")

    @cached_property
    def test(self) -> Any:
        """Return the test split, used only for the final evaluation."""
        return self._load_other("test")

    def _load_other(self, split: str) -> Any:
        # Files of one's own data may list other categories; a label must mean the same class in each.
        classes = self.train.classes if is_own(self.name) else None
        return load_dataset(self.name, split, classes=classes, fold=self.fold)

    def collect_digests(self) -> dict[str, str]:
        """Return the digest of each split."""
        return {"train": self.train.digest, "val": self.val.digest, "test": self.test.digest}


@dataclass
class Case:
    """One of the cases of a notebook.

    Attributes:
        name: the prefix of its models' names; empty for a notebook's only case.
        settings: the notebook's settings, with the changes of this case.
        splits: its data; with folds, those of the first seed's fold.
    """

    name: str
    settings: Settings
    splits: Splits

    def __post_init__(self) -> None:
        self._by_fold: dict[int | None, Splits] = {}

    def splits_of(self, seed: int) -> Splits:
        """Return the data of the run with this seed."""
        fold = fold_of(self.settings, seed)
        return (
            self.splits if fold == self.splits.fold else self._by_fold.setdefault(fold, Splits(self.splits.name, fold))
        )

    def require_inputs(self) -> None:
        """Fail early if data or weights are missing.

        Raises:
            ValueError: an unknown data set, or one that the network cannot be trained on.
            FileNotFoundError: the data set or the weights are not there.
        """
        # A missing weights file should fail first, because to read the data takes longer.
        self.blueprint  # noqa: B018
        chosen, scenes = self.settings, isinstance(self.splits.train, SceneDataset)
        if scenes and not self.is_classifier:
            raise ValueError(
                f"{chosen.dataset}: its images are scenes without boxes, on which no detector can be trained"
            )
        if self.is_classifier and not scenes:
            raise ValueError(f"{chosen.dataset}: its images have boxes, but {chosen.detector} classifies whole images")

    def check_inputs(self) -> None:
        """Read every image, box and weight that training will need, so that a damaged file is found first.

        Raises:
            ValueError, FileNotFoundError: the first fault; one line names file, place and fault.
        """
        blueprint = self.blueprint
        if blueprint.weights:
            network = family_of(blueprint.name).build(blueprint.name, 1, **blueprint.build_options())
            transfer_coco_weights(network, blueprint.weights)
            find_coco_rows(blueprint.coco_rows, self.splits.train.classes)
        splits = (self.splits.train, self.splits.val, self.splits.test)
        refuse_shared_images(*splits)
        refuse_shared_pictures(*splits, pictures=_read_pictures)

    @cached_property
    def blueprint(self) -> Blueprint:
        """Return the detector to build.

        Raises:
            FileNotFoundError: the weights are not there.
        """
        chosen = self.settings
        weights = paths.weights_root() / chosen.weights if chosen.weights else None
        if weights and not weights.is_file():
            raise FileNotFoundError(
                f"{weights}: no such weights file; paperlib data fetch coco-weights downloads the official ones"
            )
        anchors = None if self.is_classifier else usual_anchors(chosen.detector, scale=chosen.anchor_scale)
        return Blueprint(
            chosen.detector, chosen.width, chosen.depth, anchors, weights, chosen.gamma_level,
            coco_rows=chosen.coco_rows, **chosen.blueprint_options,
        )  # fmt: skip

    @property
    def is_classifier(self) -> bool:
        """Return whether the network classifies whole images."""
        return self.settings.detector in CLASSIFIER_NAMES

    def make_workbench(self, seed: int, store: Store | None = None) -> Workbench:
        """Return the workbench for one seed, with the usual store or another."""
        chosen, splits = self.settings, self.splits_of(seed)
        refuse_shared_images(splits.train, splits.val, splits.test)
        return Workbench(
            splits.train,
            splits.val,
            splits.test,
            self.blueprint,
            recipe=self.recipe(seed),
            fine_tuning=self._recipe(
                chosen.fine_tune_epochs, chosen.fine_tune_learning_rate, chosen.fine_tune_warmup_epochs, seed
            ),
            sparsity=Sparsity(chosen.sparsity, chosen.sparsity_method),
            pruning=chosen.select(PruningOptions),
            distillation=chosen.select(DistillationOptions),
            teaching=chosen.select(TeachingOptions),
            store=store,
        )

    def examples(self, count: int, seed: int) -> list[int]:
        """Test images of the run with a seed to look at: spread evenly over those with three to twelve objects."""
        return self.splits_of(seed).test.spaced_indices(count, min_objects=3, max_objects=12)

    def recipe(self, seed: int) -> Recipe:
        """Return how the first training is done, with one seed."""
        chosen = self.settings
        return self._recipe(chosen.epochs, chosen.learning_rate, chosen.warmup_epochs, seed)

    def _recipe(self, epochs: int, learning_rate: float, warmup_epochs: float, seed: int) -> Recipe:
        shared = self.settings.select(TrainingOptions).model_dump()
        own = {"epochs": epochs, "learning_rate": learning_rate, "warmup_epochs": warmup_epochs, "seed": seed}
        if precision := self.settings.seed_precisions.get(str(seed)):
            own["precision"] = precision
        return Recipe(**shared | own)


def _read_pictures(dataset: Dataset) -> Iterator[np.ndarray]:
    for record in track_items(dataset.records, f"checking {dataset.name}"):
        yield record.read_pixels()


def cases_of(settings: Settings) -> dict[str, Case]:
    """Return the cases by name; cases on one data set share its splits."""
    each = {name: settings.case(name) for name in settings.cases}
    first = {name: (case.dataset, fold_of(case, case.seeds[0])) for name, case in each.items()}
    splits = {key: Splits(*key) for key in first.values()}
    return {name: Case(name, case, splits[first[name]]) for name, case in each.items()}


def fold_of(settings: Settings, seed: int) -> int | None:
    """Return the fold of the run with a seed; None without folds."""
    return None if settings.folds is None else seed % settings.folds
