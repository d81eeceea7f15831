"""The steps of the paper - new or adopt, train, prune, fine-tune, distil, evaluate - each remembered by the store.

The one place where detectors, training, pruning, distillation and evaluation meet. Experiments and Algorithm 1 are
written in these steps and nothing else, so they read like the paper and resume for free.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib import files
from paperlib.data.records import Dataset, file_digest
from paperlib.detectors import build_detector, reinitialise_, transfer_coco_weights
from paperlib.detectors.base import Targets
from paperlib.detectors.files import load_detector, save_detector
from paperlib.distillation.assistants import Distillation
from paperlib.evaluation.evaluate import Metrics, evaluate
from paperlib.progress import report as progress
from paperlib.pruning import PruningPlan, Sparsity, apply_plan, plan_pruning, rescale_gamma_
from paperlib.pruning.importance import CALIBRATED
from paperlib.seeding import seeded_rng
from paperlib.store.store import Step, Store, canonical_json, code_digest
from paperlib.structure import describe
from paperlib.training.batchnorm import module_digest
from paperlib.training.loop import BEST, HISTORY, LAST, fit
from paperlib.training.recipe import Recipe
from paperlib.workbench.options import Blueprint, DistillationChoices, PruningChoices

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


@dataclass
class Workbench:
    """The steps, for one data set, one detector and one seed.

    Attributes:
        train_set, validation, test: the three splits; only `evaluate(..., "test")` ever looks at the last.
        blueprint: the detector that `build_detector` makes; `adopt_detector` needs none.
        recipe: long training, plain or sparse; its seed is this bench's seed.
        fine_tuning: after each pruning, and for each distillation.
        sparsity: the term of Eq. 4 that `train_sparse` and sparse fine-tuning add.
        pruning, distillation: choices beside how much is to go and the teacher.
        trainings, epochs: how many are expected in all, for the progress display.
        store: where finished steps are kept.
    """

    train_set: Dataset
    validation: Dataset
    test: Dataset | None
    blueprint: Blueprint | None
    recipe: Recipe
    fine_tuning: Recipe
    sparsity: Sparsity
    pruning: PruningChoices = PruningChoices()
    distillation: DistillationChoices = DistillationChoices()
    trainings: int = 0
    epochs: int = 0
    store: Store | None = None

    def __post_init__(self) -> None:
        self.store = self.store or Store()
        self._trained = self._epochs_trained = 0

    def build_detector(self) -> Model:
        """A fresh detector, from scratch or from COCO weights (Section 4.3)."""
        plan = self.blueprint
        if plan is None:
            raise ValueError("a workbench without a blueprint makes no new detector")
        seed, classes = self.recipe.seed, len(self.train_set.classes)
        settings = {
            "name": plan.name,
            "classes": classes,
            "width": plan.width,
            "depth": plan.depth,
            "anchors": plan.anchors,
            "weights": weights_digest(plan.weights) if plan.weights else None,
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
                    rescale_gamma_(detector, plan.gamma_level)
            save_detector(detector, folder / DETECTOR)

        code = ["paperlib.detectors", "paperlib.detectors.files"]
        if plan.gamma_level:
            code.append("paperlib.pruning.gamma_rescaling")
        return self._model("new", settings, (), make, *code)

    def adopt_detector(self, detector: nn.Module) -> Model:
        """Store anyone's detector as the first model, trained or not.

        Raises:
            ValueError: it was not made by `build_detector` or `load_detector`, so no file could hold it.
        """
        if not hasattr(detector, "build_arguments"):
            raise ValueError(f"{type(detector).__name__} was not made by build_detector or load_detector")
        shape = hashlib.sha256(canonical_json(describe(detector)).encode()).hexdigest()
        settings = {"weights": module_digest(detector), "structure": shape}

        def make(folder: Path) -> None:
            save_detector(detector, folder / DETECTOR)

        return self._model("adopt", settings, (), make, "paperlib.detectors.files")

    def draw_gammas(self, model: Model) -> Model:
        """Scale factors drawn at random in place of trained ones: for what depends on shapes alone, such as time."""
        seed = self.recipe.seed

        def make(folder: Path) -> None:
            detector = model.detector()
            generator = torch.Generator().manual_seed(seed)
            for norm in detector.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            save_detector(detector, folder / DETECTOR)

        return self._model("draw", {"seed": seed}, (model,), make, "paperlib.detectors.files")

    def reset_weights(self, model: Model) -> Model:
        """The same shape with fresh weights: the control that tells what the inherited weights are worth."""
        seed = self.recipe.seed

        def make(folder: Path) -> None:
            detector = model.detector()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                reinitialise_(detector)
            save_detector(detector, folder / DETECTOR)

        return self._model("reset", {"seed": seed}, (model,), make, "paperlib.detectors", "paperlib.detectors.files")

    def train(self, model: Model, label: str = "train", *, times: int = 1) -> Model:
        """Ordinary training, `times` as long as the recipe says."""
        recipe = self.recipe.model_copy(update={"epochs": times * self.recipe.epochs})
        return self._fit(model, recipe, label)

    def train_sparse(self, model: Model, label: str = "sparse training", *, sparsity: Sparsity | None = None) -> Model:
        """Training with L1 on the scale factors (Eq. 4), by `sparsity` in place of the bench's own."""
        return self._fit(model, self.recipe, label, sparsity=sparsity or self.sparsity)

    def fine_tune(self, model: Model, label: str = "fine-tune", *, sparse: bool = False) -> Model:
        """Short training after pruning; `sparse` keeps Eq. 4's term on, for a model that will be pruned again."""
        return self._fit(model, self.fine_tuning, label, sparsity=self.sparsity if sparse else None)

    def distil(self, student: Model, teacher: Model, label: str = "distil") -> Model:
        """Short training of the student by the teacher (Eqs. 10-12)."""
        return self._fit(student, self.fine_tuning, label, teacher=teacher)

    def plan(
        self, model: Model, ratio: float | None = None, *, layers: int = 0, importance: str | None = None,
        original: Model | None = None, **target: float,
    ) -> PruningPlan:  # fmt: skip
        """What `prune` would do."""
        choices, calibration = self._choices(importance), None
        if choices.importance in CALIBRATED:
            calibration = self._calibration(choices.calibration_images)
        with seeded_rng(self.recipe.seed):  # a detector of two stages draws its proposals
            return plan_pruning(
                model.detector().to(_device()), ratio, **target, layers=layers,
                importance=choices.importance, calibration=calibration, keep_floor=choices.keep_floor,
                original=original.detector() if original else None, round_to=choices.round_to,
                image_size=self.recipe.image_size,
            )  # fmt: skip

    def prune(
        self, model: Model, ratio: float | None = None, *, layers: int = 0, importance: str | None = None,
        original: Model | None = None, **target: float,
    ) -> Model:  # fmt: skip
        """Remove the least important channels and blocks (Section 3.1); no training.

        Args:
            model: what is cut.
            ratio: share of its prunable channels to remove. Exactly one of this and `target` is given.
            layers: number of residual blocks to remove first.
            importance: a criterion in place of the bench's choice.
            original: what the floor is a share of; by default `model`.
            target: `size_mb`, `gmacs` or `channels` to come down to (see `plan_pruning`).
        """
        choices = self._choices(importance)

        def make(folder: Path) -> None:
            plan = self.plan(model, ratio, layers=layers, importance=importance, original=original, **target)
            save_detector(apply_plan(model.detector(), plan, compensate=choices.compensate), folder / DETECTOR)
            files.write_json_atomically(folder / PLAN, plan.to_dict())

        settings = {"ratio": ratio, **target, "layers": layers, "image_size": self.recipe.image_size, **vars(choices)}
        parents = (model, original) if original else (model,)
        code = (Workbench.plan, "paperlib.pruning.planner", "paperlib.pruning.surgery", "paperlib.detectors.files")
        data = ""
        if choices.importance in CALIBRATED:
            settings |= {"seed": self.recipe.seed, "batch_size": self.recipe.batch_size, **self._machine()}
            data, code = self.train_set.digest, (*code, Workbench._calibration, "paperlib.data.records")
        return self._model("prune", settings, parents, make, *code, data=data)

    def evaluate(self, model: Model, split: Literal["val", "test"] = "test", *, slices: bool = False) -> Metrics:
        """Metrics of a model, and of its edge cases; the confidence of precision and recall is chosen on validation."""
        if split == "test" and self.test is None:
            raise ValueError("a workbench without a test split judges on validation only")
        confidence = self.evaluate(model, "val").confidence if split == "test" else None
        dataset = self.test if split == "test" else self.validation
        how = {"image_size": self.recipe.image_size, "confidence": confidence, "slices": slices}

        def make(folder: Path) -> None:
            progress.report(f"evaluate on {split}, seed {self.recipe.seed}", self._trained, self.trainings)
            metrics = evaluate(model.detector().to(_device()), dataset, **how)
            files.write_json_atomically(folder / METRICS, metrics.to_dict())

        code = code_digest(make, "paperlib.evaluation.evaluate", "paperlib.detectors.files")
        step = Step("evaluate", how | self._machine(), (model.digest,), dataset.digest, code)
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
        code = ["paperlib.training.loop"]
        if sparsity:
            code.append("paperlib.pruning.sparsity")
        if teacher:
            code.append("paperlib.distillation.assistants")
        data = hashlib.sha256((self.train_set.digest + self.validation.digest).encode()).hexdigest()
        progress.weigh(self._epochs_trained, recipe.epochs, self.epochs)
        made = self._model("distil" if teacher else "train", settings, parents, make, *code, data=data)
        self._trained, self._epochs_trained = self._trained + 1, self._epochs_trained + recipe.epochs
        progress.weigh(self._epochs_trained, 0, self.epochs)
        return made

    def _choices(self, importance: str | None) -> PruningChoices:
        return replace(self.pruning, importance=importance) if importance else self.pruning

    def _calibration(self, images: int) -> Iterator[tuple[Tensor, Targets]]:
        """Training images as they are, spread evenly over the data set, in batches."""
        boxed = self.train_set.letterboxed(self.recipe.image_size)
        chosen = torch.tensor(self.train_set.spaced_indices(images))
        for part in chosen.split(self.recipe.batch_size):
            targets = [{"boxes": boxed.boxes[i], "labels": boxed.labels[i]} for i in part]
            yield boxed.images[part].to(_device()).float() / 255, targets

    def _model(
        self, kind: str, settings: dict[str, Any], parents: tuple[Model, ...], make: Callable[[Path], None],
        *code: str | Callable, data: str = "",
    ) -> Model:  # fmt: skip
        """The model of a step; its numbers depend on the source of `make` and of what `code` names."""
        code = code_digest(make, *code)
        step = Step(kind, settings, tuple(parent.digest for parent in parents), data, code)
        return Model(step.digest, self.store.get(step, make))

    @staticmethod
    def _machine() -> dict[str, Any]:
        return {"threads": torch.get_num_threads(), "device": _device().type}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file. Raises FileNotFoundError if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    return file_digest(path).hex()
