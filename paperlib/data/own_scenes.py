"""Reader of your own scenes: a folder of class folders, or one such folder for each split."""

from __future__ import annotations

from pathlib import Path

from paperlib.data.coco_folder import SPLIT_MARK
from paperlib.data.scene_folders import common_classes, read_scenes, scene_names
from paperlib.data.scenes import SceneDataset
from paperlib.data.splits import SHARES, draw_scene_splits


def load_own_scenes(folder: str, split: str) -> SceneDataset:
    """Read one split of your own scenes.

    Args:
        folder: holds one folder per class. With `{split}` in it, it names one such folder for each split; else the
            images are distributed by a fixed seed: 70 % train, 10 % val and 20 % test of every class.
        split: `train`, `val` or `test`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: an unknown split, no class folder or only one, a class folder without images, or a class that is
            not in every split.
    """
    if split not in SHARES:
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(SHARES)}")
    roots = split_folders(folder)
    if SPLIT_MARK in folder:
        # Two splits are enough for a training; the one that is asked for must be there.
        root = Path(folder.replace(SPLIT_MARK, split))
        names = {name: scene_names(place) for name, place in {**roots, split: root}.items()}
    else:
        root = roots[""]
        names = draw_scene_splits(scene_names(root), root)
    classes = common_classes(names, folder)
    return read_scenes(str(root), classes, {name: root / name for name in names[split]})


def split_folders(folder: str) -> dict[str, Path]:
    """Return the folder of each split that there is, by its name; the name is empty for one folder of all images.

    Raises:
        FileNotFoundError: there is none.
    """
    names = tuple(SHARES) if SPLIT_MARK in folder else ("",)
    folders = {name: Path(folder.replace(SPLIT_MARK, name)) for name in names}
    there = {name: path for name, path in folders.items() if path.is_dir()}
    if not there:
        raise FileNotFoundError(f"{folder}: no such folder of class folders")
    return there
