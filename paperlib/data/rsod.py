"""RSOD (Section 4.1): four classes, published as four data sets in PASCAL VOC format, merged into one.

Boxes are read without changes, `xmin ymin xmax ymax` in pixels. One that exceeds its image by at most a pixel, because
its coordinates count from 1, is cut at the border. `Annotation/labels/` repeats the XML files and is not read.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from paperlib.data.layouts import MAX_ANNOTATION_BYTES, Annotation, Layout, as_annotation
from paperlib.files import quote_value, read_bytes, shorten_text

CLASSES: tuple[str, ...] = ("aircraft", "oiltank", "overpass", "playground")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_annotation(path: Path) -> Annotation:
    """Read boxes and labels of a PASCAL VOC file.

    Raises:
        ValueError: names the file, the object and the fault.
    """
    content = read_bytes(path, MAX_ANNOTATION_BYTES)
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        # An encoding that Python does not know is a LookupError; entities that grow too much are a ParseError.
        raise ValueError(f"{path}: not XML ({shorten_text(str(error), 200)})") from None
    if root.tag != "annotation":
        raise ValueError(f"{path}: not PASCAL VOC: <{shorten_text(root.tag)}> instead of <annotation>")
    boxes, labels = [], []
    for number, found in enumerate(root.iter("object"), 1):
        place = f"{path}, object {number}"
        name = (found.findtext("name") or "").strip()
        if name not in CLASSES:
            raise ValueError(f"{place}: unknown class {quote_value(name)}; known: {', '.join(CLASSES)}")
        try:
            # A corner that is missing becomes "", of which `float` raises ValueError too.
            boxes.append([float(found.findtext(f"bndbox/{corner}", "")) for corner in CORNERS])
        except ValueError:
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
