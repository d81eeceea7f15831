"""Splits are honest: no image in two of them, under the same name or another, in the same format or another."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from paperlib.data import LAYOUTS, Dataset, Record, layouts, load_dataset
from paperlib.data.splits import refuse_shared_images, refuse_shared_pictures
from paperlib.experiments.case import Splits

BOXES, LABELS = np.array([[4, 4, 20, 20]], np.float32), np.array([1])


@pytest.fixture
def splits(tmp_path):
    """Three data sets of two pictures each, as files."""
    random = np.random.default_rng(0)
    made = []
    for split in ("train", "val", "test"):
        records = []
        for number in range(2):
            file = tmp_path / f"{split}{number}.png"
            Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(file)
            records.append(Record(file.name, file, BOXES, LABELS))
        made.append(Dataset(split, ["ship"], records))
    return made


def refuse_all(*splits):
    refuse_shared_images(*splits)
    refuse_shared_pictures(*splits, pictures=full)
    refuse_shared_pictures(*splits, pictures=lambda data: data.letterboxed(32).images.numpy())


def full(data):
    return (record.read_pixels() for record in data.records)


def with_record(data, name, image):
    return Dataset(data.name, data.classes, [*data.records, Record(name, image, BOXES, LABELS)])


def test_splits_that_share_nothing_are_accepted(splits):
    refuse_all(*splits)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("kind", ["same file", "link", "copy", "bmp", "png with other compression", "pixels in memory"])
def test_a_picture_in_two_splits_is_refused_naming_both(splits, tmp_path, first, second, kind):
    file = splits[first].records[1].image
    other = tmp_path / ("other.bmp" if kind == "bmp" else "other.png")
    if kind == "same file":
        other = file
    elif kind == "link":
        other.symlink_to(file)
    elif kind == "copy":
        shutil.copy(file, other)
    elif kind == "pixels in memory":
        other = splits[first].records[1].read_pixels()
    else:
        Image.open(file).save(other, **({} if kind == "bmp" else {"compress_level": 0}))
    name = file.name if kind == "same file" else "other"
    splits[second] = with_record(splits[second], name, other)
    names = (splits[first].name, splits[second].name, file.name, name)
    for read in (full, lambda data: data.letterboxed(32).images.numpy()):
        with pytest.raises(ValueError, match="the two must not share images") as caught:
            refuse_shared_pictures(*splits, pictures=read)
        assert all(each in str(caught.value) for each in names)
    if kind in ("same file", "link", "copy"):
        with pytest.raises(ValueError, match="the two must not share images"):
            refuse_shared_images(*splits)


def test_pictures_that_only_look_alike_when_small_are_accepted_and_so_are_blank_ones(splits):
    pixels = splits[0].records[0].read_pixels().copy()
    big = np.zeros((480, 640, 3), np.uint8)
    almost = big.copy()
    big[0, 0], almost[0, 0] = 1, 2
    assert (pixels != 0).any()
    train, val = (with_record(data, "a", image) for data, image in zip(splits, (big, almost), strict=False))
    refuse_all(train, val)
    blank = np.full((48, 64, 3), 127, np.uint8)
    train, val = (with_record(data, name, image) for data, name, image in ((train, "b", blank), (val, "c", blank + 1)))
    refuse_all(train, val)
    refuse_shared_pictures(with_record(train, "d", blank), with_record(val, "e", blank), pictures=full)


def test_equal_pictures_within_one_split_are_no_leak(splits):
    refuse_all(with_record(splits[0], "again", splits[0].records[0].image), *splits[1:])


def test_one_coco_file_is_not_three_splits_and_a_mark_in_its_name_stands_for_the_split(tmp_path):
    for split in ("train", "val"):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{split}.png")
        image = {"id": 1, "file_name": f"{split}.png"}
        content = {"images": [image], "categories": [{"id": 1, "name": "ship"}], "annotations": []}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    assert load_dataset(f"coco:{tmp_path}/{{split}}.json", "val").records[0].name == "val.png"
    assert Splits(f"coco:{tmp_path}/{{split}}.json").train.records[0].name == "train.png"
    with pytest.raises(ValueError, match=r"would be train, val and test at once; .*coco:own/\{split\}.json"):
        Splits(f"coco:{tmp_path}/train.json")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"splits": {"train": ["001", "002"], "val": ["002"]}}, "image '002' is in train and in val; keep one"),
        ({"splits": {"train": ["001", "001"]}}, "image '001' is in train and in train"),
        ({"splits": {"train": [1]}}, "1 in split train is not the name of an image"),
        ({"splits": {"train": ["../../001"]}}, "'../../001' in split train is not the name of an image"),
        ({"splits": {"train": ["x" * 9000 + "/1"]}}, "is not the name of an image"),
        ({"splits": {"train": "001"}}, "expected an object with `splits`"),
        ({"splits": ["001"]}, "expected an object with `splits`"),
        ({"train": ["001"]}, "expected an object with `splits`"),
        ([], "expected an object with `splits`"),
    ],
)
def test_a_damaged_split_file_is_one_line_by_name(tmp_path, monkeypatch, content, fault):
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    (tmp_path / "data" / "splits").mkdir(parents=True)
    (tmp_path / "data" / "splits" / "vhr10.json").write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        layouts.stored_split(LAYOUTS["vhr10"])
    assert "vhr10.json: " in str(caught.value)
    assert fault in str(caught.value)
    assert len(str(caught.value)) < 500


ENTITIES = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 9))
GROWING = f'<!DOCTYPE a [<!ENTITY a0 "lol">{ENTITIES}]><annotation>&a8;</annotation>'.encode()


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("rsod", GROWING, "not XML (limit"),
        ("rsod", b'<?xml version="1.0" encoding="klingon"?><annotation/>', "not XML (unknown encoding: klingon"),
        ("rsod", b'<?xml version="1.0" encoding="rot13"?><annotation/>', "not XML"),
        ("rsod", b'<?xml version="1.0" encoding="utf-7"?><annotation/>', "not XML"),
        ("rsod", b'<?xml version="1.0" encoding="idna"?><annotation/>', "not XML"),
        ("rsod", b"<annotation>\xff</annotation>", "not XML"),
        ("rsod", b"<a>" * 100_000 + b"</a>" * 100_000, "not PASCAL VOC"),
        ("rsod", b"<" + b"a" * 9000 + b"/>", "not PASCAL VOC: <aaa"),
        ("rsod", b"<annotation><object><name>%s</name></object></annotation>" % (b"x" * 9000), "unknown class 'xxx"),
        ("vhr10", b"x" * 100_000, "line 1: 'xxx"),
        ("vhr10", b"(1,2),(3,4)," + b"9" * 4000, "line 1: class a very large number is not in"),
        ("vhr10", "(1,2),(3,4),1".encode("utf-16"), "line 1: "),
        ("dota", b"1 2 3 4 5 6 7 8 " + b"x" * 9000 + b" 0", "unknown class 'xxx"),
        ("dota", b"x " * 100_000, "line 1: 'x x"),
    ],
)
def test_a_damaged_annotation_is_one_short_line(tmp_path, name, content, fault):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        LAYOUTS[name].parse(tmp_path / "a.txt")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/a.txt")
    assert fault in message
    assert "\n" not in message
    assert len(message) < 500
