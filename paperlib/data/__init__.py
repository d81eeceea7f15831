"""Section 4.1: the data sets, by name, all in one form."""

from __future__ import annotations

from pathlib import Path

from paperlib import paths
from paperlib.data import coco, dota, layouts, rsod, vhr10
from paperlib.data.records import Dataset, Letterboxed, Record
from paperlib.data.tiles import Tiles, Tiling, cut_into_tiles
from paperlib.data.toy import aerial, album

LAYOUTS = {layout.name: layout for layout in (vhr10.LAYOUT, rsod.LAYOUT, dota.LAYOUT)}
DATASETS = ("toy-aerial", *LAYOUTS)
COCO_PREFIX = "coco:"


def load_dataset(name: str, split: str, root: str | Path | None = None) -> Dataset:
    """A data set's split.

    DOTA comes in tiles (`tiles.Tiling()`), of which its training split has few without objects; its attribute `whole`
    is the data set of whole images.

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
        records = [Record(f"{split}-{index:04d}", *scene) for index, scene in enumerate(album.load_scenes(split))]
        return Dataset(f"toy-aerial/{split}", aerial.CLASSES, records)
    if name in LAYOUTS:
        layout = LAYOUTS[name]
        dataset = layouts.load_split(layout, split, Path(root) if root else paths.data_root() / layout.folder)
        return cut_into_tiles(dataset, Tiling(), thin=split == "train") if name == "dota" else dataset
    if name.startswith(COCO_PREFIX):
        return coco.load_coco(Path(name.removeprefix(COCO_PREFIX)), Path(root) if root else None)
    raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}, {COCO_PREFIX}<annotations.json>")


__all__ = ["DATASETS", "LAYOUTS", "Dataset", "Letterboxed", "Record", "Tiles", "Tiling", "load_dataset"]
