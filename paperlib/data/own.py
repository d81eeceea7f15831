"""Anyone's own data: which reader reads them."""

from __future__ import annotations

from pathlib import Path

from paperlib.data import coco, yolo
from paperlib.data.annotated import AS_IT_IS, ReadOptions
from paperlib.data.records import Dataset

COCO_PREFIX, YOLO_PREFIX = "coco:", "yolo:"
SPLIT_MARK = "{split}"
"""The part of a COCO file's name that stands for train, val or test."""
FORMS = f"{COCO_PREFIX}<annotations.json>, {YOLO_PREFIX}<data.yaml>"
"""The names of own data, for messages."""


def is_own(name: str) -> bool:
    """Return whether the name of a data set says that it is someone's own."""
    return name.startswith((COCO_PREFIX, YOLO_PREFIX))


def name_own(path: str) -> str:
    """Return the name of the data set in a file, whose suffix tells the format, or of one that is named already."""
    if is_own(path):
        return path
    return f"{YOLO_PREFIX if path.endswith(('.yaml', '.yml')) else COCO_PREFIX}{path}"


def load_own(name: str, split: str, root: Path | None = None, options: ReadOptions = AS_IT_IS) -> Dataset:
    """Load one split of own data, named as in `load_dataset`; its `remarks` tell what was repaired or left out.

    Raises:
        FileNotFoundError, ValueError: see the reader of the format.
    """
    if name.startswith(YOLO_PREFIX):
        return yolo.load_yolo(Path(name.removeprefix(YOLO_PREFIX)), split, root, options)
    file = Path(name.removeprefix(COCO_PREFIX).replace(SPLIT_MARK, split))
    return coco.load_coco(file, root, options, learn=split == "train")
