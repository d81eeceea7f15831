"""Compress a detector on your own pictures with YOLO labels: Algorithm 1 of the paper from Python.

The command does the same, and adds ONNX, 8-bit integers and a report:
paperlib compress --data shapes/data.yaml --val shapes/data.yaml --out compressed
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import paperlib as pl


def draw_shapes(folder: Path, split: str, count: int, seed: int) -> None:
    """Draw pictures of one square or one disc, with their labels; yours lie in `images/` and `labels/` already."""
    generator = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = Image.new("RGB", (96, 96), tuple(generator.integers(0, 90, 3).tolist()))
        label, size = number % 2, int(generator.integers(20, 40))
        x, y = generator.integers(0, 96 - size, 2).tolist()
        pen = ImageDraw.Draw(picture)
        (pen.ellipse if label else pen.rectangle)((x, y, x + size, y + size), fill="orange")
        picture.save(folder / "images" / split / f"{number:02}.png")
        centre = (x + size / 2) / 96, (y + size / 2) / 96
        line = f"{label} {centre[0]:.4f} {centre[1]:.4f} {size / 96:.4f} {size / 96:.4f}\n"
        (folder / "labels" / split / f"{number:02}.txt").write_text(line)


folder = Path("shapes")
for seed, (split, count) in enumerate({"train": 12, "val": 8}.items()):
    draw_shapes(folder, split, count, seed)
(folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [square, disc]\n")

train, val = (pl.load_dataset("yolo:shapes/data.yaml", split) for split in ("train", "val"))
detector = pl.build_detector("yolov4-tiny", num_classes=2, width=0.125)
# Far too short to learn: the paper trains for 300 epochs. The limit on the loss of accuracy is off for that reason.
recipe = pl.Recipe(epochs=4, batch_size=4, image_size=96, validate_every=4)
compressed = pl.compress(detector, train, val, recipe, pl.Compression(step=0.3, max_drop=1.0, target_mb=0.2))
print(compressed.table.to_string(index=False))
pl.save_detector(compressed.student, "student.safetensors")
