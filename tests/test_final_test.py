"""`paperlib compress` with one data set of three splits: judged on the test images once, which change nothing else."""

import json

import pytest
import tiny
from typer.testing import CliRunner

from paperlib.cli.main import app

OPTIONS = {
    "--width": 0.1, "--image-size": 64, "--epochs": 1, "--fine-tune-epochs": 1, "--batch-size": 4, "--step": 0.6,
    "--max-drop": 1, "--round-to": 1, "--threads": 1, "--timing-seconds": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    sets = tiny.of_classes(tiny.dataset(), tiny.dataset("val", 4), tiny.dataset("test", 3))
    for split, data in zip(("train", "val", "test"), sets, strict=True):
        tiny.write_coco(folder, split, data)
    return folder


def compress(folder, out, *flags):
    options = (str(part) for pair in OPTIONS.items() for part in pair)
    given = ["--data", f"{folder}/{{split}}.json", "--images", str(folder / "images"), "--out", str(out)]
    return CliRunner().invoke(app, ["compress", *given, *options, *flags])


@pytest.mark.usefixtures("outputs_are_quick")
def test_the_test_images_are_judged_at_the_end_and_change_nothing_else(folder, tmp_path):
    out = tmp_path / "out"
    result = compress(folder, out)
    assert result.exit_code == 0, result.output
    student, before = (out / "student.safetensors").read_bytes(), json.loads((out / "metrics.json").read_text())
    assert before["test"] is None
    result = compress(folder, out, "--test", f"{folder}/{{split}}.json")
    assert result.exit_code == 0, result.output
    after = json.loads((out / "metrics.json").read_text())
    assert (out / "student.safetensors").read_bytes() == student
    assert {**after, "test": None} == before
    assert after["test"]["images"] == 3 and list(after["test"]["models"]) == ["original", "student", "student, int8"]
    assert "On 3 test images, which took part in no training and no choice" in (out / "report.md").read_text()
    assert set(json.loads((out / "provenance.json").read_text())["data_digest"]) >= {"train", "val", "test"}


def boxes_of_a_new_class(content):
    content["categories"].append({"id": 99, "name": "submarine"})
    content["annotations"][0]["category_id"] = 99


def no_boxes(content):
    content["annotations"] = []


FAULTS = {
    "a-validation-image": ("val.json", lambda content: None, "image val-0.png is also in"),
    "another-class": ("test.json", boxes_of_a_new_class, "other.json: has boxes of 'submarine', which is none of"),
    "no-boxes": ("test.json", no_boxes, "other.json: no boxes, so nothing can be evaluated"),
}


@pytest.mark.parametrize(("name", "change", "fault"), FAULTS.values(), ids=FAULTS)
def test_test_data_that_cannot_judge_are_refused_before_anything_is_begun(folder, tmp_path, name, change, fault):
    content = json.loads((folder / name).read_text())
    change(content)
    (tmp_path / "other.json").write_text(json.dumps(content))
    result = compress(folder, tmp_path / "out", "--test", str(tmp_path / "other.json"))
    assert result.exit_code == 2 and fault in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_without_validation_data_one_split_is_not_guessed(folder, tmp_path):
    given = ["--data", str(folder / "train.json"), "--images", str(folder / "images"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["compress", *given])
    assert result.exit_code == 2 and "--val is missing" in result.stderr and "train.json#80/20/0" in result.stderr
