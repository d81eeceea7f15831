"""Reader of data in YOLO format: a `data.yaml`, folders of images, and one text file of boxes per image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.data.annotated import AS_IT_IS, Annotated, ReadOptions, build_dataset
from paperlib.data.image_folder import IMAGE_SUFFIXES, NO_LABELS, walk_files
from paperlib.data.image_names import REMEDY, ImageFinder
from paperlib.data.layouts import text_lines
from paperlib.data.records import Dataset
from paperlib.data.remarks import Remarks
from paperlib.data.split_names import find_split, known_splits
from paperlib.files import quote_value, read_mapping, read_text, shorten_text

USUAL_FILES = ("data.yaml", "data.yml", "dataset.yaml")
CLASS_LISTS = ("classes.txt", "obj.names")
"""Files of annotation tools: a line for each class."""
ALL = ""
"""The key of images that are not split."""
MAX_LIST_BYTES = 64 * 2**20
"""Largest file that lists images."""
TOLERANCE = 0.01
"""How far rounding may carry a box out of its image, as a share of its side."""


def load_yolo(
    path: Path, split: str, images: Path | None = None, options: ReadOptions = AS_IT_IS, *, learn: bool = True
) -> Dataset:
    """Read one split of a data set in YOLO format; its names, in their order, become classes 1..C.

    The labels of `…/images/a.jpg` are in `…/labels/a.txt`, or beside the image: one line `class x y width height` per
    object, as shares of the image, from its centre. An image without labels shows none of the classes.

    Args:
        path: the YAML file; it names the folders or lists of images of each split. Or a folder with one, or with
            `classes.txt` and images, as annotation tools write it, which is one split.
        split: `train`, `val` or `test`.
        images: the folder to which those are relative; by default the file's `path`, or its own folder.
        options: what becomes of bad boxes, and which classes are read.
        learn: the data are for training.

    Raises:
        FileNotFoundError: the file, or a folder or image that it names, is missing.
        ValueError: no such split, no names of classes, a label that is not five numbers, not in [0, 1], or of a class
            beyond the names, or a path out of the folder. One line names the file, the line and the fault.
    """
    path, content = _read_description(path)
    names = _read_names(content.get("names"), path)
    count = content.get("nc")
    if count is not None and count != len(names):
        raise ValueError(f"{path}: nc is {quote_value(count)}, but there are {len(names)} names")
    present = [key for key, value in content.items() if value]
    key = ALL if ALL in content else find_split(split, present)
    if key is None:
        raise ValueError(f"{path}: has no {split}: a folder of images, or a list of them")
    remarks = Remarks()
    root = images or _read_root(content.get("path"), path, options)
    finder = ImageFinder(root, path, allow_outside=options.allow_outside, remarks=remarks)
    reader = _LabelReader(len(names), remarks, has_keypoints=bool(content.get("kpt_shape")))
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    found: dict[str, None] = {}
    for entry in entries:
        for name in _image_names(entry, key, root, path, options):
            if name in found:
                remarks.count("images listed twice, read once", quote_value(name))
            found[name] = None
    listed = [reader.read_image(name, finder.find(name)) for name in found]
    if not listed:
        raise ValueError(f"{path}: {key} {quote_value(content[key])} holds no images")
    return build_dataset(f"yolo:{path.name}", path, names, listed, options, remarks, learn=learn)


def yolo_splits(path: Path) -> tuple[str, ...]:
    """Return which of train, val and test a file names; empty if the data are one split."""
    content = _read_description(path)[1]
    return known_splits([key for key, value in content.items() if value])


def is_yolo(folder: Path) -> bool:
    """Return whether a folder holds a YAML file, or a list of classes, as those of this format."""
    return bool(_find_files(folder))


def _find_files(folder: Path) -> list[Path]:
    """Return the YAML files of a folder, the usual one alone if it is there; else a list of classes."""
    for names in (USUAL_FILES, ("*.yaml", "*.yml"), CLASS_LISTS):
        found = sorted(file for name in names for file in folder.glob(name) if file.is_file())
        if found:
            return found[:1] if names == USUAL_FILES else found
    return []


def _read_description(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that describes the data, and its content."""
    if path.is_dir():
        files = _find_files(path)
        if not files:
            raise FileNotFoundError(f"{path / USUAL_FILES[0]}: no such file")
        if len(files) > 1:
            raise ValueError(f"{path}: holds {files[0].name} and {files[1].name}; name one of them")
        path = files[0]
    if path.name not in CLASS_LISTS:
        return path, read_mapping(path)
    return path, {"names": [line.strip() for _, line in text_lines(path)], ALL: "."}


