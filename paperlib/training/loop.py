"""One training loop (Section 4.3), on Accelerate: the objective and the regulariser are handed in.

A training is a function of its starting weights, data, recipe, objective and regulariser. Everything random in epoch
e is drawn from (seed, e), and the state is written between epochs, so a run that is killed at any moment and started
again ends with the same weights, bit for bit, as one that was left alone (same machine and thread count).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from paperlib import files, paths
from paperlib.data.augment import augment
from paperlib.data.records import Dataset
from paperlib.detectors.base import Targets
from paperlib.detectors.files import load_detector, save_detector
from paperlib.evaluation.evaluate import evaluate
from paperlib.pairs import find_partners
from paperlib.progress.report import is_due, report_epoch, report_part, track_items
from paperlib.seeding import derive_seed, seeded_rng
from paperlib.store.code_digest import code_digest
from paperlib.structure import module_digest
from paperlib.training.batchnorm import gamma_statistics, recalibrate_batch_norm_
from paperlib.training.recipe import Recipe

Objective = Callable[[nn.Module, Tensor, Targets], dict[str, Tensor]]
HISTORY, BEST, LAST, IDENTITY = "history.jsonl", "best.safetensors", "last.safetensors", "training.json"
SECONDS_BETWEEN_STATES = 5.0
"""At least; an epoch may take less than the writing of a state. This, or an epoch, is all that a kill can cost."""


class Regulariser(Protocol):
    """A term on the weights rather than on the answers, such as Eq. 4's.

    A method `convert_for_saving(module)`, if there is one, returns the network that is validated and written to files
    instead of `module`: one that trains with partners is saved without them.
    """

    def before_step(self, module: nn.Module, learning_rate: float) -> None:
        """Change gradients, once per optimiser step, after unscaling."""

    def after_step(self, module: nn.Module, learning_rate: float) -> None:
        """Change weights."""

    def penalty(self, module: nn.Module) -> Tensor:
        """The value of the term, for the log."""

    def describe(self) -> dict[str, Any]:
        """The settings, as JSON."""


@dataclass(frozen=True)
class History:
    """What a training left behind.

    Attributes:
        epochs: one row per epoch: losses, learning rate, gamma statistics, and validation mAP where it was taken.
        folder: holds `history.jsonl`, `last.safetensors` and, with a validation set, `best.safetensors`.
    """

    epochs: pd.DataFrame
    folder: Path

    def best(self) -> nn.Module:
        """The detector of the epoch with the highest validation mAP50."""
        return load_detector(self.folder / BEST)


def own_loss(detector: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
    """The detector's own loss: the objective of ordinary training."""
    return detector(images, targets)


