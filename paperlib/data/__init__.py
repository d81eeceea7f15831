"""All data sets by name: those of Section 4.1 as `Dataset`, scenes as `SceneDataset`."""

from __future__ import annotations

from pathlib import Path

from paperlib import paths
from paperlib.data import coco, dota, layouts, rsod, scene_folders, vhr10
from paperlib.data.records import Dataset, Letterboxed, Record
from paperlib.data.scenes import SceneDataset, SceneRecord
from paperlib.data.tiles import Tiles, Tiling, cut_into_tiles
from paperlib.data.toy import aerial, album
from paperlib.data.toy import scenes as toy_scenes

LAYOUTS = {layout.name: layout for layout in (vhr10.LAYOUT, rsod.LAYOUT, dota.LAYOUT)}
SCENE_LAYOUTS = {layout.name: layout for layout in scene_folders.LAYOUTS}
PUBLISHED = {**LAYOUTS, **SCENE_LAYOUTS}
DATASETS = ("toy-aerial", *LAYOUTS)
SCENE_DATASETS = ("toy-scenes", *SCENE_LAYOUTS)
COCO_PREFIX = "coco:"
SPLIT_MARK = "{split}"
"""The part of a COCO file's name that stands for train, val or test."""


def load_dataset(name: str, split: str, root: str | Path | None = None) -> Dataset | SceneDataset:
    """Load one split of a data set: with boxes, or of scenes.

    Args:
        name: one of `DATASETS` or `SCENE_DATASETS`, or `coco:<annotations.json>`; see `load_detection_dataset`.
        split: `train`, `val` or `test`.
        root: the folder of this data set; by default its folder under `PAPERLIB_DATA`.

    Raises:
        ValueError: an unknown name or split, or damaged files (the message names file, place and fault).
        FileNotFoundError: the data set is missing.
    """
    if name == "toy-scenes":
        records = [
            SceneRecord(f"{split}-{toy_scenes.CLASSES[label]}-{index:02d}", image, label)
            for label, images in enumerate(album.load_places(split))
            for index, image in enumerate(images)
        ]
        return SceneDataset(f"toy-scenes/{split}", toy_scenes.CLASSES, records)
    if name in SCENE_LAYOUTS:
        layout = SCENE_LAYOUTS[name]
        return scene_folders.load_scene_split(layout, split, Path(root) if root else paths.data_root() / layout.folder)
    return load_detection_dataset(name, split, root)


def load_detection_dataset(name: str, split: str, root: str | Path | None = None) -> Dataset:
    """Load one split of a data set with boxes.

    DOTA is loaded as tiles (`tiles.Tiling()`); its training split keeps few tiles without objects. The attribute
    `full_images` of the result is the data set of uncut images.

    Args:
        name: one of `DATASETS`, or `coco:<annotations.json>` for your own data in COCO format. `{split}` in the name
            of a COCO file stands for the split, so that `coco:own/{split}.json` names three files.
        split: `train`, `val` or `test`; a COCO file is one split and is read completely.
        root: the folder of this data set, or of a COCO file's images; by default the data set's folder under
            `PAPERLIB_DATA`, or the folder of the COCO file.

    Raises:
        ValueError: an unknown name or split, or damaged files (the message names file, place and fault).
        FileNotFoundError: the data set is missing.
    """
    if name == "toy-aerial":
        records = [Record(f"{split}-{index:04d}", *scene) for index, scene in enumerate(album.load_scenes(split))]
        return Dataset(f"toy-aerial/{split}", aerial.CLASSES, records)
    if name in LAYOUTS:
        layout = LAYOUTS[name]
        dataset = layouts.load_split(layout, split, Path(root) if root else paths.data_root() / layout.folder)
        return cut_into_tiles(dataset, Tiling(), thin=split == "train") if name == "dota" else dataset
    if name.startswith(COCO_PREFIX):
        file = name.removeprefix(COCO_PREFIX).replace(SPLIT_MARK, split)
        return coco.load_coco(Path(file), Path(root) if root else None)
    if name in SCENE_DATASETS:
        raise ValueError(f"{name}: its images are scenes without boxes, on which no detector can be trained")
    known = (*DATASETS, f"{COCO_PREFIX}<annotations.json>", *SCENE_DATASETS)
    raise ValueError(f"unknown data set {name!r}; known: {', '.join(known)}")


__all__ = [
    "DATASETS", "LAYOUTS", "PUBLISHED", "SCENE_DATASETS", "SCENE_LAYOUTS", "Dataset", "Letterboxed", "Record",
    "SceneDataset", "SceneRecord", "Tiles", "Tiling", "load_dataset", "load_detection_dataset",
]  # fmt: skip
