"""Try a recipe: train with a profile and some changed settings, and evaluate outside the test split.

    python benchmarks/recipe.py --set epochs=10 image_size=416 batch_size=4 mosaic=0.0 --threads 1
    python benchmarks/recipe.py --set epochs=10 sparsity=0.01 --sparse --ratios 0.3 0.4 0.5 --threads 1
    python benchmarks/recipe.py --fold 0 --set folds=5 --sparse --chain 0.6 0.7 --threads 1

A third of the training images are moved to the validation images, which alone are too few to tell two recipes apart:
for NWPU VHR-10, 305 images are for training and 208 for evaluation. `--sparse` trains with Eq. 4. The detector is then
pruned at each of `--ratios` and evaluated without fine-tuning. `--chain` prunes it in iterations, as `03_components`
does, and fine-tunes the student. Finished steps are kept in the store, so an interrupted trial continues.
"""

from __future__ import annotations

import argparse
from typing import Any, cast

import pandas as pd
import torch
import yaml

from paperlib.costs import cost
from paperlib.data import Dataset
from paperlib.experiments.case import Case, Splits
from paperlib.experiments.parameters import load_profile, profile_path
from paperlib.experiments.settings import Settings
from paperlib.progress.processes import keep_memory
from paperlib.store import provenance
from paperlib.typed_options import check_values
from paperlib.workbench.algorithm_1 import prune_to_ratios
from paperlib.workbench.steps import Model, Workbench

NOTEBOOK = "03_components"
JUDGING = 1 / 3
"""Share of the training images that judge."""


def settings(profile: str, changes: list[str]) -> Settings:
    """Return the settings of Table 1 at a scale, with `key=value` changes."""
    usual = cast(Settings, load_profile(NOTEBOOK, profile_path(NOTEBOOK, profile)))
    if wrong := [each for each in changes if "=" not in each]:
        raise SystemExit(f"--set: expected KEY=VALUE, found {wrong[0]!r}")
    other: dict[str, Any] = {key: yaml.safe_load(value) for key, value in (each.split("=", 1) for each in changes)}
    try:
        return check_values(type(usual), "--set", **usual.model_dump() | other)
    except ValueError as error:
        raise SystemExit(str(error)) from None


def splits(name: str) -> Splits:
    """Return the splits of a data set with some training images moved to validation."""
    made = Splits(name)
    train, few = made.train, made.val
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    count = round(JUDGING * len(train))
    judging, learning = sorted(order[:count]), sorted(order[count:])
    made.train = Dataset(f"{name}/less", train.classes, [train.records[i] for i in learning])
    made.val = Dataset(f"{name}/more", train.classes, [*(train.records[i] for i in judging), *few.records])
    return made


def judged(bench: Workbench, name: str, model: Model) -> dict[str, object]:
    """Evaluate a model and return a row of the table."""
    found, price = bench.evaluate(model, "val"), cost(model.detector(), bench.recipe.image_size)
    shares = {kind: round(100 * value, 1) for kind, value in found.per_class.items()}
    return {"model": name, "MB": price.size_mb, "mAP50": found.map50, "mAP": found.map, **shares}


def fine_tune_chain(bench: Workbench, teacher: Model, ratios: list[float]) -> list[dict[str, object]]:
    """Prune in iterations, fine-tune the student, and return a row per model, before and after its fine-tuning."""
    pruned = prune_to_ratios(bench, teacher, ratios)
    rows = []
    for ratio, model in zip(ratios, pruned, strict=True):
        student = model is pruned[-1]
        tuned = bench.fine_tune(model, f"fine-tune at {ratio:.0%}", sparse=not student)
        rows.append(judged(bench, f"{ratio:.0%} pruned", model))
        rows.append(judged(bench, f"{ratio:.0%} {'student' if student else 'assistant'}", tuned))
    return rows


def main() -> None:
    """Run one trial."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that differ")
    parser.add_argument("--sparse", action="store_true", help="train with Eq. 4's term")
    parser.add_argument("--restart", action="store_true", help="fine-tune the trained detector, uncut, and evaluate")
    parser.add_argument("--ratios", nargs="*", type=float, default=[], help="prune at each ratio, and evaluate")
    parser.add_argument("--chain", nargs="*", type=float, default=[], help="prune in iterations, and fine-tune")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fold", type=int, help="evaluate on the validation split of this fold, and take nothing away")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    keep_memory()
    torch.set_num_threads(chosen.threads)
    tried = settings(chosen.profile, chosen.set)
    data = splits(tried.dataset) if chosen.fold is None else Splits(tried.dataset, chosen.fold)
    case = Case("", tried, data)
    print(f"{provenance.describe_machine()}; {' '.join(chosen.set)}, seed {chosen.seed}: "
          f"{len(case.splits.train)} training images, {len(case.splits.val)} evaluation images")  # fmt: skip
    bench = case.make_workbench(chosen.seed)
    model = (bench.train_sparse if chosen.sparse else bench.train)(bench.build_detector())
    rows = [judged(bench, "sparse" if chosen.sparse else "trained", model)]
    if chosen.restart:
        rows.append(judged(bench, "fine-tuned", bench.fine_tune(model)))
    rows += [judged(bench, f"cut {ratio:.0%}", bench.prune(model, ratio)) for ratio in chosen.ratios]
    rows += fine_tune_chain(bench, model, chosen.chain) if chosen.chain else []
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3g"))
    print(f"{model.history()['seconds'].sum() / 60:.1f} min of training, on {chosen.threads} threads")


if __name__ == "__main__":
    main()
