"""DOTA v1.0 (Section 4.1): large images with objects of fifteen classes, in the published layout.

A line of `labelTxt/` holds eight corner coordinates, the class and whether the object is difficult. The paper detects
horizontal boxes: ours are the smallest around the corners, cut at the image's border. Difficult objects are included.
"""

from __future__ import annotations

import math
from pathlib import Path

from paperlib.data.layouts import Annotation, Layout, as_annotation, text_lines
from paperlib.files import quote_value

CLASSES: tuple[str, ...] = (
    "plane",
    "ship",
    "storage tank",
    "baseball diamond",
    "tennis court",
    "basketball court",
    "ground track field",
    "harbor",
    "bridge",
    "large vehicle",
    "small vehicle",
    "helicopter",
    "roundabout",
    "soccer ball field",
    "swimming pool",
)
LABELS = {name.replace(" ", "-"): label for label, name in enumerate(CLASSES, 1)}
"""Class names as the files write them, for example `small-vehicle`."""
# A file may begin with the image's source and its ground sample distance (metres a pixel).
HEADERS = ("imagesource:", "gsd:")
FORM = "x1 y1 x2 y2 x3 y3 x4 y4 class difficult"


def read_annotation(path: Path) -> Annotation:
    """Read horizontal boxes and labels of a `labelTxt` file.

    Raises:
        ValueError: names the file, the line and the fault.
    """
    boxes, labels = [], []
    for number, line in text_lines(path):
        if line.startswith(HEADERS):
            continue
        place = f"{path}, line {number}"
        try:
            *corners, name, difficult = line.split()
            corners = [float(value) for value in corners]
            if len(corners) != 8 or difficult not in ("0", "1"):
                raise ValueError
        except ValueError:
            raise ValueError(f"{place}: {quote_value(line.strip())} is not {FORM}") from None
        # `float` also accepts "nan" and "inf".
        if not all(map(math.isfinite, corners)):
            raise ValueError(f"{place}: {quote_value(line.strip())} has a corner that is not finite")
        if name not in LABELS:
            raise ValueError(f"{place}: unknown class {quote_value(name)}; known: {', '.join(LABELS)}")
        across, down = corners[::2], corners[1::2]
        boxes.append([min(across), min(down), max(across), max(down)])
        labels.append(LABELS[name])
    return as_annotation(boxes, labels)


LAYOUT = Layout(
    name="dota",
    title="DOTA v1.0",
    folder="dota-v1",
    classes=CLASSES,
    parts={"": ("images", "labelTxt")},
    image_suffix=".png",
    annotation_suffix=".txt",
    parse=read_annotation,
    # A rotated object at the border can stick out by any length.
    overhang=math.inf,
)
