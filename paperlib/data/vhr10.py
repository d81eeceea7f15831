"""NWPU VHR-10 (Section 4.1): 650 images with objects of ten classes, in the published layout."""

from __future__ import annotations

import re
from pathlib import Path

from paperlib.data.layouts import Annotation, Layout, as_annotation, text_lines
from paperlib.files import quote_value

CLASSES: tuple[str, ...] = (
    "airplane",
    "ship",
    "storage tank",
    "baseball diamond",
    "tennis court",
    "basketball court",
    "ground track field",
    "harbor",
    "bridge",
    "vehicle",
)
# The published `negative image set` (150 images without objects) is not used.
IMAGES, ANNOTATIONS = "positive image set", "ground truth"
_VALUE = r"\s*([^\s,()]+)\s*"
LINE = re.compile(rf"\s*\({_VALUE},{_VALUE}\)\s*,\s*\({_VALUE},{_VALUE}\)\s*,{_VALUE}")


def read_annotation(path: Path) -> Annotation:
    """Read boxes and labels of a ground-truth file with lines `(x1,y1),(x2,y2),class`.

    Raises:
        ValueError: names the file, the line and the fault.
    """
    boxes, labels = [], []
    for number, line in text_lines(path):
        place = f"{path}, line {number}"
        match = LINE.fullmatch(line)
        try:
            # Unpacking an empty list raises ValueError, so a line that does not match is refused below.
            *box, label = list(match.groups()) if match else []
            boxes.append([float(value) for value in box])
            labels.append(int(label))
        except ValueError:
            raise ValueError(f"{place}: {quote_value(line.strip())} is not (x1,y1),(x2,y2),class") from None
        if not 1 <= labels[-1] <= len(CLASSES):
            raise ValueError(f"{place}: class {quote_value(labels[-1])} is not in 1..{len(CLASSES)}")
    return as_annotation(boxes, labels)


LAYOUT = Layout(
    name="vhr10",
    title="NWPU VHR-10",
    folder="nwpu-vhr10",
    classes=CLASSES,
    parts={"": (IMAGES, ANNOTATIONS)},
    image_suffix=".jpg",
    annotation_suffix=".txt",
    parse=read_annotation,
)
