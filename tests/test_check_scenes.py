"""`paperlib data check` of scenes: counts per class and split, and every fault with its file."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.data import SCENE_LAYOUTS
from paperlib.data.layouts import split_path
from paperlib.data.splits import draw_split_file

PER_CLASS = 10


def write_image(path, seed, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project whose registry and split know of two classes of ten scenes, and these."""
    folder = tmp_path / "data" / "ucmerced"
    for label, name in enumerate(("beach", "river")):
        for index in range(PER_CLASS):
            write_image(folder / name / f"{name}{index:02d}.tif", 100 * label + index)
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    layout = SCENE_LAYOUTS["ucmerced"]
    split_path(layout).parent.mkdir()
    split_path(layout).write_text(json.dumps(draw_split_file(layout, folder)))
    texts = dict.fromkeys(("title", "page", "licence", "citation", "by_hand"), "made")
    entry = {**texts, "folder": "ucmerced", "images": 2 * PER_CLASS, "classes": 2, "per_class": PER_CLASS}
    (tmp_path / "data" / "registry.yaml").write_text(json.dumps({"ucmerced": entry}))
    return folder


def run():
    return CliRunner().invoke(app, ["data", "check", "ucmerced"])


def test_good_scenes_have_no_fault_and_are_counted_per_class_and_split(root):
    result = run()
    assert result.exit_code == 0 and "FAULT" not in result.stdout and "remark" not in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["class", "train", "val", "test", "images", "published"] in rows
    assert ["river", "7", "1", "2", "10", "10"] in rows
    assert result.stdout.splitlines()[-1].startswith("20 images of 2 classes read in ")


def in_split(split, number=0):
    return json.loads(split_path(SCENE_LAYOUTS["ucmerced"]).read_text())["splits"][split][number]


def copy_into_another_split(root):
    shutil.copy(root / in_split("train"), root / in_split("test"))


def drop_class_from_test(root):
    path = split_path(SCENE_LAYOUTS["ucmerced"])
    content = json.loads(path.read_text())
    moved = [name for name in content["splits"]["test"] if name.startswith("river/")]
    content["splits"]["test"] = [name for name in content["splits"]["test"] if name not in moved]
    content["splits"]["train"] += moved
    path.write_text(json.dumps(content))


def another_size(size):
    return lambda root: write_image(root / "beach" / "beach03.tif", 5, size)


DAMAGE = {
    "no image": (lambda root: (root / "beach/beach03.tif").write_bytes(b"no"), "FAULT", "beach03.tif: not an image"),
    "an image cut short": (
        lambda root: (root / "beach/beach03.tif").write_bytes((root / "beach/beach03.tif").read_bytes()[:-50]),
        "FAULT", "beach03.tif: the image does not decode",
    ),
    "a missing image": (lambda root: (root / "beach/beach03.tif").unlink(), "FAULT", "beach03.tif: no such file"),
    "an empty class": (lambda root: (root / "desert").mkdir(), "FAULT", "desert: holds no image"),
    "an image more": (lambda root: write_image(root / "beach/b.tif", 7), "FAULT", "1 images are in no split of "),
    "the same picture in two splits": (copy_into_another_split, "FAULT", "the same picture in test and train: "),
    "a class in two splits": (drop_class_from_test, "FAULT", "class 'river' has no image in split test"),
    "a stray file": (lambda root: (root / "beach/Thumbs.db").touch(), "remark", "does not belong there: "),
    "a grey image": (
        lambda root: write_image(root / "beach/beach03.tif", 5, mode="L"), "remark", "grey, read as RGB: beach/"
    ),
    "a smaller image": (another_size((8, 6)), "remark", "not 8 x 8 pixels, scaled up to 8 pixels: beach/beach03.tif"),
    "a wider image": (another_size((12, 8)), "remark", "not 8 x 8 pixels, scaled and cut to a square: beach/beach03"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_with_its_file(root, damage, kind, message):
    damage(root)
    result = run()
    lines = [line for line in result.stdout.splitlines() if line.startswith(kind) and message in line]
    assert len(lines) == 1, result.stdout
    assert result.exit_code == (2 if kind == "FAULT" else 0)


def test_without_a_split_the_remark_says_how_to_draw_one(root):
    split_path(SCENE_LAYOUTS["ucmerced"]).unlink()
    result = run()
    assert result.exit_code == 0
    assert "remark  no split has been drawn: python -m paperlib.data.splits ucmerced" in result.stdout
    assert ["beach", "10", "10"] in [line.split() for line in result.stdout.splitlines()]


def test_another_number_of_a_class_than_published_is_a_fault(root):
    shutil.move(root / "beach" / "beach03.tif", root / "river" / "river10.tif")
    split_path(SCENE_LAYOUTS["ucmerced"]).unlink()
    result = run()
    assert result.exit_code == 2 and "ucmerced: 9 images of class beach, 10 were published" in result.stdout


def test_drawn_images_under_the_names_of_uc_merced_pass_with_the_committed_split(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    for seed, name in enumerate(SCENE_LAYOUTS["ucmerced"].published_names):
        path = tmp_path / "ucmerced" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.array([[[seed // 256, seed % 256, 255]]], np.uint8)
        Image.fromarray(values).save(path)
    result = run()
    assert result.exit_code == 0 and "FAULT" not in result.stdout and "remark" not in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert sum(row[1:] == ["70", "10", "20", "100", "100"] for row in rows) == 21
    (tmp_path / "ucmerced" / "beach" / "beach07.tif").unlink()
    assert "FAULT" in (damaged := run().stdout) and "beach/beach07.tif: no such file" in damaged


def check_own(folder):
    return CliRunner().invoke(app, ["data", "check", f"scenes:{folder}"])


def test_own_scenes_are_checked_with_the_split_that_loading_draws(root):
    result = check_own(root)
    assert result.exit_code == 0 and "FAULT" not in result.stdout and "remark" not in result.stdout
    assert ["river", "7", "1", "2", "10"] in [line.split() for line in result.stdout.splitlines()]


def test_own_splits_that_share_an_image_are_a_fault(root, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(root, tmp_path / "own" / split)
    shutil.rmtree(tmp_path / "own" / "val" / "river")
    (tmp_path / "own" / "val" / "lake").mkdir()
    for number in range(1, PER_CLASS):
        write_image(tmp_path / "own" / "val" / "beach" / f"beach{number:02d}.tif", 1000 + number)
    result = check_own(tmp_path / "own" / "{split}")
    faults = [line for line in result.stdout.splitlines() if line.startswith("FAULT")]
    assert result.exit_code == 2 and len(faults) == 3
    assert faults[0].endswith("val/lake: holds no image; put images of its class there, or remove the folder")
    assert faults[1].endswith("the same picture in train and val: train/beach/beach00.tif, val/beach/beach00.tif")
    assert faults[2].endswith("class 'river' has no image in split val")


def test_own_scenes_that_are_missing_are_one_line(tmp_path):
    for folder in ("none", "none/{split}"):
        result = check_own(tmp_path / folder)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert "no such folder of class folders" in result.stderr
