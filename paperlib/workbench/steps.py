"""The steps of the paper: build a network, train, prune, fine-tune, distil, evaluate; finished ones are kept.

Networks, training, pruning, distillation and evaluation meet only here. Experiments and Algorithm 1 consist of these
steps alone, so they read like the paper, and when they are interrupted they continue where they stopped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib import files
from paperlib.data.records import Dataset
from paperlib.data.scenes import SceneDataset
from paperlib.data.slices import SliceGroup
from paperlib.detectors import find_coco_rows, reinitialise_
from paperlib.distillation.methods import KeptChannels, TeachingMethod, choose_options, make_teaching
from paperlib.distillation.scenes import SceneDistillation
from paperlib.evaluation.evaluate import Metrics, detect, evaluate
from paperlib.evaluation.scenes import SceneMetrics
from paperlib.network_files import family_of, load_network, save_network, transfer_coco_weights
from paperlib.partners.partnership import Partnership
from paperlib.progress import group
from paperlib.progress.report import begin_step, end_step
from paperlib.pruning import PruningPlan, Sparsity, apply_plan, find_carriers, plan_pruning, rescale_gamma_
from paperlib.pruning.criteria import Criterion, criterion_digest, describe_importance, needs_calibration
from paperlib.seeding import seeded_rng
from paperlib.store.ancestry import find_prunings
from paperlib.store.code_digest import code_of
from paperlib.store.contents import check_files, read_omitted, read_sealed, seal_record
from paperlib.store.store import PROCESSES, STEP_DEVICE, Step, Store, canonical_json
from paperlib.structure import describe_structure, module_digest
from paperlib.training.folder import BEST, HISTORY, LAST
from paperlib.training.loop import fit
from paperlib.training.objective import Objective, Regulariser
from paperlib.training.recipe import Recipe
from paperlib.workbench.architecture import load_architecture, name_missing_weights
from paperlib.workbench.options import Blueprint, DistillationOptions, PruningOptions, TeachingOptions

DETECTOR, PLAN, METRICS, KEPT = "detector.safetensors", "plan.json", "metrics.json", "detections.npz"
BOXES = "boxes.json"
FITTED = "fitted.json"
"""The file that a training's folder gets last, with the digests of what the training made."""

MakeObjective = Callable[[nn.Module], Objective]
"""Makes an objective for the network that will be trained: its class, or `functools.partial` of it with options."""


@dataclass(frozen=True)
class Model:
    """A finished model: a folder of the store."""

    digest: str
    folder: Path

    def detector(self) -> Any:
        """Load the network, a detector or a classifier, in evaluation mode.

        Raises:
            MissingWeightsError: the step was imported without its weights.
        """
        return load_network(self.folder / DETECTOR)

    def architecture(self) -> Any:
        """Build the network on the meta device: its shapes, for size, compute and numbers of channels.

        That takes no weights, so a step that was imported without them is enough.
        """
        return load_architecture(self.folder / DETECTOR)

    def has_weights(self) -> bool:
        """Return whether the weights are in this store; a step may be imported without them."""
        return not read_omitted(self.folder)

    def history(self) -> pd.DataFrame:
        """Return one row per epoch of the training that made the model."""
        return pd.read_json(self.folder / HISTORY, lines=True)

    def plan(self) -> PruningPlan:
        """Return the plan by which the model was pruned."""
        return PruningPlan.from_dict(files.read_json(self.folder / PLAN))


# Added here and not in the method, which is a part of what identifies every step that starts from a model.
Model.detector = name_missing_weights(Model.detector)


