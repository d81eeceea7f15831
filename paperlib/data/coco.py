"""Reader of data in COCO format: a JSON file of images, categories and annotations, and a folder of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.data.annotated import AS_IT_IS, REMEDY, SKIPPED, Annotated, ReadOptions, build_dataset
from paperlib.data.coco_values import (
    ENCLOSING,
    as_id,
    has_corners,
    is_normalised,
    is_numbers,
    polygon_box,
    read_crowd,
    read_rotation,
    read_size,
    turn_box,
)  # fmt: skip
from paperlib.data.image_names import ImageFinder, is_file
from paperlib.data.records import Dataset
from paperlib.data.remarks import Remarks
from paperlib.files import quote_value, read_json, shorten_text

TABLES = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id"),
}
"""The parts of a file that are read, and the keys that each of their entries must have."""
KINDS = {int: "a whole number", str: "a text"}
EXPECTED = "COCO has [x, y, width, height]"
NORMALISED = (
    "lies in [0, 1], as shares of the image, where COCO has pixels; multiply x and width by the image's width, y and "
    "height by its height"
)


def load_coco(
    annotations: Path, images: Path | Sequence[Path] | None = None, options: ReadOptions = AS_IT_IS,
    *, learn: bool = True,
) -> Dataset:  # fmt: skip
    """Read a COCO file; its categories, in the order of their ids, become classes 1..C.

    Crowd regions (`iscrowd`) are left out, because they mark areas, not objects. A picture is displayed as its EXIF
    orientation says; its boxes are those of the displayed picture, unless the stated size is that of the stored one:
    then they are turned with it. Sizes may be texts; null, 0 and -1 say that a size is unknown. docs/own_data.md lists
    what else is repaired; the `remarks` of the data set tell of it.

    Args:
        annotations: the JSON file.
        images: the folder to which its file names are relative, or several, of which the one with the first image
            counts; by default the folder of the JSON file.
        options: what becomes of bad boxes, and which classes are read.
        learn: the data are for training: a category without boxes is no class.

    Raises:
        FileNotFoundError: the file, the folder, or an image that is listed is missing.
        ValueError: not JSON, or not COCO: a part or key missing, an id or file given twice, an annotation of an image
            or category that is not listed, a box without area or outside its image, an image that does not open, has
            another size than is stated or lies outside of the folder. One line names the file, the place and the fault.
    """
    folders = [images] if isinstance(images, Path) else list(images or [annotations.parent])
    if not annotations.is_file():
        raise FileNotFoundError(f"{annotations}: no such file")
    if not folders[0].is_dir():
        raise FileNotFoundError(f"{folders[0]}: no such folder of images")
    remarks = Remarks()
    constants: list[str] = []
    content = _checked(read_json(annotations, constants=constants), annotations, remarks)
    if constants:
        remarks.count("NaN or infinite values, read as if nothing stood there", constants[0], len(constants))
    names, label_of, groups = _read_categories(content["categories"], remarks)
    objects: dict[Any, list[_Object]] = {image["id"]: [] for image in content["images"]}
    _refuse_other_boxes(content["annotations"], annotations)
    for number, entry in enumerate(content["annotations"]):
        place = f"annotations[{number}]"
        try:
            found = _read_object(entry, objects, label_of, place, options, remarks)
        except ValueError as error:
            raise ValueError(f"{annotations}, {place}: {error}") from None
        if found:
            objects[as_id(entry["image_id"])].append(found)
    _remark_repeated(content["annotations"], remarks)
    first = content["images"][0]["file_name"]
    folder = next((each for each in folders if is_file(each / first)), folders[0])
    finder = ImageFinder(folder, annotations, allow_outside=options.allow_outside, remarks=remarks)
    listed = [_annotated(image, objects[image["id"]], finder, annotations) for image in content["images"]]
    name = f"coco:{annotations.name}"
    return build_dataset(name, annotations, names, listed, options, remarks, learn=learn, groups=groups)


_Object = tuple[list[float], int, bool]
"""A box xyxy in pixels, its label, and whether it lies around a turned box."""


def _checked(content: Any, path: Path, remarks: Remarks) -> dict[str, list[dict[str, Any]]]:
    """Check that the parts of a file are lists of entries with unique ids and names, and return its content.

    A category that is listed again under the same id and name is left out.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not COCO: expected an object with {', '.join(TABLES)}")
    for table, keys in TABLES.items():
        entries = content.get(table)
        if not isinstance(entries, list):
            raise ValueError(f"{path}: not COCO: no list of {table}")
        for number, entry in enumerate(entries):
            if missing := [key for key in keys if not isinstance(entry, dict) or key not in entry]:
                raise ValueError(f"{path}, {table}[{number}]: has no {missing[0]}")
    for table in ("images", "categories"):
        if not content[table]:
            raise ValueError(f"{path}: lists no {table}")
        for entry in content[table]:
            entry["id"] = as_id(entry["id"])
        if table == "categories":
            content[table] = _leave_out_repeated(content[table], path, remarks)
        _check_unique([entry["id"] for entry in content[table]], f"{path}, {table}: id", (int, str))
    _check_unique([entry["file_name"] for entry in content["images"]], f"{path}, images: file_name", (str,))
    _check_texts([entry["name"] for entry in content["categories"]], f"{path}, categories: name", (str,))
    return content


