"""Measure which share of an epoch the renewal of batch-norm statistics takes, which averaged weights need.

    python benchmarks/batch_norm.py --epochs 3

A training of YOLOv4-tiny with averaged weights on drawn images is validated on eight of them after every epoch, and so
its statistics are measured again after every epoch (`paperlib.training.batchnorm`). A time is processor time of one
thread; the share is the time of the renewal divided by that of the rest of its epoch, the median over the epochs with
its quartiles. Profiles validate less often.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from spread import show_quartiles

import paperlib as pl
from paperlib.data.records import Dataset, Record
from paperlib.data.toy.aerial import CLASSES, draw_split
from paperlib.store import provenance
from paperlib.training import running


def draw_images(split: str, count: int, side: int) -> Dataset:
    """Draw scenes that have not been looked at yet."""
    records = [Record(f"{index}", *scene) for index, scene in enumerate(draw_split(split, count=count, side=side))]
    return Dataset(f"drawn/{split}", CLASSES, records)


def note_seconds(function: Callable[..., Any], noted: list[float]) -> Callable[..., Any]:
    """Return a function that does the same and appends its processor time to a list."""

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.process_time()
        result = function(*arguments, **options)
        noted.append(time.process_time() - started)
        return result

    return timed


def main() -> None:
    """Train, and print the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="training images (256)")
    parser.add_argument("--image-size", type=int, default=256, help="their side in pixels (256)")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the number of channels (1)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    renewals, ends = [], []
    running.recalibrate_batch_norm_ = note_seconds(running.recalibrate_batch_norm_, renewals)
    side = options.image_size
    data, validation = draw_images("train", options.images, side), draw_images("val", 8, side)
    detector = pl.build_detector("yolov4-tiny", len(CLASSES), width=options.width)
    recipe = pl.Recipe(
        epochs=options.epochs + 1,
        batch_size=16,
        image_size=side,
        ema=0.99,
        validate_every=1,
        precision=options.precision,
    )
    with tempfile.TemporaryDirectory(prefix="paperlib-") as folder:
        pl.fit(
            detector, data, validation=validation, recipe=recipe, folder=Path(folder),
            on_epoch=lambda report: ends.append(time.process_time()),
        )  # fmt: skip
    # The first epoch also takes its memory for the first time.
    epochs = [end - start - renewal for (start, end), renewal in zip(pairwise(ends), renewals[1:], strict=True)]
    shares = [renewal / epoch for renewal, epoch in zip(renewals[1:], epochs, strict=True)]
    print(f"{provenance.describe_machine()['processor']}, 1 thread, precision {options.precision}")
    print(f"epoch {statistics.median(epochs):.1f} s, renewal {statistics.median(renewals[1:]):.2f} s")
    print(f"share {show_quartiles(shares, 3)}")


if __name__ == "__main__":
    main()
