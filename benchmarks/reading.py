"""Measure the time and memory that it takes to read a COCO annotation file, with drawn boxes and tiny images.

    python benchmarks/reading.py --images 20000

Each round is a process of its own. Prints the size of the file, the median seconds of the processor with the quartiles,
and how much the largest memory of a process has grown.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from spread import show_quartiles

import paperlib as pl
from paperlib.store import provenance

CLASSES, OBJECTS, SIZE = 80, 7, (64, 48)
"""Classes, objects per image, and the size of an image in pixels."""


def main() -> None:
    """Draw the data and read them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = run_apart(draw_data, Path(folder), options.images)
        size = file.stat().st_size / 1e6
        seconds, grown = zip(*(run_apart(measure, file) for _ in range(options.rounds)), strict=True)
    print(provenance.describe_machine()["processor"])
    print(f"{options.images} images, {size:.1f} MB, {options.rounds} rounds: {show_quartiles(seconds, 1)} s, ", end="")
    print(f"{show_quartiles(grown, 0)} MB more memory")


def run_apart(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a process of its own, so that it leaves no memory behind that a later one could use."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(file: Path) -> tuple[float, float]:
    """Return the seconds of the processor that reading takes, and by how many MB the largest memory grows."""
    read = pl.load_dataset  # imports what reading needs
    before, start = _peak_megabytes(), time.process_time()
    read(f"coco:{file}", "train", file.parent)
    return time.process_time() - start, _peak_megabytes() - before


def draw_data(folder: Path, images: int) -> Path:
    """Write images and their annotations; return the annotation file."""
    rng = random.Random(0)
    rows: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    rows["categories"] = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    for image in range(images):
        name = f"{image:06d}.png"
        Image.new("RGB", SIZE, (image % 256, image // 256 % 256, 0)).save(folder / name)
        rows["images"].append({"id": image, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for _ in range(OBJECTS):
            box = [rng.randrange(40), rng.randrange(30), rng.randrange(4, 20), rng.randrange(4, 16)]
            number, category = len(rows["annotations"]) + 1, rng.randrange(1, CLASSES + 1)
            rows["annotations"].append({"id": number, "image_id": image, "category_id": category, "bbox": box})
    file = folder / "annotations.json"
    file.write_text(json.dumps(rows))
    return file


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
