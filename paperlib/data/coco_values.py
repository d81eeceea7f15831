"""Single values of a COCO file as tools write them: ids, flags and sizes in other types, polygons, turned boxes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from paperlib.data.annotated import Size
from paperlib.files import quote_value

NUMBER = re.compile(r"[-+]?\d{1,12}(\.\d{0,12})?", re.ASCII)
MOST_PIXELS = 1e9
"""Limit of coordinates; larger ones are refused."""
CROWD = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
TOLERANCE = 0.01
"""How far rounding may carry a share of the image out of [0, 1]."""
ENCLOSING = "the upright box around each"


def as_id(value: Any) -> Any:
    """Return an id, a whole number that was written as 1.0 as an int."""
    return int(value) if type(value) is float and value.is_integer() else value


def read_crowd(value: Any) -> bool:
    """Return whether `iscrowd` marks a crowd region; null and NaN, as tables write for nothing, do not."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    text = str(value).strip().lower() if isinstance(value, str | int | float) else None
    if text not in CROWD:
        raise ValueError(f"iscrowd {quote_value(value)} is neither 0 nor 1")
    return CROWD[text]


def read_size(image: Mapping[str, Any], place: str) -> Size:
    """Return the stated width and height; null, NaN, 0 and -1, as tools write for unknown ones, become None."""
    return _read_side(image, "width", place), _read_side(image, "height", place)


def _read_side(image: Mapping[str, Any], key: str, place: str) -> int | None:
    value = image.get(key)
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        value = float(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | float) and -1 <= value < MOST_PIXELS and value == math.floor(value):
        return int(value) if value > 0 else None
    raise ValueError(f"{place}: {key} {quote_value(image[key])} is not a number of pixels")


def is_numbers(box: Any, count: int | None = 4) -> bool:
    """Return whether a value is a list of so many finite numbers; with None, of any number of them."""
    # The exact type, because `true` in JSON becomes a bool, which is an instance of int.
    numbers = isinstance(box, list) and all(type(value) in (int, float) for value in box)
    return numbers and count in (None, len(box)) and all(abs(value) < MOST_PIXELS for value in box)


def is_normalised(box: list[float]) -> bool:
    """Return whether four numbers look like shares of an image: all in [0, 1], up to rounding."""
    return all(-TOLERANCE <= value <= 1 + TOLERANCE for value in box)


def has_corners(entry: Mapping[str, Any]) -> bool:
    """Return whether the area of an annotation says that its box is `[left, top, right, bottom]`."""
    left, top, third, fourth = entry["bbox"]
    area = entry.get("area")
    if not isinstance(area, int | float) or third <= left or fourth <= top:
        return False
    # An area of a mask is smaller than that of its box: only one that fits exactly tells.
    return math.isclose(area, (third - left) * (fourth - top), rel_tol=1e-3) and area < 0.99 * third * fourth


def polygon_box(segmentation: Any) -> list[float] | None:
    """Return the box `[x, y, width, height]` around polygons; None if these are none."""
    polygons = [segmentation] if is_numbers(segmentation, None) else segmentation
    if not isinstance(polygons, list) or not all(is_numbers(polygon, None) for polygon in polygons):
        return None
    # A polygon is a list x1, y1, x2, y2, …
    if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        return None
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def read_rotation(entry: Mapping[str, Any]) -> float:
    """Return by how many degrees an annotation's box is turned about its centre, mostly 0.

    CVAT and Datumaro write it under `attributes`, FiftyOne beside the box.
    """
    attributes = entry.get("attributes")
    value = attributes.get("rotation") if isinstance(attributes, dict) else None
    value = entry.get("rotation") if value is None else value
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return 0.0
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool | str | list | dict) or not abs(value) < MOST_PIXELS:
        raise ValueError(f"rotation {quote_value(value)} is not a number of degrees")
    return value % 360


def turn_box(box: list[float], degrees: float) -> list[float]:
    """Return the upright box `[x, y, width, height]` around a box that is turned about its centre."""
    x, y, width, height = box
    cosine, sine = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    across, down = width * cosine + height * sine, width * sine + height * cosine
    return [x + (width - across) / 2, y + (height - down) / 2, across, down]
