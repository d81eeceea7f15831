"""The steps of the paper - new, train, prune, fine-tune, distil, evaluate - each remembered by the store.

The one place where detectors, training, pruning, distillation and evaluation meet. Experiments and Algorithm 1 are
written in these steps and nothing else, so they read like the paper and resume for free.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn

from paperlib import files, progress
from paperlib.data.records import Dataset
from paperlib.detectors import build_detector, reinitialise_, transfer_coco_weights
from paperlib.detectors.files import load_detector, save_detector
from paperlib.distillation import Distillation
from paperlib.evaluation import Metrics, evaluate
from paperlib.pruning import PruningPlan, Sparsity, apply_plan, level_gamma_, plan_pruning
from paperlib.recipe import Recipe
from paperlib.store import Step, Store, code_digest
from paperlib.training import BEST, HISTORY, LAST, fit

DETECTOR, PLAN, METRICS = "detector.safetensors", "plan.json", "metrics.json"


@dataclass(frozen=True)
class Model:
    """A finished model: a folder of the store."""

    digest: str
    folder: Path

    def detector(self) -> nn.Module:
        """The detector, in evaluation mode."""
        return load_detector(self.folder / DETECTOR)

    def history(self) -> pd.DataFrame:
        """One row per epoch of the training that made it."""
        return pd.read_json(self.folder / HISTORY, lines=True)

    def plan(self) -> PruningPlan:
        """The plan by which it was cut."""
        return PruningPlan.from_dict(files.read_json(self.folder / PLAN))


@dataclass(frozen=True)
class Blueprint:
    """Which detector to start from."""

    name: str
    width: float = 1.0
    depth: float = 1.0
    anchors: tuple[tuple[float, float], ...] | None = None
    weights: Path | None = None
    """Darknet file of COCO weights; none: from scratch."""
    gamma_level: float | None = None
    """Bring the scale factors of those weights to this level first (`level_gamma_`); none: leave them."""


@dataclass(frozen=True)
class PruningChoices:
    """What `plan_pruning` and `apply_plan` are asked for, beside the ratio."""

    importance: str = "gamma"
    keep_floor: float = 0.1
    round_to: int = 1
    compensate: Literal["off", "bias", "exact"] = "bias"


@dataclass(frozen=True)
class DistillationChoices:
    """lambda_c and alpha of Eqs. 10-11, tau of Eqs. 6-8."""

    soft_weight: float = 0.5
    bound_weight: float = 0.5
    temperature: float = 1.0


@dataclass
class Workbench:
    """The steps, for one data set, one detector and one seed.

    Attributes:
        train_set, validation, test: the three splits; only `evaluate(..., "test")` ever looks at the last.
        blueprint: the detector that `new` makes.
        recipe: long training, plain or sparse; its seed is this bench's seed.
        fine_tuning: after each pruning, and for each distillation.
        sparsity: the term of Eq. 4 that `train_sparse` and sparse fine-tuning add.
        pruning, distillation: choices beside the ratio and the teacher.
        trainings: how many trainings are expected in all, for the progress display.
        store: where finished steps are kept.
    """

    train_set: Dataset
    validation: Dataset
    test: Dataset
    blueprint: Blueprint
    recipe: Recipe
    fine_tuning: Recipe
    sparsity: Sparsity
    pruning: PruningChoices = PruningChoices()
    distillation: DistillationChoices = DistillationChoices()
    trainings: int = 0
    store: Store | None = None

    def __post_init__(self) -> None:
        self.store = self.store or Store()
        self._trained = 0

    def new(self) -> Model:
        """A fresh detector, from scratch or from COCO weights (Section 4.3)."""
        plan = self.blueprint
        seed, classes = self.recipe.seed, len(self.train_set.classes)
        settings = {
            "name": plan.name,
            "classes": classes,
            "width": plan.width,
            "depth": plan.depth,
            "anchors": plan.anchors,
            "weights": _file_digest(plan.weights) if plan.weights else None,
            "gamma_level": plan.gamma_level,
            "seed": seed,
        }

        def make(folder: Path) -> None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                shape = {"width": plan.width, "depth": plan.depth, "anchors": plan.anchors}
                detector = build_detector(plan.name, classes, **shape)
                if plan.weights:
                    transfer_coco_weights(detector, plan.weights)
                if plan.gamma_level:
                    level_gamma_(detector, plan.gamma_level)
            save_detector(detector, folder / DETECTOR)

        code = ["paperlib.detectors", "paperlib.detectors.files"]
        if plan.gamma_level:
            code.append("paperlib.pruning.levelling")
        return self._model("new", settings, (), make, *code)

    def reset(self, model: Model) -> Model:
        """The same shape with fresh weights: the control that tells what the inherited weights are worth."""
        seed = self.recipe.seed

        def make(folder: Path) -> None:
            detector = model.detector()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                reinitialise_(detector)
            save_detector(detector, folder / DETECTOR)

        return self._model("reset", {"seed": seed}, (model,), make, "paperlib.detectors", "paperlib.detectors.files")

    def train(self, model: Model, label: str = "train") -> Model:
        """Ordinary training."""
        return self._fit(model, self.recipe, label)

    def train_sparse(self, model: Model, label: str = "sparse training") -> Model:
        """Training with L1 on the scale factors (Eq. 4)."""
        return self._fit(model, self.recipe, label, sparsity=self.sparsity)

    def fine_tune(self, model: Model, label: str = "fine-tune", *, sparse: bool = False) -> Model:
        """Short training after pruning; `sparse` keeps Eq. 4's term on, for a model that will be pruned again."""
        return self._fit(model, self.fine_tuning, label, sparsity=self.sparsity if sparse else None)

    def distil(self, student: Model, teacher: Model, label: str = "distil") -> Model:
        """Short training of the student by the teacher (Eqs. 10-12)."""
        return self._fit(student, self.fine_tuning, label, teacher=teacher)

    def prune(self, model: Model, ratio: float) -> Model:
        """Remove the `ratio` of the channels with the smallest importance (Section 3.1); no training."""
        choices = self.pruning

        def make(folder: Path) -> None:
            detector = model.detector()
            plan = plan_pruning(
                detector, ratio,
                importance=choices.importance, keep_floor=choices.keep_floor, round_to=choices.round_to,
            )  # fmt: skip
            save_detector(apply_plan(detector, plan, compensate=choices.compensate), folder / DETECTOR)
            files.write_json_atomically(folder / PLAN, plan.to_dict())

        settings = {"ratio": ratio, **vars(choices)}
        code = ("paperlib.pruning.planning", "paperlib.pruning.surgery", "paperlib.detectors.files")
        return self._model("prune", settings, (model,), make, *code)

    def evaluate(self, model: Model, split: Literal["val", "test"] = "test") -> Metrics:
        """Metrics of a model; the confidence of precision and recall is chosen on validation."""
        confidence = self.evaluate(model, "val").confidence if split == "test" else None
        dataset = self.test if split == "test" else self.validation
        settings = {"image_size": self.recipe.image_size, "confidence": confidence, **self._machine()}

        def make(folder: Path) -> None:
            progress.report(f"evaluate on {split}, seed {self.recipe.seed}", self._trained, self.trainings)
            detector = model.detector().to(_device())
            metrics = evaluate(detector, dataset, image_size=self.recipe.image_size, confidence=confidence)
            files.write_json_atomically(folder / METRICS, metrics.to_dict())

        code = code_digest(make, "paperlib.evaluation", "paperlib.detectors.files")
        step = Step("evaluate", settings, (model.digest,), dataset.digest, code)
        return Metrics(**files.read_json(self.store.get(step, make) / METRICS))

    def _fit(
        self, model: Model, recipe: Recipe, label: str,
        *, sparsity: Sparsity | None = None, teacher: Model | None = None,
    ) -> Model:  # fmt: skip
        settings = {
            "recipe": recipe.model_dump(),
            "sparsity": sparsity.describe() if sparsity else None,
            "distillation": vars(self.distillation) if teacher else None,
            **self._machine(),
        }

        def make(folder: Path) -> None:
            progress.report(f"{label}, seed {recipe.seed}", self._trained, self.trainings)
            # The detector is put in place last: once it is there, only the optimiser's state remains to be dropped.
            if not (folder / DETECTOR).exists():
                objective = Distillation(teacher.detector(), **vars(self.distillation)) if teacher else None
                fit(
                    model.detector(), self.train_set, recipe, objective=objective, regulariser=sparsity,
                    validation=self.validation, folder=folder / "fit",
                )  # fmt: skip
                for source, target in ((HISTORY, HISTORY), (BEST, BEST), (LAST, DETECTOR)):
                    with files.replacing(folder / target) as copy:
                        shutil.copyfile(folder / "fit" / source, copy)
            shutil.rmtree(folder / "fit", ignore_errors=True)  # absent if killed right after this

        parents = (model, teacher) if teacher else (model,)
        code = ["paperlib.training"]
        if sparsity:
            code.append("paperlib.pruning.sparsity")
        if teacher:
            code.append("paperlib.distillation")
        data = hashlib.sha256((self.train_set.digest + self.validation.digest).encode()).hexdigest()
        made = self._model("distil" if teacher else "train", settings, parents, make, *code, data=data)
        self._trained += 1
        return made

    def _model(
        self, kind: str, settings: dict[str, Any], parents: tuple[Model, ...], make: Callable[[Path], None],
        *modules: str, data: str = "",
    ) -> Model:  # fmt: skip
        """The model of a step; its numbers depend on the source of `make` and of the modules named here."""
        code = code_digest(make, *modules)
        step = Step(kind, settings, tuple(parent.digest for parent in parents), data, code)
        return Model(step.digest, self.store.get(step, make))

    @staticmethod
    def _machine() -> dict[str, Any]:
        return {"threads": torch.get_num_threads(), "device": _device().type}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _file_digest(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    return hashlib.sha256(path.read_bytes()).hexdigest()
