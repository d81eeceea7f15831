"""One training: its network, optimiser, objective and running mean, epoch by epoch, and its files."""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from paperlib import files
from paperlib.data.interface import ImageSet
from paperlib.evaluation.evaluate import evaluate
from paperlib.network_files import save_network
from paperlib.progress import group
from paperlib.progress.report import is_due, report_epoch, report_part
from paperlib.seeding import derive_seed, seeded_rng
from paperlib.store.code_digest import code_digest
from paperlib.structure import module_digest, tensors_digest
from paperlib.training.batches import count_batches, draw_batches
from paperlib.training.batchnorm import gamma_statistics, recalibrate_batch_norm_
from paperlib.training.callback import EpochReport, OnEpoch, tell_once
from paperlib.training.folder import BEST, HISTORY, IDENTITY, LAST, delete_training, identity_in, restore_file
from paperlib.training.objective import LossModule, Objective, Regulariser, split_state, trained_parameters
from paperlib.training.recipe import Recipe
from paperlib.training.shares import average_statistics_, require_equal_shares
from paperlib.training.state import (
    drop_old_states,
    load_optimiser,
    optimiser_groups,
    optimiser_tensors,
    read_newest_state,
    write_state,
)

SECONDS_BETWEEN_STATES = 5.0
"""At least, because an epoch may be faster than writing a state. A kill costs this time, or an epoch, at most."""