def _read_names(names: Any, path: Path) -> list[str]:
    """Return the names of the classes, from a list or from a mapping of 0, 1, … to names."""
    if isinstance(names, Mapping):
        names = {int(key) if str(key).isdecimal() else key: name for key, name in names.items()}
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise ValueError(f"{path}: names: the keys are not 0 to {len(names) - 1}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: has no names of the classes; give names: [first, second, …]")
    texts: list[Any] = [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in names]
    if wrong := [name for name in texts if not isinstance(name, str)]:
        raise ValueError(f"{path}: names: {quote_value(wrong[0])} is not a text")
    if twice := [name for name in texts if texts.count(name) > 1]:
        raise ValueError(f"{path}: names: {quote_value(twice[0])} is given {texts.count(twice[0])} times")
    return texts


def _read_root(root: Any, path: Path, options: ReadOptions) -> Path:
    """Return the folder of the data; `path` of a file that was made elsewhere often names none that is here."""
    if root is None or root == "":
        return path.parent
    if not isinstance(root, str):
        raise ValueError(f"{path}: path {quote_value(root)} is not a text")
    folder = path.parent / root
    inside = folder.resolve().is_relative_to(path.parent.resolve())
    # The folder is where the user keeps the file: what the file says of other folders is not followed.
    return folder if folder.is_dir() and (inside or options.allow_outside) else path.parent


def _image_names(entry: Any, key: str, root: Path, path: Path, options: ReadOptions) -> Iterator[str]:
    """Yield the names of the images, relative to the root, of a folder or of a text file that lists them."""
    if not isinstance(entry, str):
        raise ValueError(f"{path}: {key} {quote_value(entry)} is not a text")
    # Files made elsewhere say ../train/images or /content/data/train/images, though the folder lies beside them.
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    candidates = [root / entry, *(root.joinpath(*parts[start:]) for start in range(len(parts)))]
    place = next((each for each in candidates if _is_inside(each, root, options)), None)
    if place is None:
        if _is_inside(candidates[0], root, replace(options, allow_outside=True)):
            raise ValueError(f"{path}: {key} {quote_value(entry)} leads out of {root}; {REMEDY}")
        raise FileNotFoundError(f"{path}: {key} {quote_value(entry)}: no such folder or list in {root}")
    if place.is_file():
        for line in read_text(place, MAX_LIST_BYTES).splitlines():
            if line.strip():
                yield line.strip().removeprefix("./")
        return
    for name in walk_files(place, IMAGE_SUFFIXES):
        file = place / name
        yield str(file.relative_to(root)) if file.is_relative_to(root) else str(file)


def _is_inside(place: Path, root: Path, options: ReadOptions) -> bool:
    try:
        return place.exists() and (options.allow_outside or place.resolve().is_relative_to(root.resolve()))
    except (OSError, ValueError):
        # A name that is too long for the file system, or has a zero character.
        return False


@dataclass(frozen=True)
class _LabelReader:
    """Reads the labels of images, of so many classes."""

    classes: int
    remarks: Remarks
    has_keypoints: bool

    def read_image(self, name: str, file: Path) -> Annotated:
        """Return an image with its labels; errors as in `load_yolo`."""
        labels_file = _labels_file(file)
        rows = []
        if labels_file.is_file():
            for number, line in text_lines(labels_file):
                try:
                    rows.append(self._read_line(line))
                except ValueError as error:
                    raise ValueError(f"{labels_file}, line {number}: {error}") from None
        else:
            self.remarks.count(NO_LABELS, quote_value(name))
        values = np.array(rows, dtype=np.float64).reshape(-1, 5)
        centres, extents = values[:, 1:3], values[:, 3:5]
        boxes = np.concatenate([centres - extents / 2, centres + extents / 2], axis=1)
        # A rounded share may lead out of a large image by several pixels.
        near = (boxes >= -TOLERANCE) & (boxes <= 1 + TOLERANCE)
        boxes = np.where(near, boxes.clip(0, 1), boxes)
        place = f"image {shorten_text(name, 100)}"
        return Annotated(name, file, boxes, values[:, 0].astype(np.int64) + 1, place, are_shares=True)

    def _read_line(self, line: str) -> list[float]:
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            values = []
        if self.has_keypoints:
            values = values[:5]
        if len(values) > 5 and len(values) % 2 == 1:
            # A polygon: class x1 y1 x2 y2 …
            xs, ys = values[1::2], values[2::2]
            values = [values[0], (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]
        if len(values) != 5 or not all(map(math.isfinite, values)):
            raise ValueError(f"{quote_value(line)} is not five numbers: class x y width height")
        if not (values[0].is_integer() and 0 <= values[0] < self.classes):
            raise ValueError(f"class {values[0]:g} is none of 0 to {self.classes - 1}, as many as there are names")
        if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in values[1:]):
            raise ValueError(f"{quote_value(line)} is not in [0, 1]: x y width height are shares of the image")
        return values


def _labels_file(file: Path) -> Path:
    """Return the text file of an image: in the folder `labels` that mirrors `images`, or beside the image."""
    parts = list(file.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        mirrored = Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
        if mirrored.is_file():
            return mirrored
    return file.with_suffix(".txt")
