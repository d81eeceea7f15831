"""Anyone's own data: which reader reads them."""

from __future__ import annotations

from pathlib import Path

from paperlib.data import coco
from paperlib.data.annotated import AS_IT_IS, ReadOptions
from paperlib.data.records import Dataset

COCO_PREFIX = "coco:"
SPLIT_MARK = "{split}"
"""The part of a COCO file's name that stands for train, val or test."""
FORMS = f"{COCO_PREFIX}<annotations.json>"
"""The names of own data, for messages."""


def is_own(name: str) -> bool:
    """Return whether the name of a data set says that it is someone's own."""
    return name.startswith(COCO_PREFIX)


def load_own(name: str, split: str, root: Path | None = None, options: ReadOptions = AS_IT_IS) -> Dataset:
    """Load one split of own data, named as in `load_dataset`; its `remarks` tell what was repaired or left out.

    Raises:
        FileNotFoundError, ValueError: see the reader of the format.
    """
    file = Path(name.removeprefix(COCO_PREFIX).replace(SPLIT_MARK, split))
    return coco.load_coco(file, root, options, learn=split == "train")
