"""`paperlib compress`: anyone's data in, a student and its report out; killed anywhere, the same in the end."""

import json
import re
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from conftest import time_one_export
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.compression import outputs, report
from paperlib.compression.command import read_inputs
from paperlib.compression.request import CompressRequest
from paperlib.costs import cost
from paperlib.deploy.onnx import make_deployable, open_onnx_session
from paperlib.detectors import build_detector
from paperlib.detectors.darknet import _slots
from paperlib.detectors.files import load_detector, save_detector
from paperlib.pairs import find_partners
from paperlib.partners.extend import partner_gmacs
from paperlib.training import running

OPTIONS = {
    "--width": 0.1, "--image-size": 64, "--epochs": 2, "--fine-tune-epochs": 1, "--batch-size": 4, "--step": 0.3,
    "--max-drop": 1, "--round-to": 1, "--threads": 1, "--timing-seconds": 0.01,
}  # fmt: skip
MARKUP = "<script>|*a*_b_"
"""The name of a class."""
TIMED = {"timing.json", "report.md", "report.html", "provenance.json", "progress.log"}
"""Files that depend on the time of day or on how long something took."""
ALWAYS_NEW = {"provenance.json", "progress.log"}
"""Those of them that change even if the same command has nothing left to do."""
TWO_SEEDS = {"seeds": 2, "epochs": 1, "step": 0.6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    train, val = tiny.of_classes(tiny.dataset(), tiny.dataset("val", 4))
    train.classes = val.classes = (MARKUP, *train.classes[1:])
    for name, data in (("train", train), ("val", val)):
        tiny.write_coco(folder, name, data)
    return folder


def arguments(folder, out, *flags, **changes):
    paths = {"--data": folder / "train.json", "--val": folder / "val.json", "--images": folder / "images"}
    options = {**paths, "--out": out, **OPTIONS, **{f"--{k.replace('_', '-')}": v for k, v in changes.items()}}
    return ["compress", *(str(part) for pair in options.items() for part in pair), *flags]


def invoke(*given, **changes):
    return CliRunner().invoke(app, arguments(*given, **changes))


def contents(out, leave_out=()):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name not in leave_out}


# --- what is handed over --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def delivered(folder, tmp_path_factory, timed_files):
    out = tmp_path_factory.mktemp("delivered") / "out"
    with pytest.MonkeyPatch.context() as patch:
        time_one_export(patch, tmp_path_factory, timed_files)
        result = invoke(folder, out, "--controls", **TWO_SEEDS)
    assert result.exit_code == 0, result.output
    return out, result


def test_the_student_comes_as_a_detector_and_as_onnx_with_the_numbers_that_are_told(delivered):
    out, result = delivered
    assert {path.name for path in out.iterdir()} == TIMED | {
        "student.safetensors", "student.onnx", "student.int8.onnx", "table.csv", "metrics.json", "detect_onnx.py",
        "steps",
    }  # fmt: skip
    student, told = load_detector(out / "student.safetensors"), json.loads((out / "metrics.json").read_text())
    last = told["stages"][-1]
    assert last["role"] == "student" and last["cost"]["size_mb"] == cost(student, 64).size_mb
    boxes, scores = open_onnx_session(out / "student.onnx", 1).run(None, {"images": torch.zeros(1, 3, 64, 64).numpy()})
    assert boxes.shape[:2] == scores.shape[:2] and scores.shape[2] == student.num_classes
    table = pd.read_csv(out / "table.csv")
    assert list(table["mb"]) == [stage["cost"]["size_mb"] for stage in told["stages"]]
    assert result.stdout.splitlines()[-1].startswith(f"{out}: {cost(student, 64).size_mb:.3g} MB, mAP")


def test_rivals_are_told_with_their_spread_over_the_seeds(delivered):
    out, _ = delivered
    models = pd.DataFrame(json.loads((out / "metrics.json").read_text())["models"])
    assert sorted(models["seed"].unique()) == [0, 1]
    assert (models.groupby("model").size() == 2).all() and models["model"].nunique() == 8
    report = (out / "report.md").read_text()
    assert all(f"| {name}" in report for name in models["model"]) and "±" in report and "2 seeds" in report


