"""RSOD: four sets in PASCAL VOC form, written here in the published layout, become one of four classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paperlib.data import load_dataset, splits
from paperlib.data.rsod import CLASSES, LAYOUT

BOX = "<object><name>{}</name><difficult>0</difficult><bndbox>{}</bndbox></object>"


def voc(*objects: tuple[str, tuple[float, ...]]) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    boxes = [
        BOX.format(name, "".join(f"<{corner}>{value}</{corner}>" for corner, value in zip(corners, box, strict=True)))
        for name, box in objects
    ]
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    return f"<annotation><folder>x</folder>{size}{''.join(boxes)}</annotation>"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Three images of each class, and no split."""
    root = tmp_path / "rsod"
    for label, name in enumerate(CLASSES):
        for folder in ("JPEGImages", "Annotation/xml", "Annotation/labels"):
            (root / name / folder).mkdir(parents=True)
        for number in range(3):
            shade = np.full((30, 40, 3), 40 * label + 9 * number, np.uint8)
            Image.fromarray(shade).save(root / name / "JPEGImages" / f"{name}_{number}.jpg")
            text = voc((name, (1, 2, 20, 25)), (name, (1, 1, 41, 30.5)))
            (root / name / "Annotation" / "xml" / f"{name}_{number}.xml").write_text(text)
    (tmp_path / "data" / "splits").mkdir(parents=True)
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    return root


def test_the_four_sets_become_one_once_its_split_is_drawn(root, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match=r"no split of RSOD has been drawn; with the data in place, python -m"):
        load_dataset("rsod", "train", root)
    monkeypatch.setenv("PAPERLIB_DATA", str(root.parent))
    splits.redraw_split("rsod")
    assert capsys.readouterr().out.endswith("rsod.json\n")
    sets = [load_dataset("rsod", split) for split in splits.SHARES]
    names = [record.name for dataset in sets for record in dataset.records]
    assert sorted(names) == [f"{name}/{name}_{number}" for name in CLASSES for number in range(3)]
    record = LAYOUT.read_record(root, "oiltank/oiltank_1")
    assert record.labels.tolist() == [2, 2]
    assert record.boxes.tolist() == [[1, 2, 20, 25], [1, 1, 40, 30]]  # over the border by a pixel at most


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not XML (no element found"),
        ("<annotation><object>", "not XML (no element found"),
        ("<html></html>", "not PASCAL VOC: <html> instead of <annotation>"),
        (voc(("aircraft", (1, 2, 3, 4)), ("ship", (1, 2, 3, 4))), "object 2: unknown class 'ship'; known: aircraft, "),
        (voc(("aircraft", (1, 2, 3, 4))).replace("ymax", "y"), "object 1: its bndbox is not the four numbers xmin, "),
        (voc(("aircraft", (1, 2, 3, "x"))), "object 1: its bndbox is not the four numbers xmin, ymin, xmax, ymax"),
        (voc(("aircraft", (1, 2, "nan", 4))), "box 1 (1, 2, nan, 4) is not finite"),
        (voc(("aircraft", (9, 2, 3, 4))), "box 1 (9, 2, 3, 4) has its corners reversed"),
        (voc(("aircraft", (1, 2, 43, 4))), "box 1 (1, 2, 43, 4) is not inside its image of 40 x 30 pixels"),
    ],
)
def test_a_bad_file_is_reported_with_place_and_fault(root, text, fault):
    file = root / "aircraft" / "Annotation" / "xml" / "aircraft_0.xml"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        LAYOUT.read_record(root, "aircraft/aircraft_0")
    message = str(caught.value)
    assert message.startswith(str(file)) and fault in message and "\n" not in message
