"""COCO files: what is written comes back, and what is wrong with a file is said in one line."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from paperlib.data import load_dataset

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "deep/b.png", "width": 20, "height": 20},
        {"id": 9, "file_name": "empty.png"},
    ],
    "categories": [{"id": 90, "name": "ship"}, {"id": 2, "name": "plane"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10.5, 20]},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0, -0.4, 20.3, 5]},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        {"id": 4, "image_id": 7, "category_id": 2, "bbox": [30, 20, 10, 10], "iscrowd": 0},
    ],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, size in (("a.png", (40, 30)), ("deep/b.png", (20, 20)), ("empty.png", (8, 8))):
        Image.new("RGB", size).save(tmp_path / name)
    return tmp_path


def read(folder, content):
    path = folder / "train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_dataset(f"coco:{path}", "train")


def test_categories_become_classes_in_the_order_of_their_ids_and_crowds_are_left_out(folder):
    dataset = read(folder, CONTENT)
    assert dataset.classes == ("plane", "ship")
    first, second, third = dataset.records
    np.testing.assert_array_equal(first.boxes, np.float32([[1, 2, 11.5, 22], [30, 20, 40, 30]]))
    assert first.labels.tolist() == [2, 1]
    assert len(third.labels) == 0
    np.testing.assert_array_equal(second.boxes, np.float32([[0, 0, 20, 4.6]]))  # over the border by less than a pixel


def test_images_may_lie_in_another_folder(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "annotations.json"
    path.write_text(json.dumps(CONTENT))
    assert len(load_dataset(f"coco:{path}", "val", root=folder)) == 3
    with pytest.raises(FileNotFoundError, match=r"a\.png: no such image \(listed in .*annotations\.json\)"):
        load_dataset(f"coco:{path}", "val")


def change(*keys, to):
    content = copy.deepcopy(CONTENT)
    at = content
    for key in keys[:-1]:
        at = at[key]
    if to is None:
        del at[keys[-1]]
    else:
        at[keys[-1]] = to
    return content


FAULTS = {
    "not-json": ('{"images": [', "line 1: not JSON"),
    "a-list": ([], "not COCO: expected an object with images, categories, annotations"),
    "no-categories": (change("categories", to=None), "no list of categories"),
    "no-image": (change("images", to=[]), "lists no images"),
    "no-box": (change("annotations", 1, "bbox", to=None), r"annotations\[1\]: has no bbox"),
    "image-twice": (change("images", 1, "id", to=7), "images: id 7 is given 2 times"),
    "file-twice": (change("images", 1, "file_name", to="a.png"), "images: file_name 'a.png' is given 2 times"),
    "category-twice": (change("categories", 1, "id", to=90), "categories: id 90 is given to 'ship' and 'plane'"),
    "name-a-number": (change("categories", 1, "name", to=7), "categories: name 7 is not a text"),
    "file-a-number": (change("images", 1, "file_name", to=7), "images: file_name 7 is not a text"),
    "id-a-list": (change("images", 1, "id", to=[7]), r"images: id \[7\] is not a whole number or a text"),
    "mixed-ids": (change("categories", 1, "id", to="2"), "categories: id '2' is a text, 90 is not"),
    "image-a-list": (change("annotations", 0, "image_id", to=[7]), r"annotations\[0\]: image_id \[7\] is not listed"),
    "huge": (change("annotations", 0, "bbox", to=[1, 2, 10**400, 4]), r"annotations\[0\]: bbox .* is not four numbers"),
    "infinite": (change("annotations", 0, "bbox", to=[1, 2, 1e308, 1e308]), r"annotations\[0\]: bbox .* is not four"),
    "unknown-image": (change("annotations", 0, "image_id", to=5), r"annotations\[0\]: image_id 5 is not listed"),
    "unknown-category": (change("annotations", 0, "category_id", to=5), "category_id 5 is not listed"),
    "three-numbers": (change("annotations", 0, "bbox", to=[1, 2, 3]), "is not four numbers"),
    "a-text": (change("annotations", 0, "bbox", to=[1, 2, 3, "4"]), "is not four numbers"),
    "no-area": (
        change("annotations", 3, "bbox", to=[1, 2, 0, 5]),
        r"annotations\[3\]: bbox \[1, 2, 0, 5\] has no area",
    ),
    "outside": (change("annotations", 0, "bbox", to=[1, 2, 50, 5]), r"image a\.png: box 1 .* is not inside its image"),
    "other-size": (change("images", 0, "width", to=41), r"a\.png: is 40 x 30 pixels, .*train\.json says 41 x 30"),
    "missing-image": (change("images", 0, "file_name", to="gone.png"), r"gone\.png: no such image"),
    "no-picture": (change("images", 0, "file_name", to="train.json"), r"train\.json: not an image"),
}


@pytest.mark.parametrize(("content", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_a_file_that_is_wrong_is_refused_in_one_line_that_says_where(folder, content, fault):
    with pytest.raises((ValueError, FileNotFoundError), match=fault) as refusal:
        read(folder, content)
    assert "\n" not in str(refusal.value) and "train.json" in str(refusal.value)


def test_a_byte_order_mark_and_sizes_of_null_are_passed_over(folder):
    content = copy.deepcopy(CONTENT)
    content["images"][0].update(width=None, height=None)
    (folder / "train.json").write_text(json.dumps(content), encoding="utf-8-sig")
    assert load_dataset(f"coco:{folder / 'train.json'}", "train").records[0].size() == (40, 30)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.json: no such file"):
        load_dataset(f"coco:{tmp_path / 'gone.json'}", "train")


def test_the_later_annotations_of_vhr10_can_be_read_as_anyones_data(data_root):
    root = data_root / "nwpu-vhr10"
    dataset = load_dataset(f"coco:{root / 'annotations.json'}", "all", root=root / "positive image set")
    assert (len(dataset), sum(dataset.box_counts().values()), len(dataset.classes)) == (650, 3921, 10)
