"""Run every profile of the paper scale without a GPU, on a few images, and estimate what the full runs would cost.

    python benchmarks/paper.py --threads 2
    python benchmarks/paper.py --threads 2 01_scale_factor 03_components

Papermill runs each notebook with its profile of the `paper` scale: every case, 800 x 800 pixels, mixed precision, and
all steps (training, pruning, distillation, evaluation and timing). These settings are smaller: one seed; four training
images in batches of two, so that an epoch has two steps; one epoch after each pruning, two otherwise; and the data sets
(see `few.py`). Finished notebooks and steps stay in `--folder`, so an interrupted run continues.

Then the cost is estimated. For each training, the multiply-accumulates at full length are counted: three passes of the
student (the backward pass counts twice) and one pass of a teacher, on all images, over all epochs and seeds. The speed
of this machine is measured on training steps of the unpruned detector; the speed of a GPU is assumed. A training that
several notebooks share is counted in the first, for the largest number of seeds among them.

The estimate is rough. After two epochs on four images the scale factors are nearly equal, so the layers are not pruned
as in a full run. A pruned network also uses a machine less efficiently than the unpruned one that is measured. Not
counted: reading and augmenting images, validation, evaluation (with the edge cases of `05_datasets`), Taylor's
criterion, and the timing in `08_cpu_timing`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from few import few_images

import paperlib as pl
from paperlib import files, paths
from paperlib.data import registry
from paperlib.data.tiles import Tiling
from paperlib.experiments.case import Splits
from paperlib.experiments.parameters import NOTEBOOKS, load_profile, profile_path
from paperlib.experiments.settings import Settings
from paperlib.store import provenance
from paperlib.store.results import METRICS
from paperlib.workbench.lineage import step_folder, steps_behind
from paperlib.workbench.steps import DETECTOR

SMALLER = {"epochs": 2, "fine_tune_epochs": 1, "batch_size": 2, "seeds": [0]}
COUNTS = {"train": 4, "val": 2, "test": 4}
TRAIN = 0.7
"""Share of the images that a split of RSOD or DOTA learns from; of NWPU VHR-10 the split itself is here."""
CROPS, CROPS_WITH_OBJECTS, CROPS_APART = 21_046, 13_557, 1024 - 200
"""Of DOTA's images for training and validation, cut into 1024 pixels with an overlap of 200, as others found:
https://github.com/csuhan/s2anet/issues/74. The ten samples at hand are smaller than most."""
TRAININGS = ("train", "distil")
GPU = 10_000.0
"""GMACs a second that a GPU is taken to do in training: 20 TFLOP/s, a fiftieth of an H100's peak in bfloat16."""


def run(notebook: str, folder: Path, threads: int) -> Path:
    """Run a notebook on a few images, unless it is done, and return the folder of its results.

    Raises:
        CalledProcessError: it failed.
    """
    root, results = folder / "root", folder / "results" / "paper" / notebook
    results.mkdir(parents=True, exist_ok=True)
    moved = {"ROOT": root, "DATA": root / "data", "STORE": folder / "store", "RESULTS": folder / "results"}
    environment = os.environ | {f"PAPERLIB_{name}": str(place) for name, place in moved.items()}
    command = [sys.executable, "-m", "papermill", "--log-output", "-f", str(profile_path(notebook, "paper"))]
    for name, value in (SMALLER | {"threads": threads}).items():
        command += ["-y", f"{name}: {value}"]
    if not (results / METRICS).exists():
        executed = f"{notebook}.ipynb"
        subprocess.run([*command, root / "notebooks" / executed, results / executed], env=environment, check=True)
    return results


def trainings(results: Path, store: Path) -> Iterator[dict[str, Any]]:
    """Return the training steps of a notebook, each with detector and multiply-accumulates of student and teacher."""
    made = [step_folder(store, digest) for digest in files.read_json(results / "provenance.json")["steps"]]
    for folder, step in steps_behind(made):
        if step["kind"] in TRAININGS:
            student, *teacher = (_gmacs(step_folder(store, parent)) for parent in step["parents"])
            yield step | {"name": folder.name, "student": student, "teacher": teacher[0] if teacher else None}


@lru_cache
def _gmacs(folder: Path) -> tuple[str, float]:
    """Return the name of a stored detector and its multiply-accumulates / 10^9 at 800 pixels."""
    detector = pl.load_detector(folder / DETECTOR)
    return detector.build_arguments["name"], pl.cost(detector).gmacs


