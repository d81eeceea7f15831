"""NWPU VHR-10 (Section 4.1): 650 images with objects of ten classes, in the layout it was published in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from paperlib.data.records import Dataset, Record, check_boxes
from paperlib.paths import repository_root

CLASSES: tuple[str, ...] = (
    "airplane",
    "ship",
    "storage tank",
    "baseball diamond",
    "tennis court",
    "basketball court",
    "ground track field",
    "harbor",
    "bridge",
    "vehicle",
)
PUBLISHED_COUNTS = dict(zip(CLASSES, (757, 302, 655, 390, 524, 159, 163, 224, 124, 477), strict=True))
"""Boxes per class in the publication (Cheng et al., 2014)."""

FOLDER = "nwpu-vhr10"
IMAGES, ANNOTATIONS = "positive image set", "ground truth"
_VALUE = r"\s*([^\s,()]+)\s*"
LINE = re.compile(rf"\s*\({_VALUE},{_VALUE}\)\s*,\s*\({_VALUE},{_VALUE}\)\s*,{_VALUE}")


def load(split: str, root: Path) -> Dataset:
    """Read one split from `root`, the folder that holds `positive image set/` and `ground truth/`.

    Raises:
        FileNotFoundError: a folder or file of the layout is missing.
        ValueError: an unknown split; a line that does not parse; a class outside 1..10; a box outside its image.
    """
    names = splits()
    if split not in names:
        raise ValueError(f"vhr10 has no split {split!r}; it has {', '.join(names)}")
    for folder in (root, root / IMAGES, root / ANNOTATIONS):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; NWPU VHR-10 belongs there (see data/README.md)")
    return Dataset(f"vhr10/{split}", CLASSES, [read_record(root, name) for name in names[split]])


def splits() -> dict[str, list[str]]:
    """Image names of each split, from `data/splits/vhr10.json`."""
    path = repository_root() / "data" / "splits" / "vhr10.json"
    return json.loads(path.read_text())["splits"]


def differences(counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Where boxes per class, counted over all splits, are not the published ones: class to (counted, published)."""
    found = {name: (counts.get(name, 0), published) for name, published in PUBLISHED_COUNTS.items()}
    return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


def read_record(root: Path, name: str) -> Record:
    """Read image `name` and its ground truth; errors as in `load`."""
    image, annotation = root / IMAGES / f"{name}.jpg", root / ANNOTATIONS / f"{name}.txt"
    for file in (image, annotation):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
    boxes, labels = read_annotation(annotation)
    try:
        with Image.open(image) as opened:
            size = opened.size
    except OSError as error:
        raise ValueError(f"{image}: not an image ({error})") from error
    check_boxes(boxes, size, str(annotation))
    return Record(name, image, boxes, labels)


def read_annotation(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and labels of a ground-truth file, whose lines read `(x1,y1),(x2,y2),class`.

    Returns:
        float32 `[N, 4]` xyxy pixels and int64 `[N]` labels.

    Raises:
        ValueError: names the file, the line and the fault.
    """
    boxes, labels = [], []
    # A byte that is no text becomes a character that does not parse, and so is reported with its line.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            *box, label = LINE.fullmatch(line).groups()
            boxes.append([float(value) for value in box])
            labels.append(int(label))
        except (AttributeError, ValueError):
            raise ValueError(f"{path}, line {number}: {line.strip()!r} is not (x1,y1),(x2,y2),class") from None
        if not 1 <= labels[-1] <= len(CLASSES):
            raise ValueError(f"{path}, line {number}: class {labels[-1]} is not in 1..{len(CLASSES)}")
    return np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64)
