"""Conversion between formats and splits: nothing is lost, nothing overwritten, nothing half-written."""

import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.data import convert, load_dataset
from paperlib.data.annotated import ReadOptions
from paperlib.data.own import find_own_splits, name_own

SIZE = WIDTH, HEIGHT = 80, 40
CLASSES = ["ship", "storage tank"]
TOLERANCE = {"coco": 1e-12, "yolo": 1e-5, "voc": 1e-12, "dota": 0}
"""Pixels by which a box may change: shares of an image have no exact decimals; others lose less than float64 shows."""


def write_source(folder, boxes, count=3):
    """Write a COCO file of images of different colours in two folders; each box is `(image, label, x, y, u, v)`."""
    images, annotations = [], []
    for number in range(count):
        name = f"{'deep/' * (number % 2)}{number // 2}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (number, 0, 0)).save(folder / name)
        images.append({"id": number, "file_name": name})
    for image, label, x, y, u, v in boxes:
        annotations.append({"image_id": image, "category_id": label, "bbox": [x, y, u - x, v - y]})
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES)]
    path = folder / "all.json"
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def by_colour(dataset):
    """Return the boxes and the names of classes of each image, by the picture itself, whatever its name."""
    return {
        int(record.read_pixels()[0, 0, 0]): (record.boxes, [dataset.classes[label - 1] for label in record.labels])
        for record in dataset.records
    }


coordinates = st.floats(0, 1, width=32)


@st.composite
def objects(draw):
    image, label = draw(st.integers(0, 2)), draw(st.integers(0, 1))
    x, u = sorted((draw(coordinates) * WIDTH, draw(coordinates) * WIDTH))
    y, v = sorted((draw(coordinates) * HEIGHT, draw(coordinates) * HEIGHT))
    return image, label, x, y, max(u, x + 2) if x + 2 <= WIDTH else WIDTH, max(v, y + 2) if y + 2 <= HEIGHT else HEIGHT


@given(st.lists(objects(), min_size=1, max_size=6), st.permutations(["coco", "yolo", "voc", "dota"]))
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_through_all_formats_boxes_and_classes_come_back(tmp_path_factory, boxes, formats):
    folder = tmp_path_factory.mktemp("source")
    boxes = [(i, k, *np.float32([x, y, u, v]).astype(float)) for i, k, x, y, u, v in boxes]
    boxes = [each for each in boxes if each[4] - each[2] > 1.5 and each[5] - each[3] > 1.5] or [(0, 0, 1, 1, 9, 9)]
    name = f"coco:{write_source(folder, boxes)}"
    expected, allowed = by_colour(load_dataset(name, "val")), 0.0
    for number, to in enumerate(formats):
        target = folder / f"target{number}"
        convert.convert_data(name, target, to, "link", None, ReadOptions())
        name = name_own(str(target))
        assert name == f"{to}:{target}"
        allowed += TOLERANCE[to]
        found = by_colour(load_dataset(name, "train"))
        assert found.keys() == expected.keys()
        for colour, (old, names) in expected.items():
            np.testing.assert_allclose(found[colour][0], old, rtol=0, atol=allowed)
            # In DOTA's files a class has no blanks.
            assert [each.replace("-", " ") for each in found[colour][1]] == names


BOXES = [(number, number % 2, 1, 1, 9, 9) for number in range(20)]


@pytest.mark.parametrize("to", ["coco", "yolo", "voc", "dota"])
def test_a_split_keeps_the_shares_of_classes_and_is_the_same_from_every_format(tmp_path, to):
    source = write_source(tmp_path, BOXES, 20)
    direct = run("split", source, tmp_path / "direct", "--fractions", 0.6, 0.2, 0.2)
    assert direct.exit_code == 0, direct.output
    assert "ship" in direct.output and "storage tank" in direct.output
    assert run("convert", source, tmp_path / "other", "--to", to).exit_code == 0
    assert run("split", tmp_path / "other", tmp_path / "drawn", "--fractions", 0.6, 0.2, 0.2).exit_code == 0
    assert run("split", source, tmp_path / "seed", "--fractions", 0.6, 0.2, 0.2, "--seed", 1).exit_code == 0
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        there, drawn, other = (
            load_dataset(name_own(str(tmp_path / name)), split) for name in ("direct", "drawn", "seed")
        )
        assert list(there.box_counts().values()) == [count, count]
        assert by_colour(drawn).keys() == by_colour(there).keys()
        assert split != "train" or by_colour(other).keys() != by_colour(there).keys()


