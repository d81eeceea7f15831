"""The COCO files of a folder: one for all images, or one for each split, as labelling services export them."""

from __future__ import annotations

import re
from pathlib import Path

from paperlib.data import coco
from paperlib.data.annotated import AS_IT_IS, ReadOptions
from paperlib.data.records import Dataset
from paperlib.data.split_names import SPELLINGS, find_split, known_splits, missing_split

SPLIT_MARK = "{split}"
"""The part of a COCO file's name that stands for train, val or test."""
OTHER_TASKS = ("captions", "keypoints", "panoptic", "stuff", "image_info")
"""Parts of the names of files that hold no boxes, as COCO and others publish them."""


def load_coco_split(
    path: Path, split: str, images: Path | None = None, options: ReadOptions = AS_IT_IS, *, learn: bool = True
) -> Dataset:
    """Read one split of COCO data.

    Args:
        path: a COCO file, which is one split; a name with `{split}` in it, for several; or a folder of such files.
        split: `train`, `val` or `test`.
        images: the folder of the images; by default that of the file, or where the images of the folder are.
        options: what becomes of bad boxes, and which classes are read.
        learn: the data are for training.

    Raises:
        FileNotFoundError, ValueError: as `coco.load_coco`, or the folder has no such split.
    """
    file = _find_file(path, split)
    folders = [images] if images else _image_folders(path, file) if path.is_dir() else []
    return coco.load_coco(file, folders or None, options, learn=learn)


def coco_splits(path: Path) -> tuple[str, ...]:
    """Return which of train, val and test there are; empty if the data are one split."""
    if SPLIT_MARK in str(path):
        there = [name for names in SPELLINGS.values() for name in names if _replace_mark(path, name).is_file()]
        return known_splits(there)
    return known_splits(_find_files(path)) if path.is_dir() else ()


def is_coco(folder: Path) -> bool:
    """Return whether a folder holds JSON files where those of this format are."""
    return bool(_find_files(folder))


def _find_file(path: Path, split: str) -> Path:
    if SPLIT_MARK in str(path):
        spellings = [_replace_mark(path, name) for name in SPELLINGS.get(split, (split,))]
        return next((file for file in spellings if file.is_file()), spellings[0])
    if not path.is_dir():
        return path
    files = _find_files(path)
    if name := find_split(split, files):
        return files[name]
    if len(files) == 1 and not known_splits(files):
        return next(iter(files.values()))
    if not files:
        raise FileNotFoundError(f"{path}: holds no JSON file of annotations")
    raise ValueError(missing_split(str(path), split, files))


def _replace_mark(path: Path, split: str) -> Path:
    return Path(str(path).replace(SPLIT_MARK, split))


def _find_files(folder: Path) -> dict[str, Path]:
    """Return the JSON files of a folder by split, or by name where it names none.

    Raises:
        ValueError: two files are of one split.
    """
    inner = [folder / "annotations", *(folder / name for names in SPELLINGS.values() for name in names)]
    found: dict[str, Path] = {}
    for place in (folder, *inner):
        for file in sorted(place.glob("*.json")):
            if any(word in file.stem for word in OTHER_TASKS) and "instances" not in file.stem:
                continue
            name = _split_of(file.relative_to(folder)) or file.stem
            if name in found:
                raise ValueError(f"{folder}: {found[name]} and {file} are both its {name}; name one file instead")
            found[name] = file
    return found


def _split_of(file: Path) -> str | None:
    """Return the split that a path names, as in annotations/instances_train2017.json."""
    words = re.findall(r"[a-z]+", str(file.with_suffix("")).lower())
    return next((split for split, names in SPELLINGS.items() if any(name in words for name in names)), None)


def _image_folders(folder: Path, file: Path) -> list[Path]:
    """Return the folders in which the images of a file may be: those named as the file, as a split, or `images`."""
    parts = [part for part in re.split(r"[_.]", file.stem) if part and _split_of(Path(part))]
    names = [*parts, *(re.sub(r"\d+", "", part) for part in parts)]
    inner = ["images", *names, *(f"images/{name}" for name in names)]
    return [place for place in (file.parent, folder, *(folder / name for name in inner)) if place.is_dir()]
