"""Reader of data in Pascal VOC format: one XML file per image, and lists of the images of each split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from paperlib.data.annotated import AS_IT_IS, Annotated, ReadOptions, build_dataset
from paperlib.data.image_folder import NO_LABELS, ImageFolder, collect_names, first_folder, has_file, walk_files
from paperlib.data.layouts import text_lines
from paperlib.data.records import Dataset
from paperlib.data.remarks import Remarks
from paperlib.data.split_names import find_split, known_splits, missing_split
from paperlib.data.voc_file import VocObject, read_voc_file
from paperlib.files import quote_value, shorten_text

ANNOTATIONS = ("Annotations", "annotations", "Annotation", "xmls", "labels")
IMAGES = ("JPEGImages", "images", "Images")
LISTS = "ImageSets/Main"
CLASS_LIST = re.compile(r".+_(train|val|trainval|test)")
"""Lists of one class, as `ship_train.txt`, repeat what the annotations say."""


def load_voc(
    folder: Path, split: str, images: Path | None = None, options: ReadOptions = AS_IT_IS, *, learn: bool = True
) -> Dataset:
    """Read one split of a folder in Pascal VOC format; its classes are the names of its objects, sorted.

    Read are `Annotations`, `JPEGImages` and `ImageSets/Main/<split>.txt`, or folders `train`, `val` and `test`, or one
    folder of XML files and images, which is one split. Corners count pixels from 1, the last one included. Difficult,
    truncated and occluded objects are objects like others. An image without an annotation shows none of the classes.

    Args:
        folder: the folder.
        split: `train`, `val`, `test`, or the name of another list.
        images: the folder of the images, if it is another one.
        options: what becomes of bad boxes, and which classes are read.
        learn: the data are for training.

    Raises:
        FileNotFoundError: the folder, an image of an annotation, or both of a listed name are missing.
        ValueError: no such split, or an annotation that is not VOC. One line names the file, the object and the fault.
    """
    layout = _find_layout(folder, split)
    remarks = Remarks()
    found = ImageFolder(images or layout.images, folder, allow_outside=options.allow_outside, remarks=remarks)
    parsed = list(_read_images(layout, found, remarks))
    classes = collect_names((each.name for *_, objects in parsed for each in objects), options, learn=learn)
    label_of = {name: label for label, name in enumerate(classes, 1)}
    listed = [
        Annotated(
            name,
            file,
            np.array([each.box for each in objects], dtype=np.float64).reshape(-1, 4),
            np.array([label_of[each.name] for each in objects], dtype=np.int64),
            place,
            size,
            np.array([each.turned for each in objects], dtype=bool),
        )
        for name, file, place, size, objects in parsed
    ]
    if not listed:
        raise ValueError(f"{folder}: holds no images")
    return build_dataset(f"voc:{folder.name}", folder, classes, listed, options, remarks, learn=learn)


def voc_splits(folder: Path) -> tuple[str, ...]:
    """Return which of train, val and test a folder has; empty if it is one split."""
    return known_splits(_find_lists(folder)) or known_splits(_split_folders(folder))


def is_voc(folder: Path) -> bool:
    """Return whether a folder holds XML files where those of this format are."""
    places = [folder, *(folder / name for name in ANNOTATIONS), *_split_folders(folder).values()]
    return any(has_file(place, {".xml"}) for place in places)


@dataclass(frozen=True)
class _Layout:
    """Where the annotations and images of a split are, and the list of its images, if there is one."""

    annotations: Path
    images: Path
    listing: Path | None = None


def _find_layout(folder: Path, split: str) -> _Layout:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    lists, folders = _find_lists(folder), _split_folders(folder)
    listing = None
    if name := find_split(split, lists):
        listing = lists[name]
    elif known_splits(lists):
        raise ValueError(missing_split(f"{folder / LISTS}", split, lists))
    elif name := find_split(split, folders):
        folder = folders[name]
    elif known_splits(folders):
        raise ValueError(missing_split(str(folder), split, folders))
    annotations = first_folder(folder, ANNOTATIONS)
    return _Layout(annotations, first_folder(folder, IMAGES), listing)


def _find_lists(folder: Path) -> dict[str, Path]:
    files = sorted((folder / LISTS).glob("*.txt"))
    return {file.stem: file for file in files if not CLASS_LIST.fullmatch(file.stem)}


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of splits that hold annotations, by name."""
    inner = {place.name: place for place in folder.iterdir() if place.is_dir()} if folder.is_dir() else {}
    wanted = (find_split(split, inner) for split in known_splits(inner))
    places = {name: inner[name] for name in wanted if name}
    return {name: place for name, place in places.items() if has_file(first_folder(place, ANNOTATIONS), {".xml"})}


_Parsed = tuple[str, Path, str, tuple[int | None, int | None], list[VocObject]]
"""An image: its name and file, how messages name it, its stated size, its objects."""


def _read_images(layout: _Layout, found: ImageFolder, remarks: Remarks) -> Iterator[_Parsed]:
    annotations = {str(PurePosixPath(name).with_suffix("")): name for name in walk_files(layout.annotations, {".xml"})}
    keys = _read_list(layout.listing, annotations, found, remarks) if layout.listing else list(annotations)
    seen = set()
    for key in keys:
        if key not in annotations:
            name, file = found.find(key, None, layout.annotations / f"{key}.xml")
            remarks.count(NO_LABELS, quote_value(name))
            yield name, file, f"image {shorten_text(name, 100)}", (None, None), []
            continue
        path = layout.annotations / annotations[key]
        content = read_voc_file(path, remarks)
        name, file = found.find(key, content.file_name, path)
        seen.add(name)
        yield name, file, annotations[key], content.size, content.objects
    if layout.listing is None:
        for name in found.names:
            if name not in seen:
                remarks.count(NO_LABELS, quote_value(name))
                yield name, found.check(name), f"image {shorten_text(name, 100)}", (None, None), []


def _read_list(listing: Path, annotations: dict[str, str], found: ImageFolder, remarks: Remarks) -> list[str]:
    """Return the names of a list, each once, and raise an error for one that is no image."""
    keys: dict[str, None] = {}
    for number, line in text_lines(listing):
        key = line.strip()
        if key not in annotations and not found.has(key):
            # Some tools add the ending of the image, or 1 and -1 for images with and without a class.
            key = re.sub(r"\s+-?[01]$", "", key)
            key = str(PurePosixPath(key).with_suffix("")) if found.has_file(key) else key
        if key not in annotations and not found.has(key):
            raise FileNotFoundError(f"{listing}, line {number}: {quote_value(key)} has no image and no annotation")
        if key in keys:
            remarks.count("images listed twice, read once", f"{listing.name}, line {number}")
        keys[key] = None
    if not keys:
        raise ValueError(f"{listing}: lists no images")
    return list(keys)
