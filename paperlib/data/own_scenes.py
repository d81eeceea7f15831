"""Reader of your own scenes: a folder of class folders, or one such folder for each split."""

from __future__ import annotations

from pathlib import Path

from paperlib.data.own import SPLIT_MARK
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
    roots = {name: Path(folder.replace(SPLIT_MARK, name)) for name in SHARES}
    if SPLIT_MARK in folder:
        # Two splits are enough for a training; the one that is asked for must be there.
        there = [name for name, root in roots.items() if name == split or root.is_dir()]
        names = {name: scene_names(roots[name]) for name in there}
    else:
        names = draw_scene_splits(scene_names(roots[split]), roots[split])
    classes = common_classes(names, folder)
    return read_scenes(str(roots[split]), classes, {name: roots[split] / name for name in names[split]})
