"""Reader of own data in DOTA format: one text file of oriented boxes per image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from paperlib.data.annotated import AS_IT_IS, Annotated, ReadOptions, build_dataset
from paperlib.data.coco_values import ENCLOSING, MOST_PIXELS, is_normalised
from paperlib.data.dota import CLASSES as PUBLISHED
from paperlib.data.dota import FORM, HEADERS, LABELS
from paperlib.data.image_folder import NO_LABELS, ImageFolder, collect_names, first_folder, has_file, walk_files
from paperlib.data.layouts import text_lines
from paperlib.data.records import Dataset
from paperlib.data.remarks import Remarks
from paperlib.data.split_names import find_split, known_splits, missing_split
from paperlib.files import quote_value, shorten_text

LABEL_FOLDERS = ("labelTxt", "labelTxt-v1.0", "labelTxt-v1.5", "labelTxt-v2.0")


def load_dota(
    folder: Path, split: str, images: Path | None = None, options: ReadOptions = AS_IT_IS, *, learn: bool = True
) -> Dataset:
    """Read one split of a folder in DOTA format; its classes are the names of its objects, sorted.

    Read are `labelTxt/` and `images/`, in the folder or in its folders `train`, `val` and `test`. Each object becomes
    the upright box around its four corners, cut at the border of the image. Difficult objects are objects like others.
    The images are not cut into tiles. An image without labels shows none of the classes.

    Args:
        folder: the folder.
        split: `train`, `val` or `test`.
        images: the folder of the images, if it is another one.
        options: what becomes of bad boxes, and which classes are read.
        learn: the data are for training.

    Raises:
        FileNotFoundError: a folder, or the image of a label file, is missing.
        ValueError: no such split, or a line that is not DOTA's. One line names the file, the line and the fault.
    """
    place = _split_folder(folder, split)
    labels = first_folder(place, LABEL_FOLDERS)
    remarks = Remarks()
    found = ImageFolder(
        images or first_folder(place, ("images",)), folder, allow_outside=options.allow_outside, remarks=remarks
    )
    parsed = list(_read_images(labels, found, remarks))
    if not parsed:
        raise ValueError(f"{folder}: holds no images")
    classes = collect_names((name for *_, names in parsed for name in names), options, learn=learn)
    label_of = {name: label for label, name in enumerate(classes, 1)}
    listed = [
        Annotated(
            name,
            file,
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            np.array([label_of[each] for each in names], dtype=np.int64),
            title,
            # A turned object at the border can stick out by any length.
            turned=np.ones(len(boxes), dtype=bool),
        )
        for name, file, title, boxes, names in parsed
    ]
    return build_dataset(f"dota:{folder.name}", folder, classes, listed, options, remarks, learn=learn)


def dota_splits(folder: Path) -> tuple[str, ...]:
    """Return which of train, val and test a folder has; empty if it is one split."""
    return () if _has_labels(folder) else known_splits(_split_folders(folder))


def is_dota(folder: Path) -> bool:
    """Return whether a folder, or one of its splits, holds text files in a folder of this format."""
    return _has_labels(folder) or bool(_split_folders(folder))


def _split_folder(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    folders = _split_folders(folder)
    if _has_labels(folder):
        return folder
    if name := find_split(split, folders):
        return folders[name]
    if folders:
        raise ValueError(missing_split(str(folder), split, folders))
    raise FileNotFoundError(f"{folder / LABEL_FOLDERS[0]}: no such folder of labels")


def _split_folders(folder: Path) -> dict[str, Path]:
    inner = {place.name: place for place in folder.iterdir() if place.is_dir()} if folder.is_dir() else {}
    return {name: place for name, place in inner.items() if known_splits([name]) and _has_labels(place)}


def _has_labels(folder: Path) -> bool:
    return any(has_file(folder / name, {".txt"}) for name in LABEL_FOLDERS)


_Parsed = tuple[str, Path, str, list[list[float]], list[str]]
"""An image: its name and file, how messages name it, the boxes and classes of its objects."""


def _read_images(labels: Path, found: ImageFolder, remarks: Remarks) -> Iterator[_Parsed]:
    seen = set()
    for relative in walk_files(labels, {".txt"}):
        path = labels / relative
        boxes, names = read_label_file(path, remarks)
        name, file = found.find(str(PurePosixPath(relative).with_suffix("")), None, path)
        seen.add(name)
        yield name, file, str(PurePosixPath(labels.name, relative)), boxes, names
    for name in found.names:
        if name not in seen:
            remarks.count(NO_LABELS, quote_value(name))
            yield name, found.check(name), f"image {shorten_text(name, 100)}", [], []


def read_label_file(path: Path, remarks: Remarks) -> tuple[list[list[float]], list[str]]:
    """Read the boxes xyxy in pixels and the classes of a label file.

    Raises:
        ValueError: names the file, the line and the fault.
    """
    boxes, names = [], []
    for number, line in text_lines(path):
        if "".join(line.split()).lower().startswith(HEADERS):
            continue
        place = f"{path}, line {number}"
        try:
            corners, name, difficult = _read_line(line)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if difficult:
            remarks.count("difficult objects, read as any other", place)
        across, down = corners[::2], corners[1::2]
        box = [min(across), min(down), max(across), max(down)]
        if sorted(across) != [box[0]] * 2 + [box[2]] * 2 or sorted(down) != [box[1]] * 2 + [box[3]] * 2:
            remarks.count(f"oriented boxes, read as {ENCLOSING}", place)
        boxes.append(box)
        names.append(name)
    if boxes and all(is_normalised(box) for box in boxes):
        raise ValueError(f"{path}: every corner lies in [0, 1], as a share of the image; DOTA has pixels")
    return boxes, names


def _read_line(line: str) -> tuple[list[float], str, bool]:
    """Return the eight coordinates, the class, and whether the object is difficult, which may be left out."""
    words = line.split()
    fault = f"{quote_value(line.strip())} is not {FORM}"
    try:
        corners = [float(word) for word in words[:8]]
    except ValueError:
        raise ValueError(fault) from None
    rest = words[8:]
    difficult = len(rest) > 1 and rest[-1] in ("0", "1", "2")
    name = " ".join(rest[:-1] if difficult else rest)
    if len(corners) != 8 or not name or _is_number(rest[0]) or (len(rest) > 1 and not difficult):
        raise ValueError(fault)
    if not all(abs(value) < MOST_PIXELS for value in corners):
        raise ValueError(f"{quote_value(line.strip())} has a corner that is not a number of pixels")
    # The classes of DOTA itself are named as in its publication.
    return corners, PUBLISHED[LABELS[name] - 1] if name in LABELS else name, difficult and rest[-1] != "0"


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
