"""How much of the saved multiply-accumulates becomes saved time, per detector, pruning ratio and runtime.

    python benchmarks/latency.py --threads 1 --rounds 7

The realised share is `(1 - pruned time / whole time) / (1 - pruned MACs / whole MACs)`; the paper's own table realises
0.41 to 0.57. A time is that of one image from pixels to boxes and scores, without non-maximum suppression where the
detector allows (one stage). All of a detector's rows take turns; a row is the median over the rounds. Channels are
chosen by random scale factors, which is as good as any choice as far as time is concerned.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.benchmark import Timer

import paperlib as pl
from paperlib import provenance
from paperlib.detectors import DETECTORS
from paperlib.export import deployable
from paperlib.timing import RUNTIMES, export_for_timing, file_timer, torch_timer

CLASSES = 10


def build(name: str, width: float) -> nn.Module:
    """A detector with random scale factors, and statistics that keep its signals from vanishing and exploding."""
    detector = pl.build_detector(name, CLASSES, width=width)
    for norm in detector.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.momentum = 1.0
    with torch.no_grad():
        getattr(detector.train(), detector.traced_method)(torch.rand(16, 1, 1, 1) * torch.rand(16, 3, 128, 128))
    return detector.eval()


def stopwatches(detector: nn.Module, side: int, threads: int, folder: Path) -> dict[str, Timer]:
    """A stopwatch per runtime."""
    images = torch.rand(1, 3, side, side)
    file = export_for_timing(detector, folder, side)
    network = torch_timer(deployable(detector, side), images, threads)
    return {name: network if name == "torch" else file_timer(file, images, name, threads) for name in RUNTIMES}


def measure(name: str, options: argparse.Namespace) -> pd.DataFrame:
    """One row per ratio and runtime."""
    whole = build(name, options.width)
    variants = {0.0: whole}
    for ratio in options.ratios:
        variants[ratio] = pl.apply_plan(whole, pl.plan_pruning(whole, ratio, round_to=options.round_to))
    watches = {}
    for ratio, variant in variants.items():
        with tempfile.TemporaryDirectory() as folder:
            for runtime, watch in stopwatches(variant, options.image_size, options.threads, Path(folder)).items():
                watches[ratio, runtime] = watch
    rounds = [
        {key: 1e3 * watch.blocked_autorange(min_run_time=options.seconds).median for key, watch in watches.items()}
        for _ in range(options.rounds)
    ]
    times = pd.DataFrame(rounds).median()
    gmacs = {ratio: pl.cost(variant, options.image_size).gmacs for ratio, variant in variants.items()}
    rows = [
        {
            "detector": name, "ratio": ratio, "runtime": runtime, "GMACs": gmacs[ratio], "ms": milliseconds,
            "MACs saved": (saved := 1 - gmacs[ratio] / gmacs[0.0]),
            "time saved": (gained := 1 - milliseconds / times[0.0, runtime]),
            "realised share": gained / saved if saved else None,
        }
        for (ratio, runtime), milliseconds in times.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).sort_values(["runtime", "ratio"])


def main() -> None:
    """Measure, and print a table per detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS), metavar="NAME")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.5, 0.8], help="shares of channels cut (0.5 0.8)")
    parser.add_argument("--round-to", type=int, default=8, help="channels kept are a multiple of this (8)")
    parser.add_argument("--image-size", type=int, default=416, help="side of the image in pixels (416)")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the number of channels (1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each runtime (1)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each row (7)")
    parser.add_argument("--seconds", type=float, default=0.3, help="least length of a turn (0.3)")
    options = parser.parse_args()
    torch.manual_seed(0)
    packages = " · ".join(f"{name} {provenance.package_version(name)}" for name in RUNTIMES)
    print(f"{provenance.machine()['processor']}, {options.threads} threads · {packages} · float32")
    print(f"one image of {options.image_size} px, channels kept a multiple of {options.round_to}")
    for name in options.detectors:
        print(f"\n{measure(name, options).to_markdown(index=False, floatfmt='.2f')}", flush=True)


if __name__ == "__main__":
    main()