def test_the_page_needs_no_other_file_and_has_a_light_and_a_dark_side(delivered):
    out, _ = delivered
    page, text = ((out / f"report.{kind}").read_text() for kind in ("html", "md"))
    pictures = re.findall(r'<picture><source media="\(prefers-color-scheme: dark\)" srcset="data:image', page)
    assert len(pictures) == 7 == len(re.findall(r"^\[\w+\]: data:image", text, re.M))
    addresses = re.findall(r'(?:src|srcset|href)="([^"]{5})|url\((.{5})', page)
    assert {first or second for first, second in addresses} == {"data:"}
    for title in ("The chain", "Classes", "Latency", "Channels", "Detections", "Controls", "What it took"):
        assert f"<h2>{title}</h2>" in page and f"\n## {title}\n" in text
    assert "An epoch with a teacher takes" in text


def test_the_certificate_names_settings_and_data_but_no_folder(delivered, folder):
    out, _ = delivered
    born = json.loads((out / "provenance.json").read_text())
    assert born["seeds"] == [0, 1] and set(born["data_digest"]) == {"train", "val"}
    assert born["settings"]["compression"]["step"] == 0.6 and born["settings"]["data"] == "…/train.json"
    assert str(folder) not in (out / "provenance.json").read_text() + (out / "report.md").read_text()


def test_the_same_command_again_trains_nothing_and_gives_the_same_files(delivered, folder):
    out, _ = delivered
    before = contents(out, ALWAYS_NEW)
    steps = {path: path.stat().st_mtime_ns for path in (out / "steps").rglob("*") if path.suffix != ".lock"}
    assert invoke(folder, out, "--controls", **TWO_SEEDS).exit_code == 0
    assert contents(out, ALWAYS_NEW) == before
    assert {path: path.stat().st_mtime_ns for path in (out / "steps").rglob("*") if path.suffix != ".lock"} == steps


def test_the_report_begins_with_the_candidate_that_is_handed_over(delivered):
    out, _ = delivered
    told = json.loads((out / "metrics.json").read_text())["candidates"]
    (winner,) = [each for each in told if each["delivered"]]
    assert len(told) >= 5 and winner["map50"] == max(each["map50"] for each in told)
    first = (out / "report.md").read_text().split("\n\n")[1]
    accuracy = f"(mAP {100 * winner['map50']:.1f} %)"
    assert first.startswith(f"Of {len(told)} candidates the one that was {winner['trained']} is the most accurate")
    assert accuracy in first and "points above the next, which was" in first


def test_an_original_that_has_hardly_learned_is_told_at_the_end_and_in_the_report(delivered):
    out, result = delivered
    assert json.loads((out / "metrics.json").read_text())["stages"][0]["fine_tuned"]["map50"] < 0.1
    assert "so it has hardly learned and neither has its student" in result.stderr.splitlines()[-1]
    assert "so it has hardly learned and neither has its student" in (out / "report.md").read_text()


def test_a_class_that_looks_like_markup_stays_text(delivered):
    page = (delivered[0] / "report.html").read_text()
    assert "<script>" not in page and ">&lt;script&gt;|*a*_b_</td>" in page


@pytest.mark.slow
@pytest.mark.usefixtures("one_export_is_timed", "figures_are_not_drawn")
def test_with_partners_the_student_is_an_ordinary_network_and_the_report_tells_their_cost(folder, tmp_path):
    changes = {"epochs": 1, "step": 0.6, "diversity_weight": 0.1}
    result = invoke(folder, tmp_path, "--partners", "--controls", **changes)
    assert result.exit_code == 0, result.output
    student = load_detector(tmp_path / "student.safetensors")
    assert not find_partners(student)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = open_onnx_session(tmp_path / "student.onnx", 1).run(None, {"images": images.numpy()})
    with torch.no_grad():
        for expected, values in zip(make_deployable(student, 64)(images), found, strict=True):
            torch.testing.assert_close(torch.from_numpy(values), expected, rtol=1e-3, atol=1e-3)
    settings = json.loads((tmp_path / "provenance.json").read_text())["settings"]["compression"]
    assert (settings["partners"], settings["diversity"], settings["diversity_weight"]) == (True, "orthogonal", 0.1)
    used, report = cost(student, 64).gmacs, (tmp_path / "report.md").read_text()
    assert f"{1 + partner_gmacs(student, 64) / used:.2f} times the {used:.3g} GMACs" in report
    assert "| student, distilled without partners" in report