class Training:
    """One training: its moving parts, and their state on disk."""

    def __init__(
        self, detector: nn.Module, dataset: ImageSet, recipe: Recipe, objective: Objective,
        regulariser: Regulariser | None, validation: ImageSet | None,
    ) -> None:  # fmt: skip
        self.detector, self.dataset, self.recipe = detector, dataset, recipe
        self.regulariser, self.validation = regulariser, validation
        self.objective: Any = objective  # what it may have beside a call is optional
        self.rows: list[dict[str, Any]] = []
        self.accelerator = _new_accelerator(recipe.precision)
        require_equal_shares(dataset, recipe, self.accelerator.num_processes)
        self.teacher: nn.Module | None = getattr(objective, "teacher", None)
        if start := getattr(objective, "start_training", None):
            start(recipe.epochs * count_batches(dataset, recipe))
        # Before the weights move to the device or change.
        deciding = self._describe_identity()
        group.require_same("training", deciding)
        self.identity = hashlib.sha256(json.dumps([*deciding.values()], sort_keys=True).encode()).hexdigest()
        for module in (detector, self.teacher, objective):
            if isinstance(module, nn.Module):
                module.to(self.accelerator.device).to(memory_format=torch.channels_last)
        loss_module = LossModule(detector, objective).to(self.accelerator.device)
        parameters = [*detector.parameters(), *trained_parameters(objective)]
        groups = _parameter_groups(parameters, recipe.weight_decay)
        optimiser = torch.optim.AdamW(groups, recipe.learning_rate, fused=True)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # a name of torch that Accelerate uses
            self.loss_module, self.optimiser = self.accelerator.prepare(loss_module, optimiser)
        # Equals the weights until the first step.
        self.average: AveragedModel | None = None
        if recipe.ema:
            self.average = AveragedModel(detector, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))

    def open(self, folder: Path, resume: bool) -> None:
        """Continue from the state in `folder`, or start from the beginning."""
        self.folder = folder
        self.state_written = time.monotonic()
        if not resume and group.is_first():
            delete_training(folder)
        if identity_in(folder) not in (None, self.identity):
            raise ValueError(f"{folder}: holds the state of another training; choose another folder or resume=False")
        files.write_json_atomically(folder / IDENTITY, {"identity": self.identity})
        if newest := read_newest_state(folder):
            self._load_state(*newest)

    def _load_state(self, state: Path, parts: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> None:
        if facts["identity"] != self.identity:
            raise ValueError(f"{state}: is of another training; choose another folder or resume=False")
        self.detector.load_state_dict(parts["detector"])
        load_optimiser(self.optimiser, parts["optimiser"], facts["groups"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        if of_objective := {**parts.get("objective", {}), **facts["objective"]}:
            self.objective.load_state_dict(of_objective)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        # History and best weights in the folder may be newer than the state, or damaged.
        for name in (HISTORY, BEST):
            if (state / name).exists():
                restore_file(state / name, self.folder / name)
        lines = (self.folder / HISTORY).read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Update the weights once per batch; return the mean of each loss over the batches."""
        sums: dict[str, Any] = {}
        count = count_batches(self.dataset, self.recipe)
        self.loss_module.train()
        with seeded_rng(derive_seed(self.recipe.seed, epoch, self.accelerator.process_index)):
            batches = draw_batches(self.dataset, self.recipe, epoch, self.accelerator)
            for number, (images, targets) in enumerate(batches):
                losses = self._train_step(images, targets, self.recipe.rate(epoch + number / count))
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value
                if is_due():
                    # Reading the loss waits for the accelerator, so it is read now and then, not at every batch.
                    report_part((number + 1) / count, loss=float(sum(sums.values())) / (number + 1))
        if end := getattr(self.regulariser, "after_epoch", None):
            for module in [self.detector, *([self.average.module] if self.average else [])]:
                end(module)
        average_statistics_(self.detector, self.accelerator)
        reduce: Any = self.accelerator.reduce
        return {name: float(reduce(total, "mean")) / count for name, total in sums.items()}

    def _train_step(self, images: Tensor, targets: Any, learning_rate: float) -> dict[str, Tensor]:
        """Update the weights by one batch; return its losses."""
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = learning_rate
        losses = self.loss_module(images, targets)
        self.accelerator.backward(torch.stack(list(losses.values())).sum())
        if self.regulariser:
            # In float16 the gradients are scaled, but the term of Eq. 4 is not.
            self.accelerator.unscale_gradients(self.optimiser)
            self.regulariser.before_step(self.detector, learning_rate)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.regulariser:
            self.regulariser.after_step(self.detector, learning_rate)
        if self.average:
            self.average.update_parameters(self.detector)
        return {name: loss.detach() for name, loss in losses.items()}

    def record_epoch(self, epoch: int, losses: dict[str, float], started: float) -> EpochReport:
        """Validate if it is time, add a row to the history, and return what `on_epoch` is told."""
        # Checked once per epoch, because a check per batch would wait for the accelerator.
        if not math.isfinite(sum(losses.values())):
            raise ValueError(f"epoch {epoch + 1}: the loss is not finite: {losses}; try a smaller learning rate")
        rate = self.optimiser.param_groups[0]["lr"]
        row = {"epoch": epoch + 1, "learning_rate": rate, "loss": sum(losses.values()), **losses}
        if self.regulariser:
            row["penalty"] = float(self.regulariser.penalty(self.detector))
        row |= gamma_statistics(self.detector)
        row |= getattr(self.objective, "epoch_values", dict)()
        if values := getattr(self.regulariser, "epoch_values", None):
            row |= values(self.detector)
        metrics = {}
        if self.validation is not None and self._is_validated(epoch):
            metrics = self._validate(self.validation)
        seconds = time.perf_counter() - started
        self.rows.append({**row, **metrics, "seconds": seconds})
        report_epoch(loss=row["loss"], **{name: metrics[name] for name in ("map50", "top1") if name in metrics})
        return EpochReport(epoch + 1, self.recipe.epochs, losses, metrics, rate, seconds)

    def _is_validated(self, epoch: int) -> bool:
        return epoch + 1 == self.recipe.epochs or (epoch + 1) % self.recipe.validate_every == 0

    def _validate(self, validation: ImageSet) -> dict[str, float]:
        """Evaluate the present weights, and save them if they are the best so far."""
        detector = self._convert_for_saving(self._current_detector())
        with group.sharing_items():
            metrics = evaluate(detector, validation, image_size=self.recipe.image_size)
        tracked = {name: getattr(metrics, name) for name in metrics.tracked}
        best = max((row.get(metrics.tracked[0], -1.0) for row in self.rows), default=-1.0)
        # Of equally good epochs the first is kept.
        if metrics.score > best and group.is_first():
            save_network(detector, self.folder / BEST)
        return tracked

    def _current_detector(self) -> nn.Module:
        """Return the detector, or the running mean of its weights with recalibrated statistics."""
        if self.average is None:
            return self.detector
        with self.accelerator.autocast():  # in the precision of the training
            recalibrate_batch_norm_(self.average.module, self.dataset, self.recipe.image_size)
        return self.average.module

    def _convert_for_saving(self, detector: nn.Module) -> nn.Module:
        convert = getattr(self.regulariser, "convert_for_saving", None)
        return convert(detector) if convert else detector

    def require_same_weights(self, epochs: int) -> None:
        """Check that after so many epochs all processes have the same weights, before any of these are kept."""
        if self.accelerator.num_processes > 1:
            parts = {"finished epochs": len(self.rows), "weights": module_digest(self.detector)}
            group.require_same(f"training, after epoch {epochs}", parts)

    def keep_epoch(self, report: EpochReport, on_epoch: OnEpoch | None) -> None:
        """Write what the last epoch has changed, and tell of it."""
        self.save_state()
        if on_epoch:
            tell_once(on_epoch, report, self.folder)

    def save_state(self) -> None:
        """Write the history and, if it is time, the state, which replaces the one before only when it is complete."""
        done = len(self.rows)
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        files.write_text_atomically(self.folder / HISTORY, text)
        if done < self.recipe.epochs and time.monotonic() - self.state_written < SECONDS_BETWEEN_STATES:
            return
        parts = {"detector": self.detector.state_dict(), "optimiser": optimiser_tensors(self.optimiser)}
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        tensors, values = split_state(self.objective)
        if tensors:
            parts["objective"] = tensors
        scaler = self.accelerator.scaler
        facts = {
            "identity": self.identity,
            "groups": optimiser_groups(self.optimiser),
            "scaler": scaler.state_dict() if scaler else None,
            "objective": values,
        }
        copied = [path for path in (self.folder / HISTORY, self.folder / BEST) if path.exists()]
        write_state(self.folder / f"state-{done:05d}", parts, facts, copied)
        drop_old_states(self.folder)
        self.state_written = time.monotonic()

    def finish(self) -> None:
        """Leave the final weights in the detector and on disk."""
        if self.average is not None:
            # The last epoch is always validated if there is a validation set, which recalibrated the average.
            final = self._current_detector() if self.validation is None else self.average.module
            self.detector.load_state_dict(final.state_dict())
        self.detector.eval()
        self.require_same_weights(self.recipe.epochs)
        group.let_first(lambda: save_network(self._convert_for_saving(self.detector), self.folder / LAST))
        if self.accelerator.num_processes > 1:
            # It collects garbage, which takes up to a second. Only data parallelism leaves some that is large.
            self.accelerator.free_memory()

    def _describe_identity(self) -> dict[str, Any]:
        """Return all that decides the final weights, so that two trainings are never confused."""
        tensors, values = split_state(self.objective)
        parts_of_code = [part for part in (self.detector, self.objective, self.regulariser) if part]
        modules = {part.__module__ for part in parts_of_code if part.__module__.startswith("paperlib.")}
        parts = {
            "recipe": self.recipe.model_dump(),
            "data": self.dataset.digest,
            "validation data": self.validation.digest if self.validation else None,
            "objective": getattr(self.objective, "__name__", type(self.objective).__name__),
            "its settings": getattr(self.objective, "describe", dict)(),
            "its state": [tensors_digest(tensors), values],
            "regulariser": self.regulariser.describe() if self.regulariser else None,
            "initial weights": module_digest(self.detector),
            "teacher": module_digest(self.teacher) if self.teacher else None,
            "code": code_digest(__name__, *sorted(modules)),
            "torch, threads or device": [torch.__version__, torch.get_num_threads(), self.accelerator.device.type],
        }
        processes = self.accelerator.num_processes
        return parts | ({"processes": processes} if processes > 1 else {})


def _new_accelerator(precision: str) -> Accelerator:
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision", precision) != precision:
        # Accelerate would keep the precision of the first training in a process for all that follow.
        AcceleratorState._reset_state()
    # Statistics of batch normalisation are averaged once per epoch, not copied from the first process at each step.
    return Accelerator(
        mixed_precision=precision, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
    )


def _parameter_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Group the parameters so that only kernels decay: on gamma only the term of Eq. 4 acts."""
    kernels = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
