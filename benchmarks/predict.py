"""Measure how many pictures a second `paperlib.predict` processes: a file in 8-bit integers against eager PyTorch.

    python benchmarks/predict.py --threads 1
    python benchmarks/predict.py --threads 1 --detector before.safetensors --int8 out/student.int8.onnx

A time is that of one picture file, from decoding to detections: reading, scaling, the network and the selection of
detections, in seconds of the processor per thread. The two take turns on every picture; the medians over the pictures
are printed, and the ratio on one picture with its quartiles. Without files, YOLOv4-tiny with random weights is
quantised: its time is that of a trained one, except for the selection.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from latency import build
from PIL import Image
from spread import show_quartiles

import paperlib as pl
from paperlib.data.records import Dataset, Record
from paperlib.deploy.description import Description
from paperlib.deploy.int8 import quantise
from paperlib.deploy.runtime import OpenModel
from paperlib.detectors.files import save_detector
from paperlib.store import provenance

WIDTH, HEIGHT = 958, 808
"""A usual picture of NWPU VHR-10."""
CLASSES = tuple(f"class {number}" for number in range(1, 11))


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Write so many JPEG files of smooth noise."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.jpg")
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(paths[-1], quality=92)
    return paths


def write_models(folder: Path, pictures: list[Path], options: argparse.Namespace) -> tuple[Path, Path]:
    """Write YOLOv4-tiny with random weights, and the same in 8-bit integers."""
    use = Description(classes=CLASSES, image_size=options.image_size)
    detector = build("yolov4-tiny", options.width)
    weights, plain, small = (folder / f"detector{suffix}" for suffix in (".safetensors", ".onnx", ".int8.onnx"))
    save_detector(detector, weights, use=use.to_properties())
    pl.export_onnx(detector, plain, options.image_size, description=use)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    quantise(plain, small, Dataset("noise", CLASSES, [Record(path.name, path, *nothing) for path in pictures]), count=8)
    return weights, small


def measure(models: Mapping[str, OpenModel], pictures: list[Path], threads: int) -> pd.DataFrame:
    """Return the seconds of each picture `[N]` by model; the models take turns."""
    rows = []
    for picture in [pictures[0], *pictures]:
        row = {}
        for name, model in models.items():
            started = time.process_time()
            pl.predict(model, picture)
            row[name] = (time.process_time() - started) / threads
        rows.append(row)
    return pd.DataFrame(rows[1:])  # the first one warms up


def main() -> None:
    """Measure, and print a line per model and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", type=Path, help="a .safetensors file, run by PyTorch in float32")
    parser.add_argument("--int8", type=Path, help="an ONNX file in 8-bit integers")
    parser.add_argument("--pictures", type=int, default=100, help=f"number of pictures, {WIDTH} x {HEIGHT} (100)")
    parser.add_argument("--image-size", type=int, default=416, help="side that they are scaled to, without files (416)")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the number of channels, without files (1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each runtime (1)")
    options = parser.parse_args()
    if bool(options.detector) != bool(options.int8):
        parser.error("--detector and --int8 go together")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="paperlib-") as folder:
        pictures = write_pictures(Path(folder), options.pictures)
        weights, small = options.detector, options.int8
        if not weights:
            weights, small = write_models(Path(folder), pictures, options)
        names = {"PyTorch, float32": weights, "ONNX Runtime, int8": small}
        models = {name: pl.open_model(path, threads=options.threads) for name, path in names.items()}
        times = measure(models, pictures, options.threads)
    print(f"{provenance.describe_machine()['processor']}, {options.threads} threads, {options.pictures} pictures")
    pace = 1 / times.median()
    for name in models:
        print(f"{name}: {pace[name]:.1f} pictures a second")
    slow, fast = (times[name] for name in models)
    print(f"ratio: {show_quartiles(slow / fast)}")


if __name__ == "__main__":
    main()
