"""DOTA: horizontal boxes of the corners, cut at the border; and a bad line is named."""

import json

import numpy as np
import pytest
from PIL import Image

from paperlib.data import load_dataset

GOOD = "imagesource:GoogleEarth\ngsd:0.146\n"
PLANE = "20 5 30 15 20 25 10 15 plane 0"


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """One image of 1000 x 60 pixels, in the split `train`; what it returns writes its annotation and reads it."""
    root = tmp_path / "dota"
    for folder in ("images", "labelTxt"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (1000, 60)).save(root / "images" / "P0001.png")
    (tmp_path / "data" / "splits").mkdir(parents=True)
    (tmp_path / "data" / "splits" / "dota.json").write_text(json.dumps({"splits": {"train": ["P0001"]}}))
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))

    def read(*lines):
        (root / "labelTxt" / "P0001.txt").write_text(GOOD + "\n".join(lines))
        return load_dataset("dota", "train", root)

    read.file = root / "labelTxt" / "P0001.txt"
    return read


def test_boxes_are_the_smallest_around_the_corners_cut_at_the_border(layout):
    tiles = layout(PLANE, "-5.5 -2 8 -2 8 7 -5.5 7 small-vehicle 1", "990 50 1004 50 1004 70 990 70 ship 0")
    (record,) = tiles.full_images.records
    np.testing.assert_array_equal(record.boxes, np.float32([[10, 5, 30, 25], [0, 0, 8, 7], [990, 50, 1000, 60]]))
    assert [tiles.classes[label - 1] for label in record.labels] == ["plane", "small vehicle", "ship"]
    assert [tile.name for tile in tiles.records] == ["P0001@0,0", "P0001@200,0"]
    assert [len(tile.labels) for tile in tiles.records] == [2, 1]


def test_an_image_without_objects_is_read(layout):
    assert [len(record.labels) for record in layout().full_images.records] == [0]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1 2 3 4 5 6 7 8 plane", "line 4: '1 2 3 4 5 6 7 8 plane' is not x1 y1 x2 y2 x3 y3 x4 y4 class difficult"),
        ("1 2 3 4 5 6 7 8 plane 2", "is not x1 y1 x2 y2 x3 y3 x4 y4 class difficult"),
        ("1 2 3 4 5 6 7 x plane 0", "is not x1 y1 x2 y2 x3 y3 x4 y4 class difficult"),
        ("1 2 3 4 5 6 7 nan plane 0", "line 4: '1 2 3 4 5 6 7 nan plane 0' has a corner that is not finite"),
        ("1 2 3 4 5 6 7 8 container-crane 0", "line 4: unknown class 'container-crane'; known: plane, ship, "),
        ("1 2 1 4 1 6 1 8 plane 0", "box 2 (1, 2, 1, 8) has no area"),
        ("1000 2 1009 2 1009 9 1000 9 plane 0", "box 2 (1000, 2, 1009, 9) is not inside its image of 1000 x 60 pixels"),
    ],
)
def test_a_bad_line_is_reported_with_file_place_and_fault(layout, line, fault):
    with pytest.raises(ValueError) as caught:
        layout(PLANE, line)
    message = str(caught.value)
    assert message.startswith(str(layout.file)) and fault in message and "\n" not in message
