"""Reader of data in COCO format: a JSON file of images, categories and annotations, and a folder of images."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.data.pictures import Header, read_header
from paperlib.data.records import Dataset, Record, check_boxes, trim_boxes, turn_boxes
from paperlib.files import quote_value, read_json, shorten_text

TABLES = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}
"""The parts of a file that are read, and the keys that each of their entries must have."""
SIZE_KEYS = ("width", "height")
KINDS = {int: "a whole number", str: "a text"}
NUMBER = re.compile(r"[-+]?\d{1,12}(\.\d{0,12})?", re.ASCII)
MOST_PIXELS = 1e9
"""Limit of coordinates; larger ones are refused."""


def load_coco(annotations: Path, images: Path | None = None) -> Dataset:
    """Read a COCO file; its categories, in the order of their ids, become classes 1..C.

    Crowd regions (`iscrowd`) are ignored, because they mark areas, not objects. A picture is displayed as its EXIF
    orientation says; its boxes are those of the displayed picture, unless the stated size is that of the stored one:
    then they are turned with it. Sizes may be texts; null, 0 and -1 say that a size is unknown.

    Args:
        annotations: the JSON file.
        images: the folder to which its file names are relative; by default the folder of the JSON file.

    Raises:
        FileNotFoundError: the file, the folder, or an image that is listed is missing.
        ValueError: not JSON, or not COCO: a part or key missing, an id or file given twice, an annotation of an image
            or category that is not listed, a box without area or outside its image, an image that does not open or
            has another size than is stated. One line names the file, the place and the fault.
    """
    folder = images if images is not None else annotations.parent
    if not annotations.is_file():
        raise FileNotFoundError(f"{annotations}: no such file")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    content = _checked(read_json(annotations), annotations)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    # Ids may have gaps: the 80 categories of COCO itself have ids from 1 to 90.
    label_of = {category["id"]: label for label, category in enumerate(categories, 1)}
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for number, entry in enumerate(content["annotations"]):
        _check_annotation(entry, objects, label_of, f"{annotations}, annotations[{number}]")
        if not entry.get("iscrowd"):
            objects[entry["image_id"]].append(entry)
    records = [_record(image, objects[image["id"]], label_of, folder, annotations) for image in content["images"]]
    return Dataset(f"coco:{annotations.name}", [category["name"] for category in categories], records)


def _checked(content: Any, path: Path) -> dict[str, list[dict[str, Any]]]:
    """Check that the parts of a file are lists of entries with unique ids and names, and return its content."""
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not COCO: expected an object with {', '.join(TABLES)}")
    for table, keys in TABLES.items():
        entries = content.get(table)
        if not isinstance(entries, list):
            raise ValueError(f"{path}: not COCO: no list of {table}")
        for number, entry in enumerate(entries):
            if missing := [key for key in keys if not isinstance(entry, dict) or key not in entry]:
                raise ValueError(f"{path}, {table}[{number}]: has no {missing[0]}")
        _check_unique([entry["id"] for entry in entries if "id" in entry], f"{path}, {table}: id", (int, str))
        for key in {"file_name", "name"}.intersection(keys):
            _check_unique([entry[key] for entry in entries], f"{path}, {table}: {key}", (str,))
    for table in ("images", "categories"):
        if not content[table]:
            raise ValueError(f"{path}: lists no {table}")
    return content


def _check_unique(values: Sequence[Any], place: str, kinds: tuple[type, ...]) -> None:
    if wrong := [value for value in values if type(value) not in kinds]:
        raise ValueError(f"{place} {quote_value(wrong[0])} is not {' or '.join(KINDS[kind] for kind in kinds)}")
    # Numbers and texts together could not be sorted.
    if mixed := [value for value in values if type(value) is not type(values[0])]:
        raise ValueError(f"{place} {quote_value(mixed[0])} is {KINDS[type(mixed[0])]}, {quote_value(values[0])} is not")
    value, times = max(Counter(values).items(), key=lambda item: item[1], default=(None, 0))
    if times > 1:
        raise ValueError(f"{place} {quote_value(value)} is given {times} times")


def _check_annotation(entry: dict[str, Any], images: dict, categories: dict, place: str) -> None:
    for key, known in (("image_id", images), ("category_id", categories)):
        # A list or an object has no hash, so `in` would raise TypeError.
        if isinstance(entry[key], list | dict) or entry[key] not in known:
            raise ValueError(f"{place}: {key} {quote_value(entry[key])} is not listed")
    box = entry["bbox"]
    # The exact type, because `true` in JSON becomes a bool, which is an instance of int.
    numbers = isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)
    if not (numbers and all(abs(value) < MOST_PIXELS for value in box)):
        raise ValueError(f"{place}: bbox {quote_value(box)} is not four numbers [x, y, width, height]")
    if box[2] <= 0 or box[3] <= 0:
        raise ValueError(f"{place}: bbox {quote_value(box)} has no area")


def _record(
    image: dict[str, Any], objects: list[dict[str, Any]], label_of: dict[int, int], folder: Path, path: Path
) -> Record:
    name = image["file_name"]
    file = folder / name
    if not _is_file(file):
        raise FileNotFoundError(f"{shorten_text(str(file), 200)}: no such image (listed in {path})")
    header = read_header(file)
    as_stored = _check_size(_stated_size(image, f"{path}, image {quote_value(name)}"), header, file, path)
    corners = np.array([entry["bbox"] for entry in objects], dtype=np.float64).reshape(-1, 4)
    # COCO gives x, y, width, height.
    corners[:, 2:] += corners[:, :2]
    size = header.stored_size() if as_stored else header.size
    # Rounding in annotation tools leaves boxes that stick out by a pixel at most.
    boxes = trim_boxes(corners, size, overhang=1).astype(np.float32)
    check_boxes(boxes, size, f"{path}, image {shorten_text(name, 100)}")
    if as_stored:
        boxes = turn_boxes(boxes, size, header.orientation)
    labels = np.array([label_of[entry["category_id"]] for entry in objects], dtype=np.int64)
    return Record(name, file, boxes, labels)


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):
        # A name that is too long for the file system, or has a zero character.
        return False


def _stated_size(image: dict[str, Any], place: str) -> tuple[int | None, ...]:
    """Return the stated width and height; null, 0 and -1, as tools write for unknown ones, become None."""
    stated = []
    for key in SIZE_KEYS:
        value = image.get(key)
        if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
            value = float(value)
        if value is None or value == "":
            stated.append(None)
        elif isinstance(value, int | float) and -1 <= value < MOST_PIXELS and value == math.floor(value):
            stated.append(int(value) if value > 0 else None)
        else:
            raise ValueError(f"{place}: {key} {quote_value(image[key])} is not a number of pixels")
    return tuple(stated)


def _check_size(stated: tuple[int | None, ...], header: Header, file: Path, path: Path) -> bool:
    """Compare the stated size with the displayed one, or with the one before the picture is turned.

    Returns:
        Whether only the second fits, so that the boxes are those of the picture as it is stored.
    """

    def fits(size: tuple[int, int]) -> bool:
        return all(value in (None, own) for value, own in zip(stated, size, strict=True))

    if fits(header.size):
        return False
    if fits(header.stored_size()):
        return True
    width, height = header.size
    said = " x ".join("?" if value is None else str(value) for value in stated)
    turn = ""
    if header.orientation > 1:
        turn = f" (as displayed; its EXIF orientation {header.orientation} turns the stored picture)"
    raise ValueError(f"{file}: is {width} x {height} pixels{turn}, {path} says {said}")