@dataclass
class Workbench:
    """The steps for one data set, one network and one seed: a detector, or a classifier if the data are scenes.

    Attributes:
        train_set, validation, test: the three splits, each a `Dataset` or a `SceneDataset`; only
            `evaluate(..., "test")` reads the last, which may be None.
        blueprint: the network that `build_detector` builds; `adopt_detector` needs none.
        recipe: the recipe of long training, plain or sparse; its seed is the seed of all steps.
        fine_tuning: the recipe of the training after each pruning, and of each distillation.
        sparsity: the term of Eq. 4 that `train_sparse` and sparse fine-tuning add to the loss.
        partners: how every fine-tuning and distillation trains with partners (BPL); None: without.
        pruning, distillation, teaching: options that stay the same from step to step.
        store: where finished steps are kept; by default the store that all notebooks share.

    Several processes, started by `torchrun` or `accelerate launch`, share every training, and the first makes all other
    steps; each of them has to take the same steps in the same order.
    """

    train_set: Any
    validation: Any
    test: Any
    blueprint: Blueprint | None
    recipe: Recipe
    fine_tuning: Recipe
    sparsity: Sparsity
    pruning: PruningOptions = PruningOptions()
    distillation: DistillationOptions = DistillationOptions()
    teaching: TeachingOptions = TeachingOptions()
    partners: Partnership | None = None
    store: Store | None = None

    def __post_init__(self) -> None:
        group.join_group()
        self._store = self.store or Store()

    def build_detector(self) -> Model:
        """Build a new network, from scratch or with COCO weights (Section 4.3).

        Raises:
            ValueError: the workbench has no blueprint.
            FileNotFoundError: the weights file does not exist.
        """
        if self.blueprint is None:
            raise ValueError("a workbench without a blueprint makes no new detector")
        model = self._build(self.blueprint)
        # A step of its own, so that a change in `pruning` makes only those detectors stale that need it.
        return self._rescale_gamma(model, self.blueprint.gamma_level) if self.blueprint.gamma_level else model

    def adopt_detector(self, detector: nn.Module) -> Model:
        """Store a network from elsewhere, trained or not, as the first model.

        Raises:
            ValueError: it was not made by `build_detector` or `load_detector`, so no file could hold it.
        """
        if not hasattr(detector, "build_arguments"):
            raise ValueError(f"{type(detector).__name__} was not made by build_detector or load_detector")
        shape = hashlib.sha256(canonical_json(describe_structure(detector)).encode()).hexdigest()
        settings = {"weights": module_digest(detector), "structure": shape}

        def write_model(folder: Path) -> None:
            save_network(detector, folder / DETECTOR)

        return self._model("adopt", Workbench.adopt_detector, settings, (), write_model)

    def draw_gammas(self, model: Model) -> Model:
        """Replace the scale factors by random ones: enough for what depends on shapes alone, such as latency."""
        seed = self.recipe.seed

        def write_model(folder: Path) -> None:
            detector = model.detector()
            generator = torch.Generator().manual_seed(seed)
            for norm in detector.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            save_network(detector, folder / DETECTOR)

        return self._model("draw", Workbench.draw_gammas, {"seed": seed}, (model,), write_model)

    def reset_weights(self, model: Model) -> Model:
        """Return the same shape with new random weights: the control that shows what inherited weights are worth."""
        seed = self.recipe.seed

        def write_model(folder: Path) -> None:
            detector = model.detector()
            with torch.random.fork_rng(devices=[]):
                # Weights are drawn on the CPU, so that they do not depend on the device.
                torch.manual_seed(seed)
                reinitialise_(detector)
            save_network(detector, folder / DETECTOR)

        return self._model("reset", Workbench.reset_weights, {"seed": seed}, (model,), write_model)

    def train(
        self, model: Model, label: str = "train", *, times: float = 1, partners: Partnership | None = None,
        term: Regulariser | None = None, objective: MakeObjective | None = None,
    ) -> Model:  # fmt: skip
        """Train without the term of Eq. 4.

        Args:
            model: the model to train.
            label: how the progress display calls the training.
            times: how many times as long as the recipe says.
            partners: train with partners and fuse them (BPL).
            term: another regulariser, such as soft pruning.
            objective: minimise another loss than the network's own; see `MakeObjective`.
        """
        recipe = _prolong(self.recipe, times)
        changes = {"regulariser": term, "make_objective": objective, "partners": partners}
        return self._fit(Workbench.train, model, recipe, label, **changes)

    def train_sparse(
        self, model: Model, label: str = "sparse training", *, sparsity: Sparsity | None = None, times: float = 1
    ) -> Model:
        """Train with the L1 term on scale factors (Eq. 4), `times` as long as the recipe says.

        The argument `sparsity` replaces the workbench's own term.
        """
        recipe = _prolong(self.recipe, times)
        return self._fit(Workbench.train_sparse, model, recipe, label, regulariser=sparsity or self.sparsity)

    def fine_tune(
        self, model: Model, label: str = "fine-tune", *, sparse: bool = False, times: float = 1,
        partners: Partnership | None = None, term: Regulariser | None = None, objective: MakeObjective | None = None,
    ) -> Model:  # fmt: skip
        """Train shortly after pruning.

        Args:
            model: the pruned model.
            label: how the progress display calls the training.
            sparse: keep the term of Eq. 4, for a model that will be pruned again.
            times: how many times as long as the recipe says.
            partners: train with partners and fuse them (BPL); by default as `self.partners` says.
            term, objective: see `train`.
        """
        recipe = _prolong(self.fine_tuning, times)
        changes = {"regulariser": self.sparsity if sparse else term, "make_objective": objective}
        return self._fit(Workbench.fine_tune, model, recipe, label, **changes, partners=partners or self.partners)

    def distil(
        self, student: Model, teacher: Model, label: str = "distil", *, times: float = 1,
        partners: Partnership | None = None, how: TeachingMethod | None = None, **changes: Any,
    ) -> Model:  # fmt: skip
        """Train the student shortly with the answers of the teacher.

        Args:
            student, teacher: the models.
            label: how the progress display calls the training.
            times: how many times as long as the recipe says.
            partners: train the student with partners and fuse them (BPL); by default as `self.partners` says.
            how: `bounded` (Eqs. 10-12; for scenes Eq. 9), `dynamic` (DKD) or `instances` (GID); by default as
                `self.teaching` says. The last two are for detectors. They compare features: those channels of the
                teacher that a pruned student has kept, or by a convolution that is trained along.
            changes: settings of this method other than the workbench's, such as `feature_weight=0` of `dynamic`.

        Raises:
            ValueError: the method is unknown or not for scenes, or a setting is unknown or out of its range.
        """
        method, scenes = how or self.teaching.distillation, isinstance(self.train_set, SceneDataset)
        usual = {"bounded": self.distillation, "dynamic": self.teaching.dynamic_options()}.get(method)
        options = choose_options(method, usual, changes, scenes=scenes)
        prunings = find_prunings(teacher.folder, student.folder) if method != "bounded" else ()

        # Called only if the step is not finished: to load the teacher takes time.
        def make_objective(learner: nn.Module) -> Objective:
            if scenes:
                return SceneDistillation(teacher.detector(), vars(options)["soft_weight"], vars(options)["temperature"])
            plans = None if prunings is None else [KeptChannels.read(folder / PLAN) for folder in prunings]
            return make_teaching(method, options, learner, teacher.detector(), plans, self.recipe.seed)

        settings = options.model_dump(mode="json")
        if method != "bounded":
            settings |= {"method": method, "prunings": prunings and [folder.name for folder in prunings]}
        return self._fit(
            Workbench.distil, student, _prolong(self.fine_tuning, times), label,
            teacher=teacher, make_objective=make_objective, partners=partners or self.partners, taught=settings,
        )  # fmt: skip

    def plan(
        self, model: Model, ratio: float | None = None, *, layers: int = 0, importance: str | Criterion | None = None,
        original: Model | None = None, **target: Any,
    ) -> PruningPlan:  # fmt: skip
        """Return the plan by which `prune` would prune, for the same arguments."""
        choices, calibration = self.pruning, None
        importance = importance or choices.importance
        if needs_calibration(importance):
            calibration = self._calibration(choices.calibration_images)
        with seeded_rng(self.recipe.seed):  # a detector of two stages draws its proposals
            return plan_pruning(
                model.detector().to(_device()), ratio, **target, layers=layers,
                importance=importance, calibration=calibration, min_keep_ratio=choices.min_keep_ratio,
                original=original.detector() if original else None, round_to=choices.round_to,
                image_size=self.recipe.image_size,
            )  # fmt: skip

    def prune(
        self, model: Model, ratio: float | None = None, *, layers: int = 0, importance: str | Criterion | None = None,
        original: Model | None = None, **target: Any,
    ) -> Model:  # fmt: skip
        """Remove the least important channels and blocks (Section 3.1); no training.

        Args:
            model: the model to prune.
            ratio: fraction of its prunable channels to remove. Exactly one of this and `target` is given.
            layers: number of residual blocks to remove first.
            importance: the criterion, by name or as a function, if not the one of the workbench's options.
            original: the model that the smallest share of channels to keep refers to; by default `model`.
            target: the `size_mb`, `gmacs` or `channels` to reach (see `plan_pruning`).
        """
        choices, importance = self.pruning, importance or self.pruning.importance

        def write_model(folder: Path) -> None:
            plan = self.plan(model, ratio, layers=layers, importance=importance, original=original, **target)
            detector = model.detector()
            save_network(apply_plan(detector, plan, compensate=choices.compensate), folder / DETECTOR)
            if choices.compensate == "exact":
                plan = find_carriers(detector, plan)
            files.write_json_atomically(folder / PLAN, plan.to_dict())

        settings = {"ratio": ratio, **target, "layers": layers, "image_size": self.recipe.image_size, **vars(choices)}
        settings["importance"] = describe_importance(importance)
        if criterion := criterion_digest(importance):
            settings["criterion"] = criterion
        parents = (model, original) if original else (model,)
        # Most criteria look at the weights alone; those that are calibrated depend on images, and so on the data.
        data = None
        if needs_calibration(importance):
            settings |= {"seed": self.recipe.seed, "batch_size": self.recipe.batch_size, **self._machine()}
            data = self.train_set
        digest = data.digest if data else ""
        return self._model("prune", Workbench.prune, settings, parents, write_model, uses=(data,), data=digest)

    def evaluate(
        self, model: Model, split: Literal["val", "test"] = "test", *, slices: bool | Sequence[SliceGroup] = False
    ) -> Any:
        """Measure a model on a split and, with `slices`, on all of its slices or on those of some groups.

        The confidence at which precision and recall are measured is chosen on the validation split.

        Returns:
            `Metrics` of a detector, `SceneMetrics` of a classifier.

        Raises:
            ValueError: the workbench has no test split, or slices are asked for of scenes.
        """
        values = files.read_json(self._evaluate(model, split, slices).folder / METRICS)
        return Metrics(**values) if isinstance(self._split(split), Dataset) else SceneMetrics(**values)

    def keep_detections(self, model: Model) -> Path | None:
        """Return the file of a model's detections on the test split (see `evaluate`); None of a classifier."""
        return self._evaluate(model, "test", False).folder / KEPT if isinstance(self.test, Dataset) else None

    def detect(self, model: Model, images: Sequence[int]) -> dict[int, dict[str, Tensor]]:
        """Return a model's detections on some images of the test split, by index (see `evaluate.detect`)."""
        test = self._split("test")
        shown = Dataset(test.name, test.classes, [test.records[index] for index in images])

        def write_boxes(folder: Path) -> None:
            found = detect(model.detector(), shown, image_size=self.recipe.image_size)
            boxes = [{name: values.tolist() for name, values in each.items()} for each in found]
            files.write_json_atomically(folder / BOXES, boxes)

        settings = {"image_size": self.recipe.image_size, "images": list(images)}
        made = self._model("detect", Workbench.detect, settings, (model,), write_boxes, data=test.digest)
        types = {"boxes": torch.float32, "labels": torch.int64, "scores": torch.float32}
        found = [
            {name: torch.tensor(values, dtype=types[name]) for name, values in each.items()}
            for each in files.read_json(made.folder / BOXES)
        ]
        return dict(zip(images, found, strict=True))

    def _split(self, split: Literal["val", "test"]) -> Any:
        dataset = self.test if split == "test" else self.validation
        if dataset is None:
            raise ValueError("a workbench without a test split judges on validation only")
        return dataset

    def _evaluate(self, model: Model, split: Literal["val", "test"], slices: bool | Sequence[SliceGroup]) -> Model:
        dataset = self._split(split)
        how: dict[str, Any] = {"image_size": self.recipe.image_size}
        if isinstance(dataset, Dataset):
            how["confidence"] = self.evaluate(model, "val").confidence if split == "test" else None
        if isinstance(dataset, Dataset) or slices:
            how["slices"] = slices if isinstance(slices, bool) else list(slices)

        def write_metrics(folder: Path) -> None:
            begin_step(f"evaluate on {split}, seed {self.recipe.seed}")
            # Only the final evaluation is resampled.
            kept: dict[str, Any] = {"keep": folder / KEPT} if isinstance(dataset, Dataset) and split == "test" else {}
            metrics: Metrics | SceneMetrics = evaluate(model.detector().to(_device()), dataset, **how, **kept)
            files.write_json_atomically(folder / METRICS, metrics.to_dict())

        settings = how | self._machine()
        return self._model("evaluate", Workbench._evaluate, settings, (model,), write_metrics, data=dataset.digest)

    def _build(self, plan: Blueprint) -> Model:
        seed = self.recipe.seed
        classes = len(self.train_set.classes)
        options = plan.build_options()
        weights = weights_digest(plan.weights) if plan.weights else None

        def write_model(folder: Path) -> None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = family_of(plan.name).build(plan.name, classes, **options)
                if plan.weights:
                    rows = find_coco_rows(plan.coco_rows, self.train_set.classes)
                    transfer_coco_weights(network, plan.weights, rows)
            save_network(network, folder / DETECTOR)

        settings = {"name": plan.name, "classes": classes, **options, "weights": weights, "seed": seed}
        if plan.coco_rows:
            settings["coco_rows"] = find_coco_rows(plan.coco_rows, self.train_set.classes)
        return self._model("new", Workbench._build, settings, (), write_model)

    def _rescale_gamma(self, model: Model, level: float) -> Model:
        def write_model(folder: Path) -> None:
            detector = model.detector()
            rescale_gamma_(detector, level)
            save_network(detector, folder / DETECTOR)

        return self._model("rescale", Workbench._rescale_gamma, {"level": level}, (model,), write_model)

    def _fit(
        self, method: Callable[..., Model], model: Model, recipe: Recipe, label: str,
        *, regulariser: Regulariser | None = None, teacher: Model | None = None,
        make_objective: MakeObjective | None = None, partners: Partnership | None = None,
        taught: dict[str, Any] | None = None,
    ) -> Model:  # fmt: skip
        settings = {
            "recipe": recipe.model_dump(),
            "sparsity": regulariser.describe() if regulariser else None,
            "distillation": taught,
            **({"partners": partners.describe()} if partners else {}),
            **({"objective": _describe_maker(make_objective)} if make_objective and not teacher else {}),
            **self._machine(),
            **({PROCESSES: count} if (count := group.count_processes()) > 1 else {}),
        }
        term = partners.with_term(regulariser) if partners else regulariser

        def write_model(folder: Path) -> None:
            begin_step(f"{label}, seed {recipe.seed}", epochs=recipe.epochs)
            # The digests are written last: once they fit, only the optimiser's state remains to be dropped.
            if not group.let_first(partial(_is_fitted, folder)):
                plain = model.detector()
                network = partners.extend(plain, recipe.seed) if partners else plain
                fit(
                    network, self.train_set, recipe, objective=make_objective(network) if make_objective else None,
                    regulariser=term, validation=self.validation, folder=folder / "fit",
                )  # fmt: skip
                group.let_first(partial(_keep_fitted, folder))
            # The folder is absent if a run was killed right after this.
            group.let_first(partial(shutil.rmtree, folder / "fit", ignore_errors=True))

        kind = "distil" if teacher else "train"
        parents = (model, teacher) if teacher else (model,)
        data = hashlib.sha256((self.train_set.digest + self.validation.digest).encode()).hexdigest()
        uses = (term, getattr(make_objective, "func", make_objective))
        made = self._model(kind, method, settings, parents, write_model, uses=uses, data=data)
        end_step(recipe.epochs)
        return made

    def _calibration(self, images: int) -> Iterator[tuple[Tensor, Any]]:
        """Yield batches of training images, not augmented, spread evenly over the data set."""
        chosen = torch.tensor(self.train_set.spaced_indices(images))
        for part in chosen.split(self.recipe.batch_size):
            pixels, targets = self.train_set.plain_batch(part, self.recipe.image_size)
            yield pixels.to(_device()).float() / 255, targets

    def _model(
        self, kind: str, method: Callable, settings: dict[str, Any], parents: tuple[Model, ...],
        make: Callable[[Path], None], *, uses: tuple[object, ...] = (), data: str = "",
    ) -> Model:  # fmt: skip
        """Return the model of a step; `make` writes it to the folder that it is given, unless it is finished.

        The step depends on the code of `method` and on that of the objects that it `uses`.
        """
        code = code_of(method, *uses)
        if settings.get("device", _device().type) != _device().type:
            make = _refuse_to_make
        step = Step(kind, settings, tuple(parent.digest for parent in parents), data, code.digest)
        return Model(step.digest, self._store.get_step(step, make, code))

    @staticmethod
    def _machine() -> dict[str, Any]:
        return {"threads": torch.get_num_threads(), "device": os.environ.get(STEP_DEVICE) or _device().type}


