"""Estimate how long the paper scale takes on 1, 4, 16 and 64 GPUs, from the jobs of a batch; nothing is trained.

    python benchmarks/paper.py
    python benchmarks/paper.py --measure yolov3          with the throughput of the GPU or processor at hand

The jobs are those of `paperlib reproduce --profile paper --executor slurm` (`paperlib.experiments.jobs`): every
experiment for each case and seed, and what it waits for. They are planned on a few images (see `few.py`), and their
multiply-accumulates are then scaled to the full data sets. The time of a job is its multiply-accumulates divided by the
throughput of one GPU, which is an assumption unless it is measured.

The jobs are then handed out as Snakemake does it: whenever a GPU is free, it takes the longest job that waits for no
other. No number of GPUs can finish before the *critical path*, the longest chain of jobs in which each waits for the
one before.

The estimate is rough. Networks are counted as if nothing were pruned, which makes it too long, and without partners,
which makes `10_partner_learning` too short. Not counted: Algorithm 1 of `00_start_here` beyond its first step, reading
and augmenting images, validation, evaluation, the notebooks themselves, and the timing in `08_cpu_timing`.
"""

from __future__ import annotations

import argparse
import heapq
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pandas as pd
import torch
from few import COUNTS, SCENES, few_images

import paperlib as pl
from paperlib.cli.executors import GPU_GMACS
from paperlib.data import registry
from paperlib.data.folds import stored_fold
from paperlib.data.layouts import stored_split
from paperlib.data.tiles import Tiling
from paperlib.experiments.jobs import EXPERIMENTS, PASSES, PlannedJob, plan_jobs
from paperlib.experiments.parameters import load_profile, profile_path
from paperlib.experiments.settings import Settings
from paperlib.experiments.study import Study
from paperlib.store import provenance

GPUS = (1, 4, 16, 64)
TRAIN = 0.7
"""Share of the images that a split of RSOD or DOTA learns from; of the others the split itself is here."""
CROPS, CROPS_WITH_OBJECTS, CROPS_APART = 21_046, 13_557, 1024 - 200
"""Of DOTA's images for training and validation, cut into 1024 pixels with an overlap of 200, as others found:
https://github.com/csuhan/s2anet/issues/74. The ten samples at hand are smaller than most."""


