"""Compare training steps with and without keeping freed memory (`paperlib.progress.processes.keep_memory`).

    python benchmarks/memory.py --batch-size 16 --rounds 3

Each measurement is a process of its own, since memory that was once kept cannot be given back; both kinds take turns.
A time is the median over the steps of a process, in milliseconds of the processor; the ratio is that of a round, its
median over the rounds with the quartiles.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time

import torch
from spread import show_quartiles

import paperlib as pl
from paperlib.progress.processes import keep_memory
from paperlib.store import provenance


def time_steps(kept: bool, image_size: int, batch_size: int, width: float, precision: str, steps: int) -> float:
    """Return the median time of a training step of YOLOv4-tiny, in milliseconds of the processor."""
    if kept:
        keep_memory()
    torch.set_num_threads(1)
    detector = pl.build_detector("yolov4-tiny", 10, width=width).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(detector.parameters(), 1e-4, fused=True)
    images = torch.rand(batch_size, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
    side = image_size / 4
    targets = [{"boxes": torch.tensor([[8.0, 8.0, side, side]]), "labels": torch.tensor([1])}] * batch_size
    times = []
    for _ in range(steps + 1):
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = detector(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        times.append(1000 * (time.process_time() - started))
    return statistics.median(times[1:])  # the first step also takes its memory for the first time


def main() -> None:
    """Time both kinds in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    options = vars(parser.parse_args())
    ratios = []
    print(f"{provenance.describe_machine()['processor']}, 1 thread, {options}")
    for _ in range(options.pop("rounds")):
        times = []
        for kept in (False, True):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                times.append(pool.apply(time_steps, (kept,), options))
        ratios.append(times[0] / times[1])
        print(f"{times[0]:.0f} ms; with freed memory kept {times[1]:.0f} ms", flush=True)
    print(f"{show_quartiles(ratios)} times as fast")


if __name__ == "__main__":
    main()
