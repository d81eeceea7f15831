"""Check that every detector learns toy-aerial from scratch, also after half of its channels are removed.

    python benchmarks/learning.py --threads 1

Each detector has the settings of the quick notebooks, but is trained with Eq. 4 for as long as it needs. Then half of
its channels are removed, and it is fine-tuned for a fifth as many epochs. After each step the table has the mAP at IoU
0.5 on the validation and the test split, the fraction of scale factors below 0.01, and the seconds of the training,
including validation. Finished steps are kept in the store, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
from math import ceil
from typing import Any

import pandas as pd
import torch

from paperlib.costs import cost
from paperlib.experiments.case import Case, Splits
from paperlib.experiments.parameters import QUICK
from paperlib.experiments.settings import Settings
from paperlib.store import provenance
from paperlib.training.folder import HISTORY
from paperlib.workbench.steps import Model, Workbench

RATIO = 0.5
USUAL = Settings()
"""What the quick notebooks share."""
LONGER: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("yolov3", "yolov3-spp"), {"depth": 0.25, "epochs": 40, "batch_size": 8, "sparsity": 1e-3}),
    "yolov4": {
        "epochs": 30, "batch_size": 8, "learning_rate": 5e-3, "fine_tune_learning_rate": 5e-3, "sparsity": 1e-3,
    },
    "yolov4-tiny": {"epochs": 30, "sparsity": 3e-3},
    "centernet-resnet50": {"epochs": 80, "batch_size": 8, "sparsity": 1e-3},
    "faster-rcnn-resnet101": {"epochs": 20, "sparsity": 5e-4},
}  # fmt: skip
"""How each differs from the quick notebooks."""


def workbench(name: str, seed: int, changes: dict[str, Any]) -> Workbench:
    """Return the workbench of one detector."""
    chosen = {**QUICK.get(name, {}), **LONGER[name], **changes}
    chosen |= {"validate_every": chosen["epochs"], "fine_tune_epochs": ceil(chosen["epochs"] / 5)}
    settings = Settings(detector=name, **chosen)
    return Case("", settings, Splits(settings.dataset)).make_workbench(seed)


def learn(name: str, bench: Workbench) -> list[dict[str, object]]:
    """Return one row for each model: trained, pruned, fine-tuned."""
    trained = bench.train_sparse(bench.build_detector())
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
    """Train the requested detectors, one at a time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--detectors", nargs="+", choices=LONGER, default=list(LONGER))
    parser.add_argument("--image-size", type=int, default=USUAL.image_size, help="side in pixels")
    parser.add_argument("--epochs", type=int, help="epochs of every detector (by default as many as each needs)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"{provenance.describe_machine()}, {chosen.image_size} px, seed {chosen.seed}")
    scale = USUAL.anchor_scale * chosen.image_size / USUAL.image_size
    changes = {"image_size": chosen.image_size, "anchor_scale": scale}
    changes |= {"epochs": chosen.epochs} if chosen.epochs else {}
    rows = []
    for name in chosen.detectors:
        rows += learn(name, workbench(name, chosen.seed, changes))
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3g"))


if __name__ == "__main__":
    main()