def find_critical_path(hours: Mapping[str, float], after: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the longest chain of jobs, first to last.

    Args:
        hours: of each job; those that a job waits for stand before it.
        after: the jobs that each waits for.
    """
    ends: dict[str, float] = {}
    before: dict[str, str | None] = {}
    for name, length in hours.items():
        before[name] = max(after[name], key=ends.__getitem__, default=None)
        ends[name] = length + ends.get(before[name] or "", 0.0)
    chain, name = [], max(ends, key=ends.__getitem__, default=None)
    while name is not None:
        chain.append(name)
        name = before[name]
    return chain[::-1]


def simulate(hours: Mapping[str, float], after: Mapping[str, Sequence[str]], gpus: int) -> float:
    """Return after how many hours all jobs are done, if a free GPU takes the longest job that waits for no other."""
    waiting = {name: set(after[name]) for name in hours}
    running: list[tuple[float, str]] = []
    now = 0.0
    while waiting or running:
        ready = sorted((name for name, missing in waiting.items() if not missing), key=lambda name: -hours[name])
        for name in ready[: gpus - len(running)]:
            heapq.heappush(running, (now + hours[name], name))
            del waiting[name]
        now, done = heapq.heappop(running)
        for missing in waiting.values():
            missing.discard(done)
    return now


def count_full_sets() -> dict[str, int]:
    """Return the number of training images of each full data set."""
    rsod = TRAIN * (registry.find_entry("rsod").images or 0)
    return {
        "vhr10": len(stored_fold("vhr10", 0)["train"]),
        "rsod": round(rsod),
        "dota": round(TRAIN * estimate_dota_tiles(Tiling())),
        "ucmerced": len(stored_split(SCENES)["train"]),
    }


def estimate_dota_tiles(tiling: Tiling) -> float:
    """Estimate the number of DOTA training tiles in both annotated splits; most empty tiles are left out."""
    more = (CROPS_APART / (tiling.side - tiling.overlap)) ** 2
    return more * (CROPS_WITH_OBJECTS + tiling.empty * (CROPS - CROPS_WITH_OBJECTS))


def plan_paper_scale(notebooks: Sequence[str]) -> list[tuple[PlannedJob, float]]:
    """Return the jobs of notebooks at the paper scale, each with its GMACs on the full data sets."""
    full = count_full_sets()
    with tempfile.TemporaryDirectory(prefix="paperlib-paper-") as folder:
        few_images(Path(folder), COUNTS)
        os.environ |= {"PAPERLIB_ROOT": folder, "PAPERLIB_DATA": str(Path(folder, "data"))}
        # A fold holds all images, not a few. The number of training images is the same in all folds.
        profiles = {name: cast(Settings, load_profile(name, profile_path(name, "paper"))) for name in notebooks}
        chosen = {name: profile.model_copy(update={"folds": None}) for name, profile in profiles.items()}
        studies = {name: Study(name, settings) for name, settings in chosen.items()}
        jobs = []
        for job in plan_jobs(chosen):
            case = studies[job.notebook].cases[job.case]
            jobs.append((job, job.gmacs * full[case.settings.dataset] / len(case.splits_of(job.seed).train)))
        return jobs


def measure_throughput(detector: str, rounds: int) -> float:
    """Measure the GMACs per second of training steps in bfloat16, on batches of 800 pixels, with the GPU if any."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = pl.build_detector(detector, 10).train().to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters())
    images = torch.rand(16 if device.type == "cuda" else 2, 3, 800, 800, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    boxes, labels = torch.tensor([[100.0, 100, 200, 180]], device=device), torch.tensor([1], device=device)
    seconds = []
    for _ in range(1 + rounds):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            losses = network(images, [{"boxes": boxes, "labels": labels}] * len(images))
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        optimiser.step()
        optimiser.zero_grad()
        float(next(network.parameters()).flatten()[0])  # waits for the GPU
        seconds.append(time.perf_counter() - started)
    return PASSES * len(images) * pl.cost(network).gmacs / statistics.median(seconds[1:])


def main() -> None:
    """Plan the jobs, and print the hours of each notebook and of all on several numbers of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", default=list(EXPERIMENTS), help="notebooks (all that train)")
    parser.add_argument("--gpus", nargs="+", type=int, default=list(GPUS), help="numbers of GPUs (1 4 16 64)")
    parser.add_argument("--gmacs", type=float, default=GPU_GMACS, help="assumed throughput of one GPU in GMACs/s")
    parser.add_argument("--measure", metavar="DETECTOR", help="measure the throughput with training steps of it")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps (5)")
    options = parser.parse_args()
    rate, source = options.gmacs, "assumed"
    if options.measure:
        rate, source = measure_throughput(options.measure, options.rounds), f"measured with {options.measure}"
    machine = provenance.describe_machine()
    print(f"{machine['gpu'] or machine['processor']}; {rate:.3g} GMACs/s ({rate / 500:.3g} TFLOP/s), {source}\n")
    jobs = plan_paper_scale(options.notebooks)
    hours = {job.name: gmacs / rate / 3600 for job, gmacs in jobs}
    after = {job.name: job.after for job, _ in jobs}
    table = pd.DataFrame({"notebook": job.notebook, "jobs": 1, "hours": hours[job.name]} for job, _ in jobs)
    totals = table.pivot_table(index="notebook", aggfunc="sum")
    print(totals[["jobs", "hours"]].to_markdown(floatfmt=(".0f", ".0f", ".1f")))
    chain = find_critical_path(hours, after)
    print(f"\n{len(hours)} jobs. Critical path, {sum(hours[name] for name in chain):.1f} h: {' → '.join(chain)}\n")
    total, ends = sum(hours.values()), {gpus: simulate(hours, after, gpus) for gpus in options.gpus}
    rows = pd.DataFrame({"hours": ends, "busy": {gpus: total / gpus / end for gpus, end in ends.items()}})
    print(rows.rename_axis("GPUs").to_markdown(floatfmt=(".0f", ".1f", ".0%")))


if __name__ == "__main__":
    main()
