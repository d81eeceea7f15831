"""Data in YOLO format: what is written comes back, and what is wrong is said in one line."""

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from paperlib.data import load_dataset
from paperlib.data.own import find_own_splits, name_own

SIZE = WIDTH, HEIGHT = 80, 40
CONTENT = {"train": "images/train", "val": "images/val", "names": ["ship", "plane"]}


@pytest.fixture
def folder(tmp_path):
    for name in ("train/a.png", "train/deep/b.jpg", "train/empty.png", "val/c.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(tmp_path / "images" / name)
    write_labels(tmp_path, "train/a.txt", "0 0.5 0.5 0.25 0.5\n\n1 0.1 0.2 0.2 0.4\n")
    write_labels(tmp_path, "train/deep/b.txt", "1 0.25 0.25 0.75 0.25 0.75 0.75\n")  # a polygon
    write_labels(tmp_path, "val/c.txt", "0 0.5 0.5 1.0001 1\n")
    return tmp_path


def write_labels(folder, name, text):
    path = folder / "labels" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(folder, content=CONTENT, split="train", **options):
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return load_dataset(f"yolo:{folder / 'data.yaml'}", split, **options)


def test_labels_are_found_in_the_folder_that_mirrors_the_images(folder):
    dataset = read(folder)
    assert dataset.classes == ("ship", "plane")
    first, second, third = dataset.records
    np.testing.assert_allclose(first.boxes, [[30, 10, 50, 30], [0, 0, 16, 16]], atol=1e-4)
    assert (first.labels.tolist(), second.labels.tolist(), len(third.labels)) == ([1, 2], [2], 0)
    np.testing.assert_allclose(second.boxes, [[20, 10, 60, 30]], atol=1e-4)
    assert [record.name for record in dataset.records][1:] == ["images/train/deep/b.jpg", "images/train/empty.png"]
    assert dataset.remarks == (
        "images without a file of labels, read as images without objects: 1 (first: 'images/train/empty.png')",
    )
    assert read(folder, split="val").records[0].boxes.tolist() == [[0, 0, 80, 40]]


FORMS = {
    "names-by-number": {"names": {1: "plane", 0: "ship"}},
    "two-folders": {"train": ["images/train/deep", "images/train"]},
    "roboflow": {"train": "../images/train", "val": "../images/val"},
    "a-list": {"train": "list.txt"},
    "path-elsewhere": {"path": "/data/on/another/machine"},
    "path-here": {"path": "."},
    "made-on-colab": {"train": "/content/data/images/train"},
    "made-on-windows": {"train": "C:\\data\\images\\train"},
    "names-by-text": {"names": {"0": "ship", "1": "plane"}, "nc": 2},
}


@pytest.mark.parametrize("change", FORMS.values(), ids=FORMS)
def test_the_usual_forms_of_the_file_mean_the_same(folder, change):
    (folder / "list.txt").write_text("./images/train/a.png\nimages/train/deep/b.jpg\n\nimages/train/empty.png\n")
    if isinstance(change.get("train"), list):
        change = {"train": ["images/train/deep", "list.txt"]}
        (folder / "list.txt").write_text("images/train/a.png\nimages/train/empty.png\n")
    dataset = read(folder, {**CONTENT, **change})
    assert dataset.box_counts() == {"ship": 1, "plane": 2} and len(dataset) == 3


FAULTS = {
    "no-names": ({"names": None}, None, "data.yaml: has no names of the classes"),
    "no-split": ({"train": None}, None, "data.yaml: has no train: a folder of images"),
    "gap-in-names": ({"names": {0: "ship", 2: "plane"}}, None, "names: the keys are not 0 to 1"),
    "count-of-names": ({"nc": 3}, None, "data.yaml: nc is 3, but there are 2 names"),
    "name-twice": ({"names": ["ship", "ship"]}, None, "names: 'ship' is given 2 times"),
    "no-folder": ({"train": "images/gone"}, None, "train 'images/gone': no such folder or list"),
    "no-images": ({"train": "labels"}, None, "train 'labels' holds no images"),
    "outside": ({"train": "../outside"}, None, "train '../outside' leads out of"),
    "four-numbers": ({}, "0 0.5 0.5 0.5", "a.txt, line 1: '0 0.5 0.5 0.5' is not five numbers"),
    "words": ({}, "\nship 0.5 0.5 0.5 0.5", "a.txt, line 2: 'ship 0.5"),
    "pixels": ({}, "0 40 20 10 10", "a.txt, line 1: '0 40 20 10 10' is not in [0, 1]"),
    "class-too-high": ({}, "2 0.5 0.5 0.5 0.5", "a.txt, line 1: class 2 is none of 0 to 1"),
    "half-class": ({}, "0.5 0.5 0.5 0.5 0.5", "a.txt, line 1: class 0.5 is none of 0 to 1"),
    "no-area": ({}, "0 0.5 0.5 0 0.5", "a.png: box 1 (40, 10, 40, 30) has no area; --bad-boxes"),
    "sticks-out": ({}, "0 0.9 0.5 0.5 0.5", "is not inside its image of 80 x 40 pixels; --bad-boxes"),
}


@pytest.mark.parametrize(("change", "labels", "fault"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_is_one_line_that_says_where(folder, change, labels, fault):
    inner = folder / "data"
    inner.mkdir()
    (folder / "outside").mkdir()
    for name in ("images", "labels"):
        (folder / name).rename(inner / name)
    if labels:
        write_labels(inner, "train/a.txt", labels)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(inner, {**CONTENT, **change})
    assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_an_image_that_two_entries_name_is_read_once(folder):
    dataset = read(folder, {**CONTENT, "train": ["images/train", "images/train/deep"]})
    assert (
        len(dataset) == 3 and "images listed twice, read once: 1 (first: 'images/train/deep/b.jpg')" in dataset.remarks
    )


def test_of_a_file_of_keypoints_the_boxes_are_read(folder):
    for name in ("a", "deep/b"):
        write_labels(folder, f"train/{name}.txt", "0 0.5 0.5 0.25 0.5 0.4 0.4 0.6 0.6\n")
    dataset = read(folder, {**CONTENT, "kpt_shape": [2, 2]})
    np.testing.assert_allclose(dataset.records[0].boxes, [[30, 10, 50, 30]], atol=1e-4)


def test_no_image_is_read_out_of_the_folder_unless_that_is_wanted(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "d.png"
    Image.new("RGB", SIZE).save(outside)
    (folder / "images" / "train" / "link.png").symlink_to(outside)
    (folder / "list.txt").write_text(f"{outside}\n")
    for content in (CONTENT, {**CONTENT, "train": "list.txt"}):
        with pytest.raises(ValueError, match="out of the folder of images"):
            read(folder, content)
        assert "--allow-outside" in str(pytest.raises(ValueError, read, folder, content).value)
    assert len(read(folder, allow_outside=True)) == 4


@given(st.lists(st.tuples(st.integers(0, 1), *[st.floats(0.05, 0.95)] * 4), max_size=5))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_boxes_inside_the_image_come_back(folder, objects):
    corners = [(label, *sorted((x, u)), *sorted((y, v))) for label, x, u, y, v in objects]
    corners = [each for each in corners if each[2] - each[1] > 0.01 and each[4] - each[3] > 0.01]
    lines = [f"{label} {(x + u) / 2} {(y + v) / 2} {u - x} {v - y}" for label, x, u, y, v in corners]
    write_labels(folder, "train/a.txt", "\n".join(lines))
    found = read(folder, classes=["ship", "plane"]).records[0]
    assert found.labels.tolist() == [label + 1 for label, *_ in corners]
    expected = np.array([[x, y, u, v] for _, x, u, y, v in corners]).reshape(-1, 4) * [*SIZE, *SIZE]
    np.testing.assert_allclose(found.boxes, expected, atol=1e-4)


def test_the_suffix_tells_the_format():
    assert name_own("a/data.yaml") == "yolo:a/data.yaml" and name_own("a.json") == "coco:a.json"
    assert name_own("yolo:odd.name") == "yolo:odd.name"


@pytest.mark.parametrize("also", [None, "test"])
def test_images_for_training_alone_are_distributed_and_a_split_that_is_there_stays(tmp_path, also):
    for index in range(12):
        place = "test" if also and index > 9 else "train"
        (tmp_path / "images" / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (index, 0, 0)).save(tmp_path / f"images/{place}/{index}.png")
        write_labels(tmp_path, f"{place}/{index}.txt", "0 0.5 0.5 0.5 0.5\n")
    content = {"train": "images/train", "names": ["ship"]} | ({also: f"images/{also}"} if also else {})
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    name = f"yolo:{tmp_path}/data.yaml#75/25/0"
    assert find_own_splits(name) == ("train", "val", *([also] if also else []))
    sizes = [len(load_dataset(name, split)) for split in find_own_splits(name)]
    assert sizes == ([8, 2, 2] if also else [9, 3])
    if also:
        with pytest.raises(ValueError, match="is split into train, test already; leave out #60/20/20"):
            load_dataset(f"yolo:{tmp_path}/data.yaml#60/20/20", "train")