@pytest.mark.slow
@pytest.mark.usefixtures("outputs_are_quick")
def test_by_dynamic_distillation_the_report_says_its_settings(folder, tmp_path):
    result = invoke(folder, tmp_path, "--set", "gd_fraction=0.25", epochs=1, step=0.6, distillation="dynamic")
    assert result.exit_code == 0, result.output
    assert "dynamic (DKD): λ_g = 1.0, q = 0.25, λ_i = 0.5, K = 50, λ_r = 2.0" in (tmp_path / "report.md").read_text()
    distilled = list((tmp_path / "steps").glob("distil-*/history.jsonl"))
    assert distilled and all('"status"' in history.read_text() for history in distilled)


# --- input that cannot be used --------------------------------------------------------------------------


def damaged(name, *keys, to):
    def damage(folder):
        content = json.loads((folder / f"{name}.json").read_text())
        at = content
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = to(at[keys[-1]]) if callable(to) else to
        (folder / f"{name}.json").write_text(json.dumps(content))

    return damage


def cut_short(folder):
    path = folder / "images" / "val-1.png"
    path.write_bytes(path.read_bytes()[:300])


def three_classes(folder):
    save_detector(tiny.detector(num_classes=3), folder / "other.safetensors")


def five_classes(folder):
    detector = build_detector("yolov4-tiny", 5, width=OPTIONS["--width"])
    values = b"".join(tensor.detach().numpy().tobytes() for tensor in _slots(detector))
    (folder / "five.weights").write_bytes(b"\0\0\0\0\2\0\0\0" + bytes(12) + values)


def no_ships(found):
    return [each for each in found if each["category_id"] != 2]


