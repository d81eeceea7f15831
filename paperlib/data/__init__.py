"""All data sets by name: those of Section 4.1 as `Dataset`, scenes as `SceneDataset`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from paperlib import paths
from paperlib.data import dota, layouts, own, rsod, scene_folders, vhr10
from paperlib.data.annotated import AS_IT_IS, BadBoxes, ReadOptions, make_options
from paperlib.data.records import Dataset, Letterboxed, Record
from paperlib.data.scene_folders import SCENES_PREFIX
from paperlib.data.scenes import SceneDataset, SceneRecord
from paperlib.data.tiles import Tiles, Tiling, cut_into_tiles
from paperlib.data.toy import aerial, album
from paperlib.data.toy import scenes as toy_scenes

LAYOUTS = {layout.name: layout for layout in (vhr10.LAYOUT, rsod.LAYOUT, dota.LAYOUT)}
SCENE_LAYOUTS = {layout.name: layout for layout in scene_folders.LAYOUTS}
PUBLISHED = {**LAYOUTS, **SCENE_LAYOUTS}
DATASETS = ("toy-aerial", *LAYOUTS)
SCENE_DATASETS = ("toy-scenes", *SCENE_LAYOUTS)

_log = logging.getLogger(__name__)


def load_dataset(
    name: str, split: str, root: str | Path | None = None, *, bad_boxes: BadBoxes = "error",
    classes: Sequence[str] | None = None, allow_outside: bool = False, fold: int | None = None,
) -> Dataset | SceneDataset:  # fmt: skip
    """Load one split of a data set: with boxes, or of scenes.

    Args:
        name: one of `DATASETS` or `SCENE_DATASETS`, or your own data: `coco:`, `yolo:`, `voc:` or `dota:` and
            a path (see `load_detection_dataset`), or `scenes:<folder of class folders>` (see
            `own_scenes.load_own_scenes`).
        split: `train`, `val` or `test`.
        root: the folder of this data set; by default its folder under `PAPERLIB_DATA`.
        bad_boxes: for your own data: what becomes of a box that has no area or is not inside its image: `error`
            refuses it, `clip` cuts it at the border (and leaves it out if nothing remains), `skip` leaves it out.
        classes: for your own data: the names of the classes to read, in this order; boxes of others are left out. By
            default the categories of the file, without those that have no boxes in the split `train`. Read other
            splits with the classes of the training data, `classes=train.classes`, to give their labels one meaning.
        allow_outside: for your own data: read images outside of the folder `root`, too.
        fold: of NWPU VHR-10: the splits of this fold, 0 to 4, in which no ground of a test image is seen in training;
            without it, the split that this project began with, which cuts 37 groups of images of the same ground.

    What is repaired or left out in your own data is logged as warnings, and kept as the `remarks` of the data set.

    Raises:
        ValueError: an unknown name or split, or damaged files (the message names file, place and fault).
        FileNotFoundError: the data set is missing.
    """
    if fold is not None:
        return _load_fold(name, split, fold, root)
    if _is_scenes(name):
        return load_scene_dataset(name, split, root)
    options = make_options(bad_boxes, classes, allow_outside=allow_outside)
    return load_detection_dataset(name, split, root, options)


def _load_fold(name: str, split: str, fold: int, root: str | Path | None) -> Dataset:
    # Imported here, because `python -m paperlib.data.folds` must not find its module imported already.
    from paperlib.data import folds

    known = [each for each in LAYOUTS if folds.folds_path(each).is_file()]
    if name not in known:
        raise ValueError(f"{name} has no folds; {', '.join(known)} has")
    layout = LAYOUTS[name]
    splits = folds.stored_fold(name, fold)
    dataset = layouts.load_split(layout, split, Path(root) if root else paths.data_root() / layout.folder, splits)
    dataset.name = f"{name}/{split} of fold {fold}"
    return dataset


def load_scene_dataset(name: str, split: str, root: str | Path | None = None) -> SceneDataset:
    """Load one split of a scene data set; arguments and errors as in `load_dataset`."""
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
    if not name.startswith(SCENES_PREFIX):
        raise ValueError(f"no scenes {name!r}; known: {', '.join(SCENE_DATASETS)}, {SCENES_PREFIX}<folder>")
    # Imported here, because `python -m paperlib.data.splits` must not find its module imported already.
    from paperlib.data import own_scenes

    return own_scenes.load_own_scenes(name.removeprefix(SCENES_PREFIX), split)


def _is_scenes(name: str) -> bool:
    return name in SCENE_DATASETS or name.startswith(SCENES_PREFIX)


def load_detection_dataset(
    name: str, split: str, root: str | Path | None = None, options: ReadOptions = AS_IT_IS
) -> Dataset:
    """Load one split of a data set with boxes.

    DOTA is loaded as tiles (`tiles.Tiling()`); its training split keeps few tiles without objects. The attribute
    `full_images` of the result is the data set of uncut images.

    Args:
        name: one of `DATASETS`, or for your own `coco:<annotations.json>`, `yolo:<data.yaml>`, `voc:<folder>` or
            `dota:<folder>`. `{split}` in the name of a COCO file stands for the split, so that `coco:own/{split}.json`
            names three files. After a `#` may stand the split to read whatever `split` says (`voc:own#trainval`), or
            fractions: data that are one split are distributed by a fixed seed (`coco:all.json#70/15/15`).
        split: `train`, `val` or `test`; a COCO file or a folder without splits is one split and is read completely.
        root: the folder of this data set, or of your own images; by default the data set's folder under
            `PAPERLIB_DATA`, or where the annotations imply.
        options: how your own data are read; see `load_dataset`.

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
    if own.is_own(name):
        dataset = own.load_own(name, split, Path(root) if root else None, options)
        for remark in dataset.remarks:
            _log.warning("%s: %s", dataset.name, remark)
        return dataset
    if _is_scenes(name):
        raise ValueError(f"{name}: its images are scenes without boxes, on which no detector can be trained")
    known = (*DATASETS, own.FORMS, *SCENE_DATASETS, f"{SCENES_PREFIX}<folder>")
    raise ValueError(f"unknown data set {name!r}; known: {', '.join(known)}")


__all__ = [
    "DATASETS", "LAYOUTS", "PUBLISHED", "SCENE_DATASETS", "SCENE_LAYOUTS", "Dataset", "Letterboxed", "Record",
    "SceneDataset", "SceneRecord", "Tiles", "Tiling", "load_dataset", "load_detection_dataset", "load_scene_dataset",
]  # fmt: skip
