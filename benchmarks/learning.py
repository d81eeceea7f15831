"""Does every detector learn, and still after half of its channels are gone? On toy-aerial, from scratch.

    python benchmarks/learning.py --threads 2

For each detector at its quick width: trained, cut by half, fine-tuned for half as many epochs; mAP at IoU 0.5 on the
test split after each, and the seconds that the training took, validation included. Finished steps are kept in the
store, so an interrupted run continues.
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


QUICK = {
    "yolov3": Quick(0.125, 0.25, 40, 1e-2),
    "yolov3-spp": Quick(0.125, 0.25, 40, 1e-2),
    "yolov4": Quick(0.125, 0.1, 48, 1e-2),
    "yolov4-tiny": Quick(0.25, 1.0, 30, 1e-2),
    "centernet-resnet50": Quick(0.25, 0.1, 80, 5e-3),
    "faster-rcnn-resnet101": Quick(0.125, 0.1, 24, 1e-2),
}


def workbench(name: str, quick: Quick, side: int, seed: int) -> Workbench:
    """The steps for one detector at its quick version."""
    anchors, scale = usual_anchors(name), side / ANCHOR_SIDE
    scaled = anchors and tuple((w * scale, h * scale) for w, h in anchors)
    recipe = pl.Recipe(
        epochs=quick.epochs, image_size=side, learning_rate=quick.learning_rate, schedule="cosine", warmup_epochs=1.0,
        ema=0.98, zoom=1.1, shift=0.05, colour=0.1, validate_every=20, seed=seed,
    )  # fmt: skip
    shorter = {"epochs": ceil(quick.epochs / 2), "learning_rate": quick.learning_rate / 2, "warmup_epochs": 0.0}
    return Workbench(
        *(pl.load_dataset("toy-aerial", split) for split in ("train", "val", "test")),
        Blueprint(name, quick.width, quick.depth, scaled),
        recipe=recipe,
        fine_tuning=recipe.model_copy(update=shorter),
        sparsity=Sparsity(5e-3),
    )


def learn(name: str, bench: Workbench) -> list[dict[str, object]]:
    """One row for each model: trained, cut, fine-tuned."""
    trained = bench.train(bench.new())
    pruned = bench.prune(trained, RATIO)
    models = {"trained": trained, f"pruned {RATIO:.0%}": pruned, "fine-tuned": bench.fine_tune(pruned)}
    return [{"detector": name, "model": label, **_measured(bench, model)} for label, model in models.items()]


def _measured(bench: Workbench, model: Model) -> dict[str, object]:
    price, metrics = cost(model.detector(), bench.recipe.image_size), bench.evaluate(model, "test")
    seconds = model.history()["seconds"].sum() if (model.folder / "history.jsonl").exists() else None
    return {"MB": price.size_mb, "GMACs": price.gmacs, "seconds": seconds, "mAP50": metrics.map50}


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