def _leave_out_repeated(entries: Sequence[dict[str, Any]], path: Path, remarks: Remarks) -> list[dict[str, Any]]:
    """Return the categories without those that repeat id and name of an earlier one."""
    kept: dict[str, dict[str, Any]] = {}
    for entry in entries:
        # Not the id itself: what is no number or text is refused later, and may have no hash.
        known = kept.setdefault(repr(entry["id"]), entry)
        if known["name"] != entry["name"]:
            names = f"{quote_value(known['name'])} and {quote_value(entry['name'])}"
            raise ValueError(f"{path}, categories: id {quote_value(entry['id'])} is given to {names}")
        if known is not entry:
            remarks.count("categories listed again, left out", quote_value(entry["name"]))
    return list(kept.values())


def _check_texts(values: Sequence[Any], place: str, kinds: tuple[type, ...]) -> None:
    if wrong := [value for value in values if type(value) not in kinds]:
        raise ValueError(f"{place} {quote_value(wrong[0])} is not {' or '.join(KINDS[kind] for kind in kinds)}")
    # Half of a pair of surrogates, as a text that was cut off ends with, is no character.
    if cut := [value for value in values if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)]:
        raise ValueError(f"{place} {quote_value(cut[0])} is not valid Unicode")


def _check_unique(values: Sequence[Any], place: str, kinds: tuple[type, ...]) -> None:
    _check_texts(values, place, kinds)
    # Numbers and texts together could not be sorted.
    if mixed := [value for value in values if type(value) is not type(values[0])]:
        raise ValueError(f"{place} {quote_value(mixed[0])} is {KINDS[type(mixed[0])]}, {quote_value(values[0])} is not")
    value, times = max(Counter(values).items(), key=lambda item: item[1], default=(None, 0))
    if times > 1:
        raise ValueError(f"{place} {quote_value(value)} is given {times} times")


def _read_categories(
    entries: Sequence[Mapping[str, Any]], remarks: Remarks
) -> tuple[list[str], dict[Any, int], set[int]]:
    """Return the names in the order of their ids, the label of each id, and the indices of groups.

    Categories of one name become one class, as the root category of a Roboflow export and its only class. A group is
    a category that others name as their `supercategory`.
    """
    # Ids may have gaps: the 80 categories of COCO itself have ids from 1 to 90.
    ordered = sorted(entries, key=lambda entry: entry["id"])
    names = list(dict.fromkeys(entry["name"] for entry in ordered))
    label_of = {entry["id"]: names.index(entry["name"]) + 1 for entry in ordered}
    for name, times in Counter(entry["name"] for entry in ordered).items():
        if times > 1:
            remarks.count("categories of one name, read as one class", quote_value(name), times)
    above = {entry.get("supercategory") for entry in ordered if _is_below(entry)}
    roots = {entry["name"] for entry in ordered if entry["id"] == 0 and entry.get("supercategory") == "none"}
    return names, label_of, {index for index, name in enumerate(names) if name in above | roots}


def _is_below(entry: Mapping[str, Any]) -> bool:
    above = entry.get("supercategory")
    return isinstance(above, str) and above != entry["name"]


