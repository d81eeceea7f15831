"""NWPU VHR-10: the published layout is read, and damage is reported with file, place and fault."""

import codecs
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paperlib.data import load_dataset, vhr10
from paperlib.data.records import Dataset, Record

GOOD = "(10,20),(30,45),1\n( 1 , 2 ),( 39.5,50),10 \n"


@pytest.fixture
def layout(tmp_path, monkeypatch) -> Path:
    """A data set of two images in the published layout, both in the split `train`."""
    root = tmp_path / "vhr10"
    for folder in (vhr10.IMAGES, vhr10.ANNOTATIONS):
        (root / folder).mkdir(parents=True)
    for name in ("001", "002"):
        pixels = np.random.default_rng(int(name)).integers(0, 256, (60, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / vhr10.IMAGES / f"{name}.jpg")
        (root / vhr10.ANNOTATIONS / f"{name}.txt").write_text(GOOD)
    split_file = tmp_path / "data" / "splits" / "vhr10.json"
    split_file.parent.mkdir(parents=True)
    split_file.write_text(json.dumps({"splits": {"train": ["001", "002"]}}))
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    return root


# --- a layout made here -------------------------------------------------------------------------------


def test_the_published_layout_is_read(layout):
    dataset = load_dataset("vhr10", "train", layout)
    image, target = dataset[1]
    assert (image.shape, image.dtype) == ((3, 60, 40), torch.uint8)
    assert target["boxes"].tolist() == [[10, 20, 30, 45], [1, 2, 39.5, 50]] and target["labels"].tolist() == [1, 10]
    assert target["image_id"] == 1
    assert dataset.box_counts()["airplane"] == dataset.box_counts()["vehicle"] == 2


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        b"\n" + GOOD.replace("\n", "\n \n").encode(),
        GOOD.rstrip().encode(),
    ],
    ids=["bom", "crlf", "blank-lines", "no-last-newline"],
)
def test_what_editors_do_to_text_is_accepted(layout, content):
    (layout / vhr10.ANNOTATIONS / "001.txt").write_bytes(content)
    assert load_dataset("vhr10", "train", layout).records[0].labels.tolist() == [1, 10]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("(1,2),(3,4)", "line 3: '(1,2),(3,4)' is not (x1,y1),(x2,y2),class"),
        ("(1,2),(3,4),5,6", "line 3: '(1,2),(3,4),5,6' is not (x1,y1),(x2,y2),class"),
        ("(1,2),(3,x),5", "line 3: '(1,2),(3,x),5' is not (x1,y1),(x2,y2),class"),
        ("(1,2),(3,4),2.5", "line 3: '(1,2),(3,4),2.5' is not (x1,y1),(x2,y2),class"),
        ("(1,2),(3,4\xff),5", "line 3: '(1,2),(3,4\ufffd),5' is not (x1,y1),(x2,y2),class"),
        ("(1,2),(3,4),11", "line 3: class 11 is not in 1..10"),
        ("(1,2),(3,4),0", "line 3: class 0 is not in 1..10"),
        ("(1,2),(3,nan),5", "box 3 (1, 2, 3, nan) is not finite"),
        ("(1,2),(inf,4),5", "box 3 (1, 2, inf, 4) is not finite"),
        ("(3,2),(1,4),5", "box 3 (3, 2, 1, 4) has its corners reversed"),
        ("(1,2),(1,4),5", "box 3 (1, 2, 1, 4) has no area"),
        ("(1,2),(40.5,4),5", "box 3 (1, 2, 40.5, 4) is not inside its image of 40 x 60 pixels"),
        ("(-1,2),(3,4),5", "box 3 (-1, 2, 3, 4) is not inside its image of 40 x 60 pixels"),
    ],
)
def test_a_bad_line_is_reported_with_file_place_and_fault(layout, line, fault):
    file = layout / vhr10.ANNOTATIONS / "002.txt"
    file.write_bytes(GOOD.encode() + line.encode("latin-1") + b"\n")
    with pytest.raises(ValueError) as caught:
        load_dataset("vhr10", "train", layout)
    message = str(caught.value)
    assert message.startswith(str(file)) and message.endswith(fault) and "\n" not in message


def test_a_truncated_image_is_named_when_it_is_decoded(layout):
    file = layout / vhr10.IMAGES / "002.jpg"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    dataset = load_dataset("vhr10", "train", layout)
    dataset[0]
    with pytest.raises(ValueError) as caught:
        dataset[1]
    assert str(caught.value).startswith(f"{file}: the image does not decode (") and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="002.jpg: the image does not decode"):
        dataset.letterboxed(32)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff"])