def full_sets(root: Path) -> dict[str, int]:
    """Return the number of training images of each full data set, by the data digest of the runs on a few images."""
    rsod = TRAIN * (registry.find_entry("rsod").images or 0)
    full = {"vhr10": len(Splits("vhr10").train), "rsod": rsod, "dota": TRAIN * tiles_of_dota(Tiling())}
    usual = {name: os.environ.get(name) for name in ("PAPERLIB_ROOT", "PAPERLIB_DATA")}
    os.environ |= {"PAPERLIB_ROOT": str(root), "PAPERLIB_DATA": str(root / "data")}
    digests = {name: Splits(name).collect_digests() for name in full}
    for name, value in usual.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    pairs = {name: (digests[name]["train"] + digests[name]["val"]).encode() for name in full}
    return {hashlib.sha256(pair).hexdigest(): round(full[name]) for name, pair in pairs.items()}


def tiles_of_dota(tiling: Tiling) -> float:
    """Estimate the number of DOTA training tiles in both annotated splits; most empty tiles are left out."""
    more = (CROPS_APART / (tiling.side - tiling.overlap)) ** 2
    return more * (CROPS_WITH_OBJECTS + tiling.empty * (CROPS - CROPS_WITH_OBJECTS))


@lru_cache
def rate(detector: str, precision: str, rounds: int) -> float:
    """Measure this machine's GMACs per second in training steps of an unpruned detector, on two 800-pixel images."""
    network = pl.build_detector(detector, 10).train()
    optimiser = torch.optim.AdamW(network.parameters())
    images = torch.rand(SMALLER["batch_size"], 3, 800, 800).contiguous(memory_format=torch.channels_last)
    targets = [{"boxes": torch.tensor([[100.0, 100, 200, 180]]), "labels": torch.tensor([1])} for _ in images]
    seconds = []
    for _ in range(1 + rounds):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = network(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - started)
    return 3 * len(images) * pl.cost(network).gmacs / statistics.median(seconds[1:])


def estimate(
    made: dict[str, list[dict[str, Any]]], images: dict[str, int], rates: Callable[[str, str], float]
) -> Iterator[dict[str, Any]]:
    """Return a table row for each notebook: how many trainings it adds, and what they cost at full length.

    Args:
        made: the training steps of each notebook on a few images (see `trainings`).
        images: the number of training images of the full data set, by the data digest of a step.
        rates: GMACs per second of a detector at a precision.
    """
    profiles = {notebook: cast(Settings, load_profile(notebook, profile_path(notebook, "paper"))) for notebook in made}
    seeds, seen = Counter(), set()
    for notebook, steps in made.items():
        seeds |= dict.fromkeys((step["name"] for step in steps), len(profiles[notebook].seeds))
    for notebook, steps in made.items():
        settings, row = profiles[notebook], Counter[str]()
        for step in (step for step in steps if step["name"] not in seen):
            long = step["settings"]["recipe"]["epochs"] == SMALLER["epochs"]
            epochs = settings.epochs if long else settings.fine_tune_epochs
            name, student = step["student"]
            work = 3 * student + (step["teacher"][1] if step["teacher"] else 0.0)
            gmacs = seeds[step["name"]] * epochs * images[step["data"]] * work
            row += {"trainings": seeds[step["name"]], "PMACs": gmacs / 1e6, "h": gmacs / GPU / 3600}
            row += {"days here": gmacs / rates(name, settings.precision) / 86400}
        seen |= {step["name"] for step in steps}
        told = {name: row[name] for name in ("trainings", "PMACs", "days here")}
        yield {"notebook": notebook, **told, f"h at {GPU / 500:g} TFLOP/s": row["h"]}


def main() -> None:
    """Run the notebooks, and print what each adds to the cost of the notebooks above it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    everything = [name for name in NOTEBOOKS if name != "99_claims"]
    parser.add_argument("notebooks", nargs="*", default=everything)
    parser.add_argument("--folder", type=Path, default=paths.store_root() / "paper")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    folder = chosen.folder.absolute()
    if not (folder / "root").exists():
        unfinished = folder / "root.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        few_images(unfinished, COUNTS)
        unfinished.rename(folder / "root")
    print(provenance.describe_machine())
    images, made, minutes = full_sets(folder / "root"), {}, {}
    for notebook in chosen.notebooks:
        results = run(notebook, folder, chosen.threads)
        made[notebook] = list(trainings(results, folder / "store"))
        minutes[notebook] = files.read_json(results / "provenance.json")["wall_seconds"] / 60
    rows = pd.DataFrame(estimate(made, images, partial(rate, rounds=chosen.rounds)))
    rows.insert(1, "min on few images", [minutes[name] for name in rows["notebook"]])
    print(rows.to_markdown(index=False, floatfmt=".3g"))


if __name__ == "__main__":
    main()
