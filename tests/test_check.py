"""`paperlib data check`: on good data the published counts, on damaged data the fault and the file."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.data import load_dataset, registry
from paperlib.data.check import check_entry, describe_registry
from paperlib.data.dota import LAYOUT as DOTA
from paperlib.data.vhr10 import ANNOTATIONS, CLASSES, IMAGES, LAYOUT

GOOD = "(10,20),(30,45),1\n( 1 , 2 ),( 39.5,50),10 \n"
NAMES = ("001", "002", "003")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project whose registry and split know of three images, and these."""
    root = tmp_path / "data" / LAYOUT.folder
    for folder in (IMAGES, ANNOTATIONS):
        (root / folder).mkdir(parents=True)
    for name in NAMES:
        pixels = np.random.default_rng(int(name)).integers(0, 256, (60, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / IMAGES / f"{name}.jpg")
        (root / ANNOTATIONS / f"{name}.txt").write_text(GOOD)
    (tmp_path / "data" / "splits").mkdir()
    (tmp_path / "data" / "splits" / "vhr10.json").write_text(
        json.dumps({"splits": {"train": NAMES[:2], "test": NAMES[2:]}})
    )
    texts = dict.fromkeys(("title", "page", "licence", "citation", "by_hand"), "made")
    boxes = {CLASSES[0]: 3, CLASSES[-1]: 2}
    entry = {**texts, "folder": LAYOUT.folder, "images": 3, "boxes": boxes, "differs": {CLASSES[-1]: 3}}
    (tmp_path / "data" / "registry.yaml").write_text(json.dumps({"vhr10": entry}))
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    return root


def run():
    return CliRunner().invoke(app, ["data", "check", "vhr10"])


def test_good_data_has_no_fault(project):
    result = run()
    assert result.exit_code == 0, result.stdout
    assert "FAULT" not in result.stdout and "remark" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("3 images and 6 boxes read in ")
    (vehicle,) = [line for line in result.stdout.splitlines() if line.startswith("vehicle")]
    assert vehicle.split(maxsplit=3) == ["vehicle", "3", "2", "as in the published files"]


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-500])


def turn_into_png(file):
    with Image.open(file) as image:
        image.copy().save(file, "PNG")


def turn_into_folder(file):
    file.unlink()
    file.mkdir()


def add_line(line):
    return lambda file: file.write_text(GOOD + line + "\n")


def rewrite(**how):
    return lambda file: file.write_text(GOOD, **how)


def copy_of_first(file):
    shutil.copy(file.with_stem("001"), file)


IMAGE, TEXT = f"{IMAGES}/002.jpg", f"{ANNOTATIONS}/002.txt"
DAMAGE = {
    "an image cut short": (IMAGE, cut_short, "FAULT", "the image does not decode"),
    "a PNG called .jpg": (IMAGE, turn_into_png, "FAULT", "has extension .jpg but is PNG"),
    "a zero-byte image": (IMAGE, lambda file: file.write_bytes(b""), "FAULT", "is empty"),
    "a zero-byte annotation": (TEXT, lambda file: file.write_bytes(b""), "FAULT", "is empty"),
    "an extra image": (f"{IMAGES}/004.jpg", copy_of_first, "FAULT", "is not part"),
    "a missing text": (TEXT, Path.unlink, "FAULT", "no such file"),
    "a missing image": (IMAGE, Path.unlink, "FAULT", "no such file"),
    "a NaN": (TEXT, add_line("(1,2),(nan,4),5"), "FAULT", "box 3 (1, 2, nan, 4) is not finite"),
    "reversed corners": (TEXT, add_line("(3,4),(1,2),5"), "FAULT", "box 3 (3, 4, 1, 2) has its corners reversed"),
    "a box of no area": (TEXT, add_line("(1,2),(1,4),5"), "FAULT", "box 3 (1, 2, 1, 4) has no area"),
    "a box outside": (TEXT, add_line("(1,2),(41,4),5"), "FAULT", "box 3 (1, 2, 41, 4) is not inside its image of 40 x"),
    "a class 0": (TEXT, add_line("(1,2),(3,4),0"), "FAULT", "line 3: class 0 is not in 1..10"),
    "a BOM": (TEXT, rewrite(encoding="utf-8-sig"), "remark", "byte order mark at the start, ignored: 002"),
    "CRLF": (TEXT, rewrite(newline="\r\n"), "remark", "lines end in CR LF, which is accepted: 002"),
    "a folder for an image": (IMAGE, turn_into_folder, "FAULT", "is a folder, a file belongs there"),
    "a folder for a text": (TEXT, turn_into_folder, "FAULT", "is a folder, a file belongs there"),
    "the same picture twice": (
        IMAGE, copy_of_first, "remark", "the same picture: 001, 002"
    ),
    "the same box twice": (TEXT, add_line("(10,20),(30,45),1"), "remark", "the same box twice: 002"),
    "another number of boxes": (TEXT, add_line("(1,2),(3,4),1"), "FAULT", "4 boxes of class airplane, 3 were"),
    "a stray file": (f"{IMAGES}/Thumbs.db", Path.touch, "remark", "does not belong there: "),
}  # fmt: skip


