"""Measure the time and memory that it takes to read a COCO annotation file, with drawn boxes and tiny images.

    python benchmarks/reading.py --images 20000

Prints the size of the file, seconds of the processor, and how much the largest memory of the process has grown.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

import paperlib as pl

CLASSES, OBJECTS, SIZE = 80, 7, (64, 48)
"""Classes, objects per image, and the size of an image in pixels."""


def main() -> None:
    """Draw the data and read them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    read = pl.load_dataset  # imports what reading needs
    with tempfile.TemporaryDirectory() as folder:
        file = draw_data(Path(folder), options.images)
        before, start = _peak_megabytes(), time.process_time()
        dataset = read(f"coco:{file}", "train", Path(folder))
        seconds, grown = time.process_time() - start, _peak_megabytes() - before
        print(f"{len(dataset)} images, {file.stat().st_size / 1e6:.1f} MB: {seconds:.1f} s, {grown:.0f} MB more memory")


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
