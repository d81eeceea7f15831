"""RSOD (Section 4.1): four classes, each published as a set of its own in PASCAL VOC form, merged into one.

Boxes are taken as the files state them, `xmin ymin xmax ymax` in pixels; one that sticks out of its image by a pixel
at most, as counting from 1 leaves it, ends at the border. `Annotation/labels/` repeats the XML files and is not read.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from paperlib.data.layouts import Annotation, Layout, as_annotation

CLASSES: tuple[str, ...] = ("aircraft", "oiltank", "overpass", "playground")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_annotation(path: Path) -> Annotation:
    """Boxes and labels of a PASCAL VOC file.

    Raises:
        ValueError: names the file, the object and the fault.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path}: not XML ({error})") from None
    if root.tag != "annotation":
        raise ValueError(f"{path}: not PASCAL VOC: <{root.tag}> instead of <annotation>")
    boxes, labels = [], []
    for number, found in enumerate(root.iter("object"), 1):
        place = f"{path}, object {number}"
        name = (found.findtext("name") or "").strip()
        if name not in CLASSES:
            raise ValueError(f"{place}: unknown class {name!r}; known: {', '.join(CLASSES)}")
        try:
            boxes.append([float(found.findtext(f"bndbox/{corner}")) for corner in CORNERS])
        except (TypeError, ValueError):
            raise ValueError(f"{place}: its bndbox is not the four numbers {', '.join(CORNERS)}") from None
        labels.append(CLASSES.index(name) + 1)
    return as_annotation(boxes, labels)


LAYOUT = Layout(
    name="rsod",
    title="RSOD",
    folder="rsod",
    classes=CLASSES,
    parts={name: (f"{name}/JPEGImages", f"{name}/Annotation/xml") for name in CLASSES},
    image_suffix=".jpg",
    annotation_suffix=".xml",
    parse=read_annotation,
    overhang=1.0,
)
