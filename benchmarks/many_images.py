"""Measure how much memory `paperlib compress` takes on many drawn images.

    python benchmarks/many_images.py --images 20000 --side 128 --memory 0.5 --folder /tmp/many

The images are drawn once, as PNG files in YOLO's layout. Anonymous memory is what a process keeps for itself; pages of
mapped files are counted apart, because the operating system takes them back when memory is short.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from paperlib.data.squares import VARIABLE
from paperlib.data.toy.aerial import CLASSES, Scene, draw_split
from paperlib.store.provenance import describe_machine

DRAWN = 100
"""Scenes of a split that are drawn; the images are these with noise, so that no two are equal."""
OPTIONS = ["--epochs", "1", "--fine-tune-epochs", "1", "--width", "0.1", "--batch-size", "64", "--mosaic", "0"]


def draw_images(folder: Path, count: int, side: int) -> Path:
    """Draw `count` training images and 100 for validation; return their `data.yaml`."""
    listing = folder / "data.yaml"
    scenes = {split: draw_split(split, count=DRAWN, side=side) for split in ("train", "val")}
    for split, number in (("train", count), ("val", 100)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in () if listing.exists() else range(number):
            _write_image(folder, split, index, scenes[split][index % DRAWN], side)
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(CLASSES))
    listing.write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}\n", encoding="utf-8")
    return listing


def _write_image(folder: Path, split: str, index: int, scene: Scene, side: int) -> None:
    pixels, boxes, labels = scene
    noise = np.random.default_rng([len(split), index]).integers(0, 4, pixels.shape, dtype=np.uint8)
    name = f"{index:06d}"
    Image.fromarray(pixels // 2 + noise).save(folder / "images" / split / f"{name}.png")
    rows = [
        f"{label - 1} {(left + right) / 2 / side:.6f} {(top + bottom) / 2 / side:.6f} "
        f"{(right - left) / side:.6f} {(bottom - top) / side:.6f}"
        for (left, top, right, bottom), label in zip(boxes.tolist(), labels.tolist(), strict=True)
    ]
    (folder / "labels" / split / f"{name}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


def watch_memory(command: list[str]) -> tuple[int, dict[str, float]]:
    """Run a command; return its exit status, and its largest anonymous memory and mapped pages in GiB."""
    most = {"RssAnon": 0.0, "RssFile": 0.0}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        now = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in status if line.startswith(tuple(most))}
        most = {name: max(value, now.get(name, 0.0)) for name, value in most.items()}
        time.sleep(0.1)
    return process.returncode, most


def main() -> None:
    """Draw the images, compress, and print the largest memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=64, help="of the drawn images, and of the squares")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--memory", default="2", help="GiB that pictures may take in memory")
    chosen = parser.parse_args()
    data = draw_images(chosen.folder / "data", chosen.images, chosen.side)
    os.environ[VARIABLE] = chosen.memory
    out = chosen.folder / f"out-{chosen.memory}"
    command = [sys.executable, "-m", "paperlib", "compress", "--data", str(data), "--out", str(out)]
    started = time.perf_counter()
    status, most = watch_memory([*command, "--image-size", str(chosen.side), *OPTIONS])
    print(describe_machine())
    size = chosen.images * 3 * chosen.side**2 / 2**30
    print(f"{chosen.images:,} images, {size:.2f} GiB of squares, {chosen.memory} GiB of them in memory at most:")
    print(f"anonymous memory {most['RssAnon']:.2f} GiB, mapped pages {most['RssFile']:.2f} GiB at most,")
    print(f"{time.perf_counter() - started:.0f} s, exit status {status}")


if __name__ == "__main__":
    main()