def _refuse_other_boxes(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Refuse a file whose boxes are all shares of their images, or all corners, as their areas tell."""
    boxes: list[Any] = [entry.get("bbox") for entry in entries]
    if not boxes:
        return
    place = f"{path}, annotations[0]: bbox {quote_value(boxes[0])}, like every other,"
    if all(is_numbers(box) and is_normalised(box) for box in boxes):
        raise ValueError(f"{place} {NORMALISED}")
    if all(is_numbers(entry.get("bbox")) and has_corners(entry) for entry in entries):
        raise ValueError(f"{place} has the area of a box [left, top, right, bottom]; {EXPECTED}")


def _read_object(
    entry: Mapping[str, Any], images: Mapping, labels: Mapping[Any, int], place: str, options: ReadOptions,
    remarks: Remarks,
) -> _Object | None:  # fmt: skip
    """Return the box and label of an annotation; None if it is left out.

    Raises:
        ValueError: tells the fault; the caller adds the place.
    """
    for key, known in (("image_id", images), ("category_id", labels)):
        value = as_id(entry[key])
        # A list or an object has no hash, so `in` would raise TypeError.
        if isinstance(value, list | dict) or value not in known:
            raise ValueError(f"{key} {quote_value(entry[key])} is not listed")
    if read_crowd(entry.get("iscrowd")):
        remarks.count("crowd regions (iscrowd), left out", place)
        return None
    if entry.get("ignore") in (1, "1"):
        remarks.count("annotations marked to ignore, read as objects like others", place)
    box, turned = _read_box(entry, place, remarks)
    if not is_numbers(box):
        fault = f"bbox {quote_value(box)} is not four numbers [x, y, width, height]"
    elif box[2] <= 0 or box[3] <= 0:
        fault = f"bbox {quote_value(box)} has no area"
    elif is_normalised(box) and box[2] < 1 and box[3] < 1:
        fault = f"bbox {quote_value(box)} {NORMALISED}"
    else:
        # COCO gives x, y, width, height.
        return [box[0], box[1], box[0] + box[2], box[1] + box[3]], labels[as_id(entry["category_id"])], turned
    # Of a box that is none nothing could be cut.
    if options.bad_boxes == "error" or (options.bad_boxes == "clip" and not is_numbers(box)):
        raise ValueError(f"{fault}; {REMEDY}")
    remarks.count(SKIPPED, place)
    return None


def _read_box(entry: Mapping[str, Any], place: str, remarks: Remarks) -> tuple[Any, bool]:
    """Return `[x, y, width, height]`, which is not checked yet, and whether it lies around a turned box."""
    box = entry.get("bbox")
    if (mode := entry.get("bbox_mode", 1)) not in (1, "XYWH_ABS"):
        raise ValueError(f"bbox_mode {quote_value(mode)} is not 1; {EXPECTED}")
    if box is None or box == []:
        box = polygon_box(entry.get("segmentation"))
        if box is None:
            raise ValueError("has no bbox, and no segmentation by polygons that could stand for it")
        remarks.count("annotations without bbox, read as the box around their polygons", place)
    angle = read_rotation(entry)
    if not angle or not is_numbers(box):
        return box, False
    remarks.count(f"turned boxes (rotation), read as {ENCLOSING}", place)
    return turn_box(box, angle), True


def _remark_repeated(entries: Sequence[Mapping[str, Any]], remarks: Remarks) -> None:
    # Nothing depends on these ids: they may be of any kind, also lists, which could not be counted.
    counts = Counter(entry["id"] for entry in entries if isinstance(entry.get("id"), int | str))
    repeated = [(value, times) for value, times in counts.items() if times > 1]
    if repeated:
        place = f"id {quote_value(repeated[0][0])}"
        remarks.count("ids that several annotations share, which nothing depends on", place, len(repeated))


def _annotated(image: Mapping[str, Any], objects: Sequence[_Object], finder: ImageFinder, path: Path) -> Annotated:
    name = image["file_name"]
    return Annotated(
        name,
        finder.find(name),
        np.array([box for box, _, _ in objects], dtype=np.float64).reshape(-1, 4),
        np.array([label for _, label, _ in objects], dtype=np.int64),
        f"image {shorten_text(name, 100)}",
        read_size(image, f"{path}, image {quote_value(name)}"),
        np.array([turned for _, _, turned in objects], dtype=bool),
    )
