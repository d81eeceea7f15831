"""Does every detector learn, and still after half of its channels are gone? On toy-aerial, from scratch.

    python benchmarks/learning.py --threads 1

For each detector at its quick version: trained with Eq. 4's term, cut by half, fine-tuned for a fifth as many epochs.
After each: mAP at IoU 0.5 on the validation and the test split, and the share of scale factors below 0.01 and the
seconds of the training that led there, validation included. Finished steps are kept in the store, so an interrupted
run continues.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from math import ceil

import pandas as pd
import torch

import paperlib as pl
from paperlib import provenance
from paperlib.choices import Blueprint
from paperlib.costs import cost
from paperlib.detectors import usual_anchors
from paperlib.pruning import Sparsity
from paperlib.training import HISTORY
from paperlib.workbench import Model, Workbench

ANCHOR_SIDE = 320
"""Side of the images, in pixels, for whose objects the usual anchors are right."""
RATIO = 0.5


@dataclass(frozen=True)
class Quick:
    """A detector's quick version and how long it trains."""

    width: float
    depth: float
    epochs: int
    learning_rate: float
    sparsity: float


QUICK = {
    "yolov3": Quick(0.125, 0.25, 14, 1e-2, 3e-3),
    "yolov3-spp": Quick(0.125, 0.25, 14, 1e-2, 2e-3),
    "yolov4": Quick(0.125, 0.1, 10, 1e-2, 1e-3),
    "yolov4-tiny": Quick(0.25, 1.0, 16, 2e-2, 3e-3),
    "centernet-resnet50": Quick(0.25, 0.1, 20, 5e-3, 3e-3),
    "faster-rcnn-resnet101": Quick(0.125, 0.1, 10, 1e-2, 5e-4),
}


def workbench(name: str, quick: Quick, side: int, seed: int) -> Workbench:
    """The steps for one detector at its quick version."""
    recipe = pl.Recipe(
        epochs=quick.epochs, image_size=side, learning_rate=quick.learning_rate, schedule="cosine", warmup_epochs=0.5,
        ema=0.97, zoom=1.1, shift=0.05, colour=0.1, validate_every=quick.epochs, seed=seed,
    )  # fmt: skip
    shorter = {"epochs": ceil(quick.epochs / 5), "learning_rate": quick.learning_rate / 2, "warmup_epochs": 0.0}
    return Workbench(
        *(pl.load_dataset("toy-aerial", split) for split in ("train", "val", "test")),
        Blueprint(name, quick.width, quick.depth, usual_anchors(name, scale=side / ANCHOR_SIDE)),
        recipe=recipe,
        fine_tuning=recipe.model_copy(update=shorter),
        sparsity=Sparsity(quick.sparsity),
    )


def learn(name: str, bench: Workbench) -> list[dict[str, object]]:
    """One row for each model: trained, cut, fine-tuned."""
    trained = bench.train_sparse(bench.new())
    pruned = bench.prune(trained, RATIO)
    models = {"trained": trained, f"pruned {RATIO:.0%}": pruned, "fine-tuned": bench.fine_tune(pruned)}
    return [{"detector": name, "model": label, **_measured(bench, model)} for label, model in models.items()]


def _measured(bench: Workbench, model: Model) -> dict[str, object]:
    price, history = cost(model.detector(), bench.recipe.image_size), model.folder / HISTORY
    trained = model.history() if history.exists() else None
    return {
        "MB": price.size_mb,
        "GMACs": price.gmacs,
        "seconds": None if trained is None else trained["seconds"].sum(),
        "gammas below 0.01": None if trained is None else trained["gamma_below_0.01"].iloc[-1],
        "val mAP50": bench.evaluate(model, "val").map50,
        "mAP50": bench.evaluate(model, "test").map50,
    }


def main() -> None:
    """Train what is asked for, a detector at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detectors", nargs="+", choices=QUICK, default=list(QUICK))
    parser.add_argument("--image-size", type=int, default=160, help="side in pixels")
    parser.add_argument("--epochs", type=int, help="train each for so many, rather than as long as it needs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"{provenance.machine()}, {chosen.image_size} px, seed {chosen.seed}")
    rows = []
    for name in chosen.detectors:
        quick = replace(QUICK[name], epochs=chosen.epochs or QUICK[name].epochs)
        rows += learn(name, workbench(name, quick, chosen.image_size, chosen.seed))
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3g"))


if __name__ == "__main__":
    main()
