"""The training loop (Section 4.3), on Accelerate; the objective and the regulariser are arguments.

A training is a function of its starting weights, data, recipe, objective and regulariser. Everything random in epoch
e is drawn from (seed, e), and the state is written between epochs, so a run that is killed at any moment and started
again ends with the same weights, bit for bit, as one that was not interrupted (same machine and thread count).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
from torch import nn

from paperlib import paths
from paperlib.data.interface import ImageSet
from paperlib.network_files import load_network
from paperlib.pairs import find_partners
from paperlib.progress import group
from paperlib.progress.report import track_items
from paperlib.structure import copy_network
from paperlib.training.callback import OnEpoch
from paperlib.training.folder import BEST
from paperlib.training.objective import Objective, Regulariser, own_loss
from paperlib.training.recipe import Recipe
from paperlib.training.running import Training


@dataclass(frozen=True)
class History:
    """The result of a training.

    Attributes:
        epochs: one row per epoch: losses, learning rate, gamma statistics, and metrics where it was validated.
        folder: holds `history.jsonl`, `last.safetensors` and, with a validation set, `best.safetensors`.
        network: the one that was trained, with the weights of the last epoch.
    """

    epochs: pd.DataFrame
    folder: Path
    network: nn.Module = field(repr=False, compare=False)

    def best(self) -> nn.Module:
        """Load the network of the epoch with the best validation: the highest mAP50, or top-1 accuracy of scenes."""
        own = not hasattr(self.network, "build_arguments")
        return load_network(self.folder / BEST, build=partial(copy_network, self.network) if own else None)


def fit(
    detector: nn.Module,
    dataset: ImageSet,
    recipe: Recipe,
    *,
    objective: Objective | None = None,
    regulariser: Regulariser | None = None,
    resume: bool = True,
    validation: ImageSet | None = None,
    folder: Path | str | None = None,
    on_epoch: OnEpoch | None = None,
) -> History:
    """Train a network in place; afterwards it holds the last epoch's weights (their running mean with `ema`).

    Under `accelerate launch` or `torchrun` each process takes an equal share of every batch; all end with the same
    weights, and the first writes the files.

    Args:
        detector: a detector or a classifier, changed in place; it is in evaluation mode afterwards.
        dataset: the training images, with boxes or of scenes; those left over after the last full batch of an epoch
            are not used in it.
        recipe: how to train.
        objective: computes a dict of losses from `(detector, images, targets)`; the detector's own loss by default.
        regulariser: for instance `paperlib.pruning.Sparsity` (Eq. 4).
        resume: continue from the state that a killed run of the same training left in `folder`; else start over.
        validation: evaluated every `recipe.validate_every` epochs; selects `best.safetensors`.
        folder: where state and history are written, by one process at a time; by default a folder in the store named
            after the training. Two objectives without `describe()` cannot be distinguished, so with the default folder
            these always start over.
        on_epoch: called with an `EpochReport` after every epoch, on the main process; what it raises ends the training.
            It is told an epoch once, also if the training is interrupted and continues.

    Raises:
        ValueError: there is no image, `folder` holds another training, a loss is not finite, the detector has
            partners that the regulariser does not fuse for saving, a batch has no equal shares for all processes, or
            these differ in code, data or anything else that decides the weights.
        LostProcessError: another process has ended.
    """
    if len(dataset) == 0:
        raise ValueError(f"{dataset.name}: no images, nothing to train on")
    if not hasattr(regulariser, "convert_for_saving") and (name := next(iter(find_partners(detector)), None)):
        raise ValueError(f"{name} has a partner; train an extended network with regulariser=pl.Partnership()")
    resume = resume and (objective is None or hasattr(objective, "describe") or folder is not None)
    group.join_group()
    with group.naming_lost_processes():
        training = Training(detector, dataset, recipe, objective or own_loss, regulariser, validation)
        place = Path(folder) if folder else paths.store_root() / "fit" / training.identity[:16]
        # The first process puts the folder in order before the others read it.
        group.do_in_turn(partial(training.open, place, resume))
        done = len(training.rows)
        training.require_same_weights(done)
        for epoch in track_items(range(done, recipe.epochs), "epoch", first=done):
            started = time.perf_counter()
            losses = training.train_epoch(epoch)
            report = training.record_epoch(epoch, losses, started)
            training.require_same_weights(epoch + 1)
            group.let_first(partial(training.keep_epoch, report, on_epoch))
        training.finish()
        return History(pd.DataFrame(training.rows), place, detector)
