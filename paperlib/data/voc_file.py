"""One XML file in Pascal VOC format, as published and as annotation tools write it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from paperlib.data.annotated import Size
from paperlib.data.coco_values import ENCLOSING, MOST_PIXELS, is_normalised, polygon_box, read_size, turn_box
from paperlib.data.layouts import MAX_ANNOTATION_BYTES
from paperlib.data.remarks import Remarks
from paperlib.files import quote_value, read_bytes, shorten_text

CORNERS = ("xmin", "ymin", "xmax", "ymax")
TURNED = ("cx", "cy", "w", "h", "angle")
FLAGS = ("difficult", "truncated", "occluded")


@dataclass(frozen=True)
class VocObject:
    """An object: class, box xyxy in pixels from the image's corner, and whether it lies around a turned box."""

    name: str
    box: list[float]
    turned: bool = False


@dataclass(frozen=True)
class VocImage:
    """What a file says: the image's file name, None if not stated, its size and its objects."""

    file_name: str | None
    size: Size
    objects: list[VocObject]


def read_voc_file(path: Path, remarks: Remarks) -> VocImage:
    """Read an annotation; `remarks` gets what is read otherwise than it stands there.

    A corner of the file is a pixel, counted from 1, and the pixel of the second corner belongs to the box: the box of
    an image of 40 x 30 pixels is 1, 1, 40, 30 in the file, and (0, 0, 40, 30) here.

    Raises:
        ValueError: names the file, the object and the fault.
    """
    root = _parse(path)
    size = root.find("size")
    sides = {} if size is None else {key: (size.findtext(key) or "").strip() for key in ("width", "height")}
    entries, objects = root.findall("object"), []
    if len(entries) < len(list(root.iter("object"))):
        raise ValueError(f"{path}: not Pascal VOC: an <object> is not directly inside of <annotation>")
    for number, entry in enumerate(entries, 1):
        place = f"{path}, object {number}"
        try:
            objects.append(_read_object(entry, place, remarks))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    # Both systems' separators: the file may have been written on another one.
    name = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    return VocImage(name or None, read_size(sides, str(path)), objects)


def _parse(path: Path) -> ElementTree.Element:
    content = read_bytes(path, MAX_ANNOTATION_BYTES)
    if b"<!ENTITY" in content:
        raise ValueError(f"{path}: defines XML entities, which are not read; remove its <!DOCTYPE …>")
    try:
        # Some tools write line breaks before the XML declaration, which has to come first.
        root = ElementTree.fromstring(content.lstrip())
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        # An encoding that Python does not know is a LookupError.
        raise ValueError(f"{path}: not XML ({shorten_text(str(error), 200)})") from None
    if root.tag != "annotation":
        raise ValueError(f"{path}: not Pascal VOC: <{shorten_text(root.tag)}> instead of <annotation>")
    return root


def _read_object(entry: ElementTree.Element, place: str, remarks: Remarks) -> VocObject:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise ValueError("has no name")
    for flag in FLAGS:
        if (entry.findtext(flag) or "").strip().lower() in ("1", "true", "yes"):
            remarks.count(f"{flag} objects, read as any other", place)
    if (corners := entry.find("bndbox")) is not None:
        left, top, right, bottom = values = [_read_number(corners, key, "bndbox") for key in CORNERS]
        if is_normalised(values) and not all(value.is_integer() for value in values):
            raise ValueError("its corners lie in [0, 1], as shares of the image, where VOC has pixels")
        if min(left, top) == 0:
            remarks.count("corners of 0, though VOC counts pixels from 1", place)
        return VocObject(name, [left - 1, top - 1, right, bottom])
    if (turned := entry.find("robndbox")) is not None:
        x, y, width, height, angle = (_read_number(turned, key, "robndbox") for key in TURNED)
        remarks.count(f"turned boxes (robndbox), read as {ENCLOSING}", place)
        box = turn_box([x - width / 2, y - height / 2, width, height], math.degrees(angle))
        return VocObject(name, [box[0], box[1], box[0] + box[2], box[1] + box[3]], turned=True)
    if (outline := entry.find("polygon")) is not None:
        return VocObject(name, _read_polygon(outline, place, remarks))
    raise ValueError(f"has no bndbox with {', '.join(CORNERS)}")


def _read_polygon(outline: ElementTree.Element, place: str, remarks: Remarks) -> list[float]:
    """Return the box around a polygon of points (LabelMe), or of x1, y1, x2, y2, … (Roboflow)."""
    points = [[_read_number(point, key, "polygon/pt") for key in ("x", "y")] for point in outline.iterfind("pt")]
    if not points:
        count = 0
        while outline.find(f"x{count + 1}") is not None:
            count += 1
            points.append([_read_number(outline, f"{key}{count}", "polygon") for key in ("x", "y")])
    box = polygon_box([value for point in points for value in point])
    if box is None:
        raise ValueError("its polygon has fewer than three points")
    remarks.count("objects without bndbox, read as the box around their polygon", place)
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def _read_number(parent: ElementTree.Element, key: str, kind: str) -> float:
    text = parent.findtext(key)
    if text is None:
        raise ValueError(f"its {kind} has no {key}")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < MOST_PIXELS:
        raise ValueError(f"{kind}/{key} {quote_value(text)} is not a number of pixels")
    return value
