"""`paperlib data convert` and `paperlib data split`: own data written in another format, or distributed over splits."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from tabulate import tabulate

from paperlib.data.annotated import ReadOptions
from paperlib.data.draw_own import check_fractions, distribute
from paperlib.data.image_folder import IMAGE_SUFFIXES
from paperlib.data.own import FORMATS, find_own_splits, load_own
from paperlib.data.records import Dataset, Record
from paperlib.data.writers import WRITERS, Item, Splits
from paperlib.files import quote_value
from paperlib.progress.report import track_items

ImageFiles = Literal["copy", "link", "keep"]
"""What becomes of image files: copied, linked (the same bytes under a second name), or left where they are."""


def convert_data(
    name: str, target: Path, to: str, image_files: ImageFiles, root: Path | None, options: ReadOptions
) -> tuple[str, list[str]]:
    """Write all splits of own data in another format into a new folder, which is complete or absent.

    Args:
        name: the data, as in `load_own`.
        target: the folder to make.
        to: the format, one of `WRITERS`.
        image_files: what becomes of the images.
        root: the folder of the images, if it is not the one that the data imply.
        options: how the data are read.

    Returns:
        What was written, for people, and what was repaired or left out.

    Raises:
        FileExistsError: there is something at `target`.
        FileNotFoundError, ValueError: the data cannot be read, or not be written in this format.
    """
    _refuse_existing(target)
    classes, splits, remarks = _load_all(name, root, options)
    _write(target, to, image_files, classes, splits)
    return _describe(target, image_files, classes, splits), remarks


def split_data(
    name: str, target: Path, to: str, image_files: ImageFiles, root: Path | None, options: ReadOptions,
    fractions: Sequence[float], seed: int,
) -> tuple[str, list[str]]:  # fmt: skip
    """Distribute own data over train, val and test and write them as `convert_data` does.

    Args:
        name, target, to, image_files, root, options: as in `convert_data`; splits that the data have are put together.
        fractions: of train, val and test, stratified by class; images of equal pixels stay together.
        seed: of the order in which images are distributed.

    Returns:
        As `convert_data`.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `convert_data`.
    """
    fractions = check_fractions(fractions)
    _refuse_existing(target)
    classes, splits, remarks = _load_all(name, root, options)
    # The same name may occur in two splits.
    items = {f"{split}/{item.record.name}": item for split, found in splits.items() for item in found}
    pooled = Dataset(name, classes, [replace(item.record, name=key) for key, item in items.items()])
    drawn = distribute(pooled, fractions, seed)
    made = {split: [items[key] for key in keys] for split, keys in drawn.items() if keys}
    _write(target, to, image_files, classes, made)
    return _describe(target, image_files, classes, made), remarks


def _describe(target: Path, image_files: ImageFiles, classes: Sequence[str], splits: Splits) -> str:
    hint = f"; read it with --images {images_root(splits)}" if image_files == "keep" else ""
    return f"{count_boxes(classes, splits)}\n{target}: written{hint}"


def count_boxes(classes: Sequence[str], splits: Splits) -> str:
    """Return a table: a row for each class with its boxes in each split, and rows that count the images."""
    counts = {}
    for split, items in splits.items():
        labels = np.concatenate([np.empty(0, dtype=np.int64), *(item.record.labels for item in items)])
        counts[split or "all"] = np.bincount(labels, minlength=len(classes) + 1)[1:].tolist()
    rows = [[name, *(each[index] for each in counts.values())] for index, name in enumerate(classes)]
    rows.append(["images", *(len(items) for items in splits.values())])
    rows.append(["images without boxes", *(sum(not len(i.record.labels) for i in each) for each in splits.values())])
    return tabulate(rows, headers=["boxes", *counts], intfmt=",")


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target}: exists already and is not overwritten; name a new folder")


def _load_all(name: str, root: Path | None, options: ReadOptions) -> tuple[list[str], dict[str, list[Item]], list[str]]:
    """Return the classes of all splits together, the images of each split with labels of these, and all remarks."""
    data = {split: load_own(name, split or "train", root, options, learn=False) for split in _splits(name)}
    classes = list(dict.fromkeys(each for dataset in data.values() for each in dataset.classes))
    _check_chosen(name, list(data.values()), options)
    if not classes:
        raise ValueError(f"{name}: holds no objects, and therefore no classes")
    taken: set[str] = set()
    splits = {split: _name_items(_renumber(dataset, classes), taken) for split, dataset in data.items()}
    return classes, splits, [f"{each.name}: {remark}" for each in data.values() for remark in each.remarks]


def _check_chosen(name: str, data: Sequence[Dataset], options: ReadOptions) -> None:
    """Refuse a chosen class without objects in a format that has no list of its classes: it may be misspelt."""
    found = {each.classes[label - 1] for each in data for record in each.records for label in record.labels}
    missing = [each for each in options.classes or () if each not in found]
    if missing and not FORMATS[name.partition(":")[0]].lists_classes:
        raise ValueError(f"{name}: no object is named {quote_value(missing[0])} (--classes)")


def _splits(name: str) -> tuple[str, ...]:
    return find_own_splits(name) or ("",)


def _renumber(dataset: Dataset, classes: Sequence[str]) -> list[Record]:
    labels = np.array([0, *(classes.index(name) + 1 for name in dataset.classes)])
    return [replace(record, labels=labels[record.labels]) for record in dataset.records]


def _name_items(records: Sequence[Record], taken: set[str]) -> list[Item]:
    """Name the images for one folder: nested folders become parts of the name, equal names get a number."""
    files = [_file(record) for record in records]
    common = Path(os.path.commonpath([file.parent for file in files]))
    items = []
    for record, file in zip(records, files, strict=True):
        flat = "_".join(file.relative_to(common).parts)
        stem, suffix = os.path.splitext(flat)
        # Annotation files differ from images by the suffix, and some file systems do not tell cases apart.
        number, unique = 1, stem
        while unique.casefold() in taken:
            number += 1
            unique = f"{stem}-{number}"
        taken.add(unique.casefold())
        items.append(Item(f"{unique}{suffix}", record))
    return items


def _file(record: Record) -> Path:
    if not isinstance(record.image, Path):
        raise TypeError(f"image {record.name} is no file")
    # With --allow-outside some paths may climb, and some be absolute.
    return Path(os.path.abspath(record.image))


def _write(target: Path, to: str, image_files: ImageFiles, classes: Sequence[str], splits: Splits) -> None:
    if image_files == "keep":
        if to != "coco":
            raise ValueError("--image-files keep: only COCO files name images elsewhere; link takes no space either")
        root = images_root(splits)
        placed = {
            split: [Item(str(_file(item.record).relative_to(root)), item.record) for item in items]
            for split, items in splits.items()
        }
    else:
        placed = {split: [_place(item, to, split) for item in items] for split, items in splits.items()}
    with _new_folder(target) as folder:
        WRITERS[to].write(folder, placed, classes)
        if image_files != "keep":
            for split, items in placed.items():
                for item in track_items(items, f"images of {split}" if split else "images"):
                    _bring(_file(item.record), folder / item.name, image_files)


def images_root(splits: Splits) -> Path:
    """Return the folder that holds all images of the data."""
    return Path(os.path.commonpath([_file(item.record).parent for items in splits.values() for item in items]))


def _place(item: Item, to: str, split: str) -> Item:
    suffix = PurePosixPath(item.name).suffix
    if to != "coco" and suffix.lower() not in IMAGE_SUFFIXES:
        listed = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{item.record.image}: in this format images end in {listed}, not in {quote_value(suffix)}")
    return Item(str(PurePosixPath(WRITERS[to].image_folder(split), item.name)), item.record)


def _bring(source: Path, place: Path, image_files: ImageFiles) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if image_files == "copy":
        shutil.copyfile(source, place)
        return
    try:
        os.link(source.resolve(), place)
    except OSError as error:
        raise OSError(f"{place}: {source} cannot be linked ({error.strerror}); use --image-files copy") from None


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, and rename it to that when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{uuid.uuid4().hex[:8]}.{target.name}")
    folder.mkdir()
    try:
        yield folder
        os.sync()  # before the renaming, as in `files.replace_file`
        _refuse_existing(target)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