FAULTS = {
    "category-without-boxes": (damaged("train", "annotations", to=no_ships), {}, "val.json: has boxes of 'ship'"),
    "image-missing": (lambda f: (f / "images" / "train-3.png").unlink(), {}, "train-3.png: no such image (listed in"),
    "duplicate-ids": (damaged("val", "images", 1, "id", to=0), {}, "val.json, images: id 0 is given 2 times"),
    "no-area": (damaged("train", "annotations", 0, "bbox", 2, to=0), {}, "train.json, annotations[0]: bbox ["),
    "not-json": (lambda f: (f / "train.json").write_text("{"), {}, "train.json, line 1: not JSON"),
    "classes-differ": (damaged("val", "categories", 0, "name", to="car"), {}, "val.json: lists no category '"),
    "no-validation-image": (damaged("val", "images", to=[]), {}, "val.json: lists no images"),
    "no-validation-box": (damaged("val", "annotations", to=[]), {}, "val.json: no boxes, so nothing can be evaluated"),
    "judged-by-what-it-learned": (lambda f: None, {"val": "train.json"}, "val: image train-0.png is also in"),
    "broken-image": (cut_short, {}, "val-1.png: the image does not decode"),
    "unknown-detector": (lambda f: None, {"detector": "yolov9"}, "unknown detector 'yolov9'"),
    "odd-side": (lambda f: None, {"image_size": 65}, "--image-size: Input should be a multiple of 32"),
    "no-epoch": (lambda f: None, {"fine_tune_epochs": 0}, "--fine-tune-epochs: Input should be greater than 0"),
    "no-drop": (lambda f: None, {"max_drop": 0}, "--max-drop: Input should be greater than 0"),
    "no-diversity": (
        lambda f: None, {"diversity": "angular"}, "--diversity: Input should be 'orthogonal', 'public', 'absolute'"
    ),
    "negative-diversity": (lambda f: None, {"diversity_weight": -1}, "--diversity-weight: Input should be greater"),
    "small-enough": (lambda f: None, {"target_mb": 1000}, "--target-mb 1000: the detector has 0."),
    "no-weights": (lambda f: None, {"weights": "gone.weights"}, "gone.weights: no such"),
    "other-classes": (three_classes, {"weights": "other.safetensors"}, "classes, the detector has 3"),
    "darknet-of-other-classes": (five_classes, {"weights": "five.weights"}, "five.weights: for 5 classes, "),
    "other-detector": (
        three_classes, {"weights": "other.safetensors", "detector": "yolov4"}, "is a yolov4-tiny, not a yolov4"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "changes", "complaint"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_one_line_before_anything_is_begun(damage, changes, complaint, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    damage(tmp_path / "data")
    placed = {key: tmp_path / "data" / value if "." in str(value) else value for key, value in changes.items()}
    result = invoke(tmp_path / "data", tmp_path / "out", **placed)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("paperlib: ") and complaint in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("outputs_are_quick")
def test_classes_are_matched_by_name_and_what_was_repaired_is_told(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    root = {"id": 0, "name": "things", "supercategory": "none"}
    damaged("train", "categories", to=lambda found: [root, *found])(tmp_path / "data")
    damaged("val", "categories", to=lambda found: found[::-1])(tmp_path / "data")
    train, val = (tmp_path / "data" / f"{name}.json" for name in ("train", "val"))
    images = tmp_path / "data" / "images"
    given = {"data": train, "val": val, "images": images, "out": tmp_path / "out"}
    (tmp_path / "out").mkdir()
    expected = read_inputs(CompressRequest(**{**given, "data": folder / "train.json", "val": folder / "val.json"}))
    found = read_inputs(CompressRequest(**given))
    assert [data.digest for data in found] == [data.digest for data in expected]
    chosen = read_inputs(CompressRequest(**given, classes="ship"))
    assert chosen[0].classes == chosen[1].classes == ("ship",)
    result = invoke(tmp_path / "data", tmp_path / "out", epochs=1, step=0.6)
    told = f"{train}: categories without boxes are left out: 'things'"
    assert result.exit_code == 0 and f"paperlib: {told}" in result.stderr
    assert told.removeprefix(str(train)) in (tmp_path / "out" / "report.md").read_text()


# --- killed ---------------------------------------------------------------------------------------------


def run(given):
    running.SECONDS_BETWEEN_STATES = 0
    # Two further exports and the figures would take most of the time, so the student's file is timed.
    report.Picture.encode = lambda *_: "data:,"
    outputs.export_for_timing = lambda *_: Path(given[given.index("--out") + 1]) / "student.onnx"
    app(given)


def killed(given, reached):
    """Run the command and kill it, at once and for good, when `reached()`."""
    process = tiny.processes.Process(target=run, args=(given,))
    process.start()
    while process.is_alive() and not reached():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -9, "it ended before it was killed"


def finished(given):
    process = tiny.processes.Process(target=run, args=(given,))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def dozen(data_root, tmp_path_factory):
    """A dozen images of NWPU VHR-10 as somebody's own, by the annotations in COCO format that come with it."""
    root = data_root / "nwpu-vhr10"
    if not (root / "annotations.json").is_file():
        pytest.skip(f"{root} holds no annotations.json")
    content, folder = json.loads((root / "annotations.json").read_text()), tmp_path_factory.mktemp("dozen")
    chosen = {"train": content["images"][:80:10], "val": content["images"][5:45:10]}
    shown = {name: {image["id"] for image in images} for name, images in chosen.items()}
    marked = {name: [each for each in content["annotations"] if each["image_id"] in ids] for name, ids in shown.items()}
    common = set.intersection(*({each["category_id"] for each in found} for found in marked.values()))
    for name, images in chosen.items():
        part = {
            "images": images,
            "categories": [each for each in content["categories"] if each["id"] in common],
            "annotations": [each for each in marked[name] if each["category_id"] in common],
        }
        (folder / f"{name}.json").write_text(json.dumps(part))
    return folder, root / "positive image set"


@pytest.mark.slow
def test_killed_in_the_middle_of_every_stage_it_ends_with_the_same_files(dozen, tmp_path):
    folder, images = dozen
    left_alone, disturbed = tmp_path / "left alone", tmp_path / "disturbed"
    steps = disturbed / "steps"

    def unfinished(kind, inside="step.json"):
        return lambda: any(True for path in steps.glob(f"{kind}-*.partial") for _ in path.glob(inside))

    given = arguments(folder, disturbed, images=images, step=0.45)
    stages = {
        "new": unfinished("new"),
        "sparse training": unfinished("train", "fit/state-00001"),
        "pruning": unfinished("prune"),
        "fine-tuning": unfinished("train"),
        "evaluation": unfinished("evaluate"),
        "distillation": unfinished("distil"),
        "delivery": lambda: (disturbed / "student.onnx").exists(),
    }
    for reached in stages.values():
        killed(given, reached)
        assert not (disturbed / "provenance.json").exists()
    finished(arguments(folder, left_alone, images=images, step=0.45))
    # With the same clocks the reports are the same, too.
    shutil.copy(left_alone / "timing.json", disturbed)
    finished(given)
    assert contents(disturbed, ALWAYS_NEW) == contents(left_alone, ALWAYS_NEW)