def _describe_maker(make_objective: MakeObjective) -> dict[str, Any]:
    """Return the class of an objective and the options that `functools.partial` holds for it."""
    made = getattr(make_objective, "func", make_objective)
    return {"name": made.__name__, **getattr(make_objective, "keywords", {})}


def _prolong(recipe: Recipe, times: float) -> Recipe:
    return recipe.model_copy(update={"epochs": max(1, round(times * recipe.epochs))})


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _refuse_to_make(folder: Path) -> None:
    raise RuntimeError(
        f"{STEP_DEVICE}={os.environ[STEP_DEVICE]}, but this process has no such device, and {folder.stem} is not in "
        "the store"
    )


def _keep_fitted(folder: Path) -> None:
    """Copy what a training has made out of its own folder, the digests last."""
    for source, target in ((HISTORY, HISTORY), (BEST, BEST), (LAST, DETECTOR)):
        with files.replace_file(folder / target) as copy:
            shutil.copyfile(folder / "fit" / source, copy)
    digests = {name: files.file_digest(folder / name) for name in (HISTORY, BEST, DETECTOR)}
    files.write_json_atomically(folder / FITTED, seal_record(digests))


def _is_fitted(folder: Path) -> bool:
    """Return whether a training has ended and its files are as they were written."""
    try:
        check_files(folder, read_sealed(folder / FITTED))
    except ValueError:
        return False
    return True


def weights_digest(path: Path) -> str:
    """Return the SHA-256 of a weights file. Raises FileNotFoundError if it does not exist."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    return files.file_digest(path)
