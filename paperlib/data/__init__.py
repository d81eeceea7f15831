"""Section 4.1: the data sets, by name, all in one form."""

from __future__ import annotations

from pathlib import Path

from paperlib import paths
from paperlib.data import coco, toy_aerial, vhr10
from paperlib.data.records import Dataset, Letterboxed, Record

DATASETS = ("toy-aerial", "vhr10")
COCO_PREFIX = "coco:"


def load_dataset(name: str, split: str, root: str | Path | None = None) -> Dataset:
    """A data set's split.

    Args:
        name: one of `DATASETS`, or `coco:<annotations.json>` for anyone's data in COCO format.
        split: `train`, `val` or `test`; of a COCO file, which is one split, all is read whatever it is called.
        root: the folder of this data set, or of a COCO file's images; by default its usual place under
            `PAPERLIB_DATA`, or the COCO file's own folder.

    Raises:
        ValueError: an unknown name or split, or files that are damaged (the message names file, place and fault).
        FileNotFoundError: the data set is not there.
    """
    if name == "toy-aerial":
        scenes = toy_aerial.draw_split(split)
        records = [Record(f"{split}-{index:04d}", *scene) for index, scene in enumerate(scenes)]
        return Dataset(f"toy-aerial/{split}", toy_aerial.CLASSES, records)
    if name == "vhr10":
        return vhr10.load(split, Path(root) if root else paths.data_root() / vhr10.FOLDER)
    if name.startswith(COCO_PREFIX):
        return coco.load(Path(name.removeprefix(COCO_PREFIX)), Path(root) if root else None)
    raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}, {COCO_PREFIX}<annotations.json>")


__all__ = ["DATASETS", "Dataset", "Letterboxed", "Record", "load_dataset"]