def test_a_file_that_is_no_image_is_named(layout, content):
    file = layout / vhr10.IMAGES / "001.jpg"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_dataset("vhr10", "train", layout)
    assert str(caught.value).startswith(f"{file}: not an image (") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "missing", [vhr10.IMAGES, vhr10.ANNOTATIONS, "positive image set/002.jpg", "ground truth/002.txt"]
)
def test_what_is_missing_is_named(layout, missing):
    (layout / missing).rename(layout / "elsewhere")
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("vhr10", "train", layout)
    assert str(caught.value).startswith(f"{layout / missing}: no such ")


def test_an_absent_data_set_and_an_unknown_split_are_named(layout, monkeypatch):
    monkeypatch.setenv("PAPERLIB_DATA", str(layout / "none"))
    with pytest.raises(FileNotFoundError, match="none/nwpu-vhr10: no such folder; NWPU VHR-10 belongs there"):
        load_dataset("vhr10", "train")
    with pytest.raises(ValueError, match="vhr10 has no split 'holdout'; it has train"):
        load_dataset("vhr10", "holdout", layout)
    with pytest.raises(ValueError, match="unknown data set 'vhr11'; known: toy-aerial, vhr10, rsod, dota"):
        load_dataset("vhr11", "train")


def test_an_image_that_the_split_knows_nothing_of_and_a_split_that_was_never_drawn_are_refused(layout, monkeypatch):
    for folder, suffix in ((vhr10.IMAGES, "jpg"), (vhr10.ANNOTATIONS, "txt")):
        (layout / folder / f"003.{suffix}").write_bytes((layout / folder / f"001.{suffix}").read_bytes())
    with pytest.raises(ValueError, match=r"1 images are in no split of .*vhr10.json \(003, …\); remove them"):
        load_dataset("vhr10", "train", layout)
    monkeypatch.setenv("PAPERLIB_ROOT", str(layout))
    with pytest.raises(FileNotFoundError, match=r"vhr10.json: no split of NWPU VHR-10 has been drawn; .*splits vhr10$"):
        load_dataset("vhr10", "train", layout)


# --- the form in memory -------------------------------------------------------------------------------


def test_the_digest_tells_pixels_boxes_labels_names_and_classes_apart(layout):
    def digest(name="a", value=1, box=5, label=1, classes=("x", "y")) -> str:
        pixels, boxes = np.full((4, 6, 3), value, np.uint8), np.array([[0, 0, box, 4]], np.float32)
        return Dataset("d", classes, [Record(name, pixels, boxes, np.array([label]))]).digest

    assert digest() == digest()
    changed = [{"name": "b"}, {"value": 2}, {"box": 6}, {"label": 2}, {"classes": ("x", "z")}]
    assert len({digest(), *(digest(**change) for change in changed)}) == 6
    before = load_dataset("vhr10", "train", layout).digest
    Image.new("RGB", (40, 60)).save(layout / vhr10.IMAGES / "001.jpg")
    assert load_dataset("vhr10", "train", layout).digest != before


def test_targets_may_be_changed_without_changing_the_data_set(layout):
    dataset = load_dataset("vhr10", "train", layout)
    _, target = dataset[0]
    target["boxes"] *= 2
    target["labels"] += 1
    assert dataset[0][1]["boxes"][0].tolist() == [10, 20, 30, 45] and dataset[0][1]["labels"].tolist() == [1, 10]


def test_letterboxing_scales_by_the_longer_side_and_keeps_the_rest_grey(layout):
    dataset = load_dataset("vhr10", "train", layout)
    boxed = dataset.letterboxed(30)
    assert (boxed.images.shape, boxed.images.dtype) == ((2, 3, 30, 30), torch.uint8)
    assert (boxed.images[:, :, :, 20:] == 127).all() and not (boxed.images[:, :, :, :20] == 127).all()
    assert boxed.boxes[0].tolist() == [[5, 10, 15, 22.5], [0.5, 1, 19.75, 25]]
    assert boxed.scales.tolist() == [0.5, 0.5] and boxed.sizes == [(60, 40)] * 2
    assert dataset.letterboxed(30) is boxed


def test_a_data_set_can_be_handed_to_another_process(layout):
    dataset = load_dataset("vhr10", "train", layout)
    dataset.letterboxed(32)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.digest == dataset.digest and torch.equal(copy[0][0], dataset[0][0])