def test_splits_are_converted_each_and_classes_have_one_order(tmp_path):
    source = write_source(tmp_path, BOXES, 20)
    assert run("split", source, tmp_path / "yolo", "--to", "yolo", "--fractions", 0.8, 0.2, 0).exit_code == 0
    result = run("convert", tmp_path / "yolo", tmp_path / "voc", "--to", "voc")
    assert result.exit_code == 0 and "images without boxes" in result.output
    assert find_own_splits(f"voc:{tmp_path / 'voc'}") == ("train", "val")
    for split in ("train", "val"):
        old, new = (load_dataset(name_own(str(tmp_path / name)), split, classes=CLASSES) for name in ("yolo", "voc"))
        assert old.box_counts() == new.box_counts() and by_colour(old).keys() == by_colour(new).keys()


def test_images_are_copied_linked_or_left_as_the_option_says(tmp_path):
    source = write_source(tmp_path / "source", BOXES[:3])
    for how in ("copy", "link", "keep"):
        result = run("convert", source, tmp_path / how, "--to", "coco", "--image-files", how)
        assert result.exit_code == 0, result.output
    original = os.stat(tmp_path / "source/0.png").st_ino
    assert os.stat(tmp_path / "link/images/0.png").st_ino == original
    assert os.stat(tmp_path / "copy/images/0.png").st_ino != original
    assert f"read it with --images {tmp_path / 'source'}" in result.output
    kept = load_dataset(f"coco:{tmp_path}/keep/annotations.json", "train", tmp_path / "source")
    assert [record.name for record in kept.records] == ["0.png", "deep/0.png", "1.png"]
    result = run("convert", source, tmp_path / "voc", "--to", "voc", "--image-files", "keep")
    assert result.exit_code == 2 and "link takes no space" in result.stderr and not (tmp_path / "voc").exists()


def test_nothing_is_overwritten_and_nothing_is_left_half_written(tmp_path, monkeypatch):
    source = write_source(tmp_path / "source", BOXES[:3])
    (tmp_path / "there").mkdir()
    for command in (["convert", "--to", "yolo"], ["split"]):
        result = run(command[0], source, tmp_path / "there", *command[1:])
        assert result.exit_code == 2 and "there: exists already" in result.stderr
    done = []

    def stop(*_):
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(convert.shutil, "copyfile", stop)
    with pytest.raises(KeyboardInterrupt):
        convert.convert_data(f"coco:{source}", tmp_path / "new", "yolo", "copy", None, ReadOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "there"]


FAULTS = {
    "sum": (["split", "--fractions", 0.5, 0.5, 0.5], "fractions 0.5 0.5 0.5: they add up to 1.5, not to 1"),
    "negative": (["split", "--fractions", 1.5, -0.5, 0], "fractions 1.5 -0.5 0: not three numbers from 0 to 1"),
    "no-train": (["split", "--fractions", 0, 0.5, 0.5], "of train (more than 0)"),
    "format": (["convert", "--to", "kitti"], "--to"),
    "bad-boxes": (["convert", "--to", "yolo", "--bad-boxes", "mend"], "bad_boxes 'mend': not one of error"),
}


@pytest.mark.parametrize("written", ["voc", "dota"])
def test_a_misspelt_class_is_refused_where_no_list_of_classes_is(tmp_path, written):
    source = write_source(tmp_path / "source", BOXES[:3])
    assert run("convert", source, tmp_path / "data", "--to", written).exit_code == 0
    result = run("convert", tmp_path / "data", tmp_path / "new", "--to", "yolo", "--classes", "ship,tank")
    assert result.exit_code == 2 and "no object is named 'tank'" in result.stderr and result.stderr.count("\n") == 1
    assert run("convert", tmp_path / "data", tmp_path / "new", "--to", "yolo", "--classes", "ship").exit_code == 0


@pytest.mark.parametrize(("command", "fault"), FAULTS.values(), ids=FAULTS)
def test_options_that_cannot_be_meant_are_one_line(tmp_path, command, fault):
    source = write_source(tmp_path / "source", BOXES[:3])
    result = run(command[0], source, tmp_path / "new", *command[1:])
    assert result.exit_code == 2 and fault in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()
