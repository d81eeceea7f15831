"""Measure how much of the saved multiply-accumulates becomes saved time, per detector, pruning ratio and runtime.

    python benchmarks/latency.py --threads 1 --rounds 7

The realised fraction is `(1 - pruned time / original time) / (1 - pruned MACs / original MACs)`, the median over the
rounds with its quartiles; in the paper's own table it is 0.41 to 0.57. A time is that of one image from pixels to boxes
and scores, without non-maximum suppression for one-stage detectors. All rows of a detector take turns; a row is the
median over the rounds. Channels are selected by random scale factors, because which channels are removed does not
matter for time.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch
from spread import show_quartiles
from torch import nn

import paperlib as pl
from paperlib.deploy.latency import RUNTIMES, time_in_turns
from paperlib.detectors import DETECTORS
from paperlib.store import provenance

CLASSES = 10
WHOLE = "whole"


def build(name: str, width: float) -> nn.Module:
    """Build a detector with random scale factors, and statistics that keep its activations in range."""
    detector = pl.build_detector(name, CLASSES, width=width)
    for norm in detector.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.momentum = 1.0
    with torch.no_grad():
        getattr(detector.train(), detector.traced_method)(torch.rand(16, 1, 1, 1) * torch.rand(16, 3, 128, 128))
    return detector.eval()


def measure(name: str, options: argparse.Namespace) -> pd.DataFrame:
    """Return one row per runtime and ratio."""
    whole = build(name, options.width)
    variants = {WHOLE: whole}
    for ratio in options.ratios:
        variants[f"{ratio:.0%}"] = pl.apply_plan(whole, pl.plan_pruning(whole, ratio, round_to=options.round_to))
    turns = {"threads": options.threads, "rounds": options.rounds, "seconds": options.seconds}
    times = time_in_turns(variants, options.image_size, runtimes=options.runtimes, **turns)
    gmacs = {ratio: pl.cost(variant, options.image_size).gmacs for ratio, variant in variants.items()}
    rows = []
    for model, runtime, precision in times:
        mine, before = times[model, runtime, precision], times[WHOLE, runtime, precision]
        saved = 1 - gmacs[model] / gmacs[WHOLE]
        realised = (1 - mine / before) / saved if model != WHOLE else [np.nan]
        rows.append({
            "detector": name, "model": model, "runtime": runtime, "gmacs": gmacs[model], "ms": mine.median(),
            "macs_saved": saved, "time_saved": 1 - (mine / before).median(), "realised": show_quartiles(realised),
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values("runtime", kind="stable")


def main() -> None:
    """Measure, and print a table per detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS), metavar="NAME")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), metavar="NAME")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.5, 0.8], help="pruning ratios (0.5 0.8)")
    parser.add_argument("--round-to", type=int, default=8, help="channels kept are a multiple of this (8)")
    parser.add_argument("--image-size", type=int, default=416, help="side of the image in pixels (416)")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the number of channels (1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each runtime (1)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each row (7)")
    parser.add_argument("--seconds", type=float, default=0.3, help="minimum length of a turn (0.3)")
    options = parser.parse_args()
    torch.manual_seed(0)
    packages = " · ".join(f"{name} {provenance.package_version(name)}" for name in options.runtimes)
    print(f"{provenance.describe_machine()['processor']}, {options.threads} threads · {packages} · float32")
    print(f"one image of {options.image_size} px, channels kept a multiple of {options.round_to}")
    for name in options.detectors:
        print(f"\n{measure(name, options).to_markdown(index=False, floatfmt='.2f')}", flush=True)


if __name__ == "__main__":
    main()