class _Step(nn.Module):
    """Detector and objective in one forward pass, as data-parallel wrappers need it."""

    def __init__(self, detector: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.detector = detector
        self._objective = (objective,)  # in a tuple, so that a teacher is no part of the student

    def forward(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        return self._objective[0](self.detector, images, targets)


def fit(
    detector: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    objective: Objective | None = None,
    regulariser: Regulariser | None = None,
    resume: bool = True,
    validation: Dataset | None = None,
    folder: Path | None = None,
) -> History:
    """Train a detector in place; afterwards it holds the last epoch's weights (their running mean with `ema`).

    Args:
        detector: changed in place, ends in evaluation mode.
        dataset: the training images; what is left over after the last full batch of an epoch waits for the next.
        recipe: how to train.
        objective: `(detector, images, targets)` to a dict of losses; the detector's own loss by default.
        regulariser: for instance `paperlib.pruning.Sparsity` (Eq. 4).
        resume: continue what a killed run of the same training left in `folder`; else start over.
        validation: judged every `recipe.validate_every` epochs; picks `best.safetensors`.
        folder: where state and history live, for one process at a time; by default a place in the store named after
            the training. Nothing tells two objectives without `describe()` apart, so there these always start over.

    Raises:
        ValueError: there is no image, `folder` holds another training, a loss is not finite, or the detector has
            partners that the regulariser does not fuse for saving.
    """
    if len(dataset) == 0:
        raise ValueError(f"{dataset.name}: no images, nothing to train on")
    if not hasattr(regulariser, "convert_for_saving") and (name := next(iter(find_partners(detector)), None)):
        raise ValueError(f"{name} has a partner; train an extended detector with regulariser=pl.Partnership()")
    run = _Run(detector, dataset, recipe, objective or own_loss, regulariser, validation)
    known = objective is None or hasattr(objective, "describe") or folder is not None
    run.open(folder or paths.store_root() / "fit" / run.identity[:16], resume and known)
    for epoch in track_items(range(run.finished, recipe.epochs), "epoch", first=run.finished):
        run.train_epoch(epoch)
        run.save()
    return run.close()


class _Run:
    """The moving parts of one training, and their state on disk."""

    def __init__(
        self, detector: nn.Module, dataset: Dataset, recipe: Recipe, objective: Objective,
        regulariser: Regulariser | None, validation: Dataset | None,
    ) -> None:  # fmt: skip
        self.detector, self.dataset, self.recipe = detector, dataset, recipe
        self.objective, self.regulariser, self.validation = objective, regulariser, validation
        self.rows: list[dict[str, Any]] = []
        self.accelerator = _accelerator(recipe.precision)
        self.identity = self._identify()
        detector.to(self.accelerator.device, memory_format=torch.channels_last)
        if teacher := getattr(objective, "teacher", None):
            teacher.to(self.accelerator.device, memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(
            _parameter_groups(detector, recipe.weight_decay), recipe.learning_rate, fused=True
        )
        self.step, self.optimiser = self.accelerator.prepare(_Step(detector, objective), optimiser)
        self.mean = None
        if recipe.ema:
            self.mean = AveragedModel(detector, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
            self.accelerator.register_for_checkpointing(self.mean)

    @property
    def finished(self) -> int:
        return len(self.rows)

    def kept(self) -> nn.Module:
        """The weights that are validated and handed back, with statistics that fit them."""
        if not self.mean:
            return self.detector
        recalibrate_batch_norm_(self.mean.module, self.dataset, self.recipe.image_size)
        return self.mean.module

    def open(self, folder: Path, resume: bool) -> None:
        """Take up what a killed run left, or start afresh."""
        self.folder, self.state_written = folder, time.monotonic()
        if not resume:
            _forget(folder)
        if (folder / IDENTITY).exists() and files.read_json(folder / IDENTITY)["identity"] != self.identity:
            raise ValueError(f"{folder}: holds the state of another training; choose another folder or resume=False")
        files.write_json_atomically(folder / IDENTITY, {"identity": self.identity})
        if states := sorted(folder.glob("state-*[0-9]")):
            done = int(states[-1].name.removeprefix("state-"))
            self.accelerator.load_state(states[-1])
            lines = (folder / HISTORY).read_text().splitlines()[:done]
            self.rows = [json.loads(line) for line in lines]

    def train_epoch(self, epoch: int) -> None:
        """One pass over the images; adds a row to the history."""
        self.step.train()
        started, sums, batches = time.perf_counter(), {}, 0
        with seeded_rng(derive_seed(self.recipe.seed, epoch, self.accelerator.process_index)):
            for share, images, targets in self._batches(epoch):
                rate = self.recipe.rate(epoch + share)
                for name, value in self._update(images, targets, rate).items():
                    sums[name] = sums.get(name, 0.0) + value
                batches += 1
                if is_due():
                    # To read the loss is to wait for the accelerator, so it is read now and then, not at every batch.
                    report_part(batches / self._batch_count(), loss=float(sum(sums.values())) / batches)
        losses = {name: float(total) / batches for name, total in sums.items()}
        if not math.isfinite(sum(losses.values())):
            raise ValueError(f"epoch {epoch + 1}: the loss is not finite: {losses}; try a smaller learning rate")
        row = {"epoch": epoch + 1, "learning_rate": rate, "loss": sum(losses.values()), **losses}
        if self.regulariser:
            row["penalty"] = float(self.regulariser.penalty(self.detector))
        row |= gamma_statistics(self.detector)
        self.rows.append({**row, **self._validate(epoch), "seconds": time.perf_counter() - started})
        report_epoch(**{name: self.rows[-1][name] for name in ("loss", "map50") if name in self.rows[-1]})

    def save(self) -> None:
        """Put the history on disk and, when it is time, the state: whole, and only then in place of the one before."""
        if not self.accelerator.is_main_process:
            return
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        files.write_text_atomically(self.folder / HISTORY, text)
        if self.finished < self.recipe.epochs and time.monotonic() - self.state_written < SECONDS_BETWEEN_STATES:
            return
        target = self.folder / f"state-{self.finished:05d}"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.save_state(str(partial))
        files.sync_tree(partial)
        partial.rename(target)
        for older in self.folder.glob("state-*[0-9]"):
            if older != target:
                shutil.rmtree(older)
        self.state_written = time.monotonic()

    def close(self) -> History:
        """Leave the kept weights in the detector and on disk."""
        if self.mean:
            # The last validation, where there is one, has renewed the statistics.
            kept = self.kept() if self.validation is None else self.mean.module
            self.detector.load_state_dict(kept.state_dict())
        self.detector.eval()
        save_detector(self._convert_for_saving(self.detector), self.folder / LAST)
        self.accelerator.free_memory()
        return History(pd.DataFrame(self.rows), self.folder)

    def _batches(self, epoch: int) -> Iterator[tuple[float, Tensor, Targets]]:
        """Augmented batches of this process, with the share of the epoch that is over."""
        boxed = self.dataset.letterboxed(self.recipe.image_size)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, epoch))
        order = torch.randperm(len(self.dataset), generator=generator)
        size = min(self.recipe.batch_size, len(order))
        count = self._batch_count()
        for number in range(count):
            mine = order[number * size : (number + 1) * size][rank::world]
            chance = torch.Generator().manual_seed(derive_seed(self.recipe.seed, epoch, number, rank))
            chosen = [boxed.boxes[i] for i in mine], [boxed.labels[i] for i in mine]
            pixels = boxed.images[mine].to(self.accelerator.device)
            images, targets = augment(pixels, *chosen, self.recipe.augmentation(), chance)
            yield number / count, images.contiguous(memory_format=torch.channels_last), targets

    def _batch_count(self) -> int:
        return max(len(self.dataset) // self.recipe.batch_size, 1)

    def _update(self, images: Tensor, targets: Targets, rate: float) -> dict[str, Tensor]:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        losses = self.step(images, targets)
        self.accelerator.backward(torch.stack(list(losses.values())).sum())
        if self.regulariser:
            self.accelerator.unscale_gradients(self.optimiser)
            self.regulariser.before_step(self.detector, rate)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.regulariser:
            self.regulariser.after_step(self.detector, rate)
        if self.mean:
            self.mean.update_parameters(self.detector)
        return {name: loss.detach() for name, loss in losses.items()}

    def _validate(self, epoch: int) -> dict[str, float]:
        last = epoch + 1 == self.recipe.epochs
        if self.validation is None or not (last or (epoch + 1) % self.recipe.validate_every == 0):
            return {}
        kept = self._convert_for_saving(self.kept())
        metrics = evaluate(kept, self.validation, image_size=self.recipe.image_size)
        before = max((row.get("map50", -1.0) for row in self.rows), default=-1.0)
        if metrics.map50 > before and self.accelerator.is_main_process:
            save_detector(kept, self.folder / BEST)
        return {"map50": metrics.map50, "map": metrics.map}

    def _convert_for_saving(self, detector: nn.Module) -> nn.Module:
        convert = getattr(self.regulariser, "convert_for_saving", None)
        return convert(detector) if convert else detector

    def _identify(self) -> str:
        """A digest of all that decides the final weights, so that no other training is taken for this one."""
        teacher = getattr(self.objective, "teacher", None)
        actors = [actor for actor in (self.detector, self.objective, self.regulariser) if actor]
        ours = {actor.__module__ for actor in actors if actor.__module__.startswith("paperlib.")}
        parts = [
            self.recipe.model_dump(),
            self.dataset.digest,
            self.validation.digest if self.validation else None,
            getattr(self.objective, "__name__", type(self.objective).__name__),
            getattr(self.objective, "describe", dict)(),
            self.regulariser.describe() if self.regulariser else None,
            module_digest(self.detector),
            module_digest(teacher) if teacher else None,
            code_digest(__name__, *sorted(ours)),
            [torch.__version__, torch.get_num_threads(), str(self.accelerator.device)],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _forget(folder: Path) -> None:
    """Remove what a training left, its name last, and nothing else."""
    for state in folder.glob("state-*"):
        shutil.rmtree(state)
    for name in (HISTORY, BEST, LAST, IDENTITY):
        (folder / name).unlink(missing_ok=True)


def _accelerator(precision: str) -> Accelerator:
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision", precision) != precision:
        # One process may train with different precisions one after the other; Accelerate keeps the first otherwise.
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision)


def _parameter_groups(detector: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay the kernels only: Eq. 4 alone decides about gamma."""
    kernels = [p for p in detector.parameters() if p.ndim > 1]
    others = [p for p in detector.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