@pytest.mark.parametrize(("file", "damage", "kind", "fault"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_with_its_file(project, file, damage, kind, fault):
    damage(project / file)
    result = run()
    lines = [line for line in result.stdout.splitlines() if line.startswith(kind) and fault in line]
    assert len(lines) == 1, result.stdout
    assert Path(file).stem in lines[0] or "boxes of class" in lines[0]
    assert result.exit_code == (2 if kind == "FAULT" or "FAULT" in result.stdout else 0)
    assert ("no faults" in result.stdout) == (result.exit_code == 0)


def test_a_part_of_a_set_without_a_split_is_a_fault_and_its_numbers_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    for folder, file in (("images", "P0001.png"), ("labelTxt", "P0001.txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("gsd:1\n-5 -2 8 -2 8 7 -5 7 plane 0\n")
    Image.new("L", (30, 20)).save(tmp_path / "images" / "P0001.png")
    texts = dict.fromkeys(("title", "page", "licence", "citation", "by_hand", "folder"), "made")
    report = check_entry(DOTA.name, registry.Entry(**texts, images=7, boxes={"plane": 9}), tmp_path)
    assert report.faults == [f"{tmp_path}: 1 of 7 published images"]
    assert report.table[0] == {"class": "plane", "boxes": 1, "published": 9, "": ""}
    assert report.remarks == [
        "boxes stick out of the image, cut at its border: P0001",
        "7 annotated images were published: the numbers cannot be compared",
    ]


def test_of_many_images_that_the_split_does_not_list_one_line_says_what_to_do(project):
    for number in range(100, 140):
        copy_of_first(project / IMAGES / f"{number}.jpg")
        (project / ANNOTATIONS / f"{number}.txt").write_text(GOOD)
    result = run()
    (fault,) = [line for line in result.stdout.splitlines() if line.startswith("FAULT")]
    assert "nwpu-vhr10: 40 images are in no split of " in fault and "vhr10.json (100, …)" in fault
    assert fault.endswith("draw a new split: python -m paperlib.data.splits vhr10") and result.exit_code == 2
    with pytest.raises(ValueError) as caught:
        load_dataset("vhr10", "train")
    assert fault == f"FAULT  {caught.value}"


def test_weights_are_here_when_their_file_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_WEIGHTS", str(tmp_path))
    entries = {"coco-weights": registry.find_entry("coco-weights")}
    assert " no " in describe_registry(entries).splitlines()[-1]
    (tmp_path / "yolov4-tiny.weights").touch()
    assert " yes " in describe_registry(entries).splitlines()[-1]


def test_weights_are_compared_with_their_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_WEIGHTS", str(tmp_path))
    result = CliRunner().invoke(app, ["data", "check", "coco-weights"])
    assert result.exit_code == 2 and "yolov4-tiny.weights: no such file" in result.stdout
    (tmp_path / "yolov4-tiny.weights").write_bytes(b"x")
    result = CliRunner().invoke(app, ["data", "check", "coco-weights"])
    assert result.exit_code == 2 and "yolov4-tiny.weights: 1 bytes whose SHA-256 is not cf9fbfd0" in result.stdout


def test_the_real_vhr10_has_the_published_counts_but_for_vehicles_and_the_check_is_quick(data_root):
    entry = registry.find_entry("vhr10")
    if not (data_root / entry.folder).is_dir():
        pytest.skip(f"{data_root} does not hold {entry.folder}")
    started = time.process_time()
    report = check_entry("vhr10", entry, data_root / entry.folder)
    busy = time.process_time() - started
    assert report.faults == []
    counts = {row["class"]: row["boxes"] for row in report.table}
    assert counts == entry.boxes | {"vehicle": 598} and sum(counts.values()) == 3896
    assert [row["class"] for row in report.table if row[""]] == ["vehicle"]
    assert busy < 20 * min(2, os.cpu_count())  # 20 s on two cores that have nothing else to do
