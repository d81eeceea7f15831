"""Compare YOLOv4's ONNX files with Mish as PyTorch exports it and as the rational function that is written instead.

    python benchmarks/mish.py --rounds 30

Four files take turns in ONNX Runtime on one thread: the whole detector and one pruned by half, each with both forms of
Mish. A time is processor time. The table has medians over the rounds and quartiles of the ratio within a round; the
realised fraction is `(1 - pruned time / original time) / (1 - pruned MACs / original MACs)`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from latency import build
from spread import show_quartiles
from torch import nn
from turns import measure

import paperlib as pl
from paperlib.deploy.mish import expand_mish
from paperlib.deploy.onnx import OneStage, make_deployable
from paperlib.store import provenance

FORMS = ("Softplus, Tanh, Mul", "rational")


def write_forms(detector: nn.Module, image_size: int, folder: Path, name: str) -> dict[str, Path]:
    """Write one ONNX file for each form of Mish, for one image."""
    network = make_deployable(detector, image_size)
    assert isinstance(network, OneStage)
    images = torch.rand(1, 3, image_size, image_size)
    with torch.inference_mode():
        network(images)  # first, as `export_onnx` does
    files = {form: folder / f"{name}, {form}" for form in FORMS}
    model = network.trace_onnx(images, any_number=False)
    onnx.save(model, files[FORMS[0]])
    onnx.save(expand_mish(model), files[FORMS[1]])
    return files


def main() -> None:
    """Measure, and print the ratio and the realised fractions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.5, help="pruning ratio (0.5)")
    parser.add_argument("--round-to", type=int, default=8, help="channels kept are a multiple of this (8)")
    parser.add_argument("--image-size", type=int, default=416, help="side of the image in pixels (416)")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the number of channels (1)")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each file (30)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    whole = build("yolov4", options.width)
    pruned = pl.apply_plan(whole, pl.plan_pruning(whole, options.ratio, round_to=options.round_to))
    saved = 1 - pl.cost(pruned, options.image_size).gmacs / pl.cost(whole, options.image_size).gmacs
    with tempfile.TemporaryDirectory(prefix="paperlib-") as folder:
        originals = write_forms(whole, options.image_size, Path(folder), "whole")
        students = write_forms(pruned, options.image_size, Path(folder), "pruned")
        times = measure([*originals.values(), *students.values()], options.rounds)
    runtime = f"onnxruntime {provenance.package_version('onnxruntime')}"
    print(f"{provenance.describe_machine()['processor']}, 1 thread, {runtime}, {options.rounds} rounds")
    for name, files in (("whole", originals), ("pruned", students)):
        slow, fast = (times[file.name].to_numpy() for file in files.values())
        print(f"{name}: {np.median(slow):.0f} ms, rational {np.median(fast):.0f} ms", end="; ")
        print(f"{show_quartiles(slow / fast)} times as fast")
    for form in FORMS:
        before, after = (times[files[form].name].to_numpy() for files in (originals, students))
        realised = (1 - after / before) / saved
        print(f"{form}: {show_quartiles(realised)} of the saving of {saved:.0%} is realised")


if __name__ == "__main__":
    main()
