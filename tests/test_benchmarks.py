"""The benchmarks run, on the smallest settings and without rivals. What they measure is for an idle machine."""

import json
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperlib import build_detector, export_onnx
from paperlib.data import load_dataset
from paperlib.data.toy import aerial

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = ["--image-size", "64", "--threads", "1"]
ONCE = ["--rounds", "1"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: runpy.run_path(str(BENCHMARKS / name))


@pytest.fixture(scope="module")
def paper():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return runpy.run_path(str(BENCHMARKS / "paper.py"))
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)  # some share parts with others

    def run_script(name, *arguments, usual=TINY):
        monkeypatch.setattr(sys, "argv", [name, *usual, *arguments])
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def test_few_real_images_are_a_root_from_which_every_data_set_loads(script, data_root, tmp_path, monkeypatch):
    few_images = script("few.py")["few_images"]
    few_images(tmp_path, {"train": 4, "val": 2, "test": 3})
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path / "data"))
    for name in ("vhr10", "rsod", "dota"):
        sizes = {split: load_dataset(name, split) for split in ("train", "val", "test")}
        assert all(sum(data.box_counts().values()) for data in sizes.values()), name
    assert len(load_dataset("vhr10", "train")) == 4
    assert set(load_dataset("rsod", "train").box_counts()) == {"aircraft", "oiltank", "overpass", "playground"}
    assert (tmp_path / "notebooks").is_dir() and (tmp_path / "results" / "reported").is_dir()


def test_latency_prints_a_realised_share_for_each_runtime(run):
    small = ["--detectors", "yolov4-tiny", "--width", "0.125", "--ratios", "0.5", "--seconds", "0.01"]
    rows = [line for line in run("latency.py", *ONCE, *small).splitlines() if "yolov4-tiny" in line]
    assert len(rows) == 6
    for runtime in ("torch", "onnxruntime", "openvino"):
        whole, pruned = (row for row in rows if f" {runtime} " in row)
        assert "nan" in whole.split("|")[-2]
        compute, time, share = (float(cell.split()[0]) for cell in pruned.split("|")[-4:-1])
        assert share == pytest.approx(time / compute, rel=0.1, abs=0.1)


def test_turns_compares_files_with_the_first(run, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = build_detector("yolov4-tiny", 2, width=0.125).eval()
    files = [str(tmp_path / f"{name}.onnx") for name in ("one", "other")]
    for file in files:
        export_onnx(detector, Path(file), 64, tolerance=0.05)
    _, one, other = run("turns.py", *files, "--turns", "3", usual=[]).splitlines()
    assert one.startswith("one.onnx") and "1.00 (1.00 to 1.00) times as fast" in one and other.startswith("other.onnx")


def test_training_prints_images_per_second(run):
    said = run("training.py", *ONCE, "--rivals", "--batch-size", "2", "--steps", "1")
    rows = [line.split("|") for line in said.splitlines() if line.startswith("| paperlib")]
    assert [row[1].strip() for row in rows] == ["paperlib", "paperlib, bfloat16"]
    assert all(float(row[3]) > 0 for row in rows)
    assert "without pytorchyolo" in said


def test_partners_prints_what_a_step_costs_with_and_without(run):
    said = run("partners.py", *ONCE, "--batch-size", "2")
    rows = [line.split("|")[2:-1] for line in said.splitlines() if line.startswith(("| alone", "| partners"))]
    alone, *together = ([float(cell.split()[0]) for cell in row] for row in rows)
    assert len(together) == 3 and alone[2:] == [1, 1]
    assert all(row[0] > 1.5 * alone[0] and row[1] > 0 for row in together)


def test_learning_prints_what_is_left_of_map_after_cut_and_fine_tuning(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path))
    monkeypatch.setattr(aerial, "SIZES", {"train": 16, "val": 8, "test": 8})
    said = run("learning.py", "--detectors", "yolov4-tiny", "--epochs", "1")
    rows = [line.split("|") for line in said.splitlines() if "yolov4-tiny" in line]
    assert [row[2].strip() for row in rows] == ["trained", "pruned 50%", "fine-tuned"]
    sizes = [float(row[3]) for row in rows]
    assert sizes[0] > 2 * sizes[1] == 2 * sizes[2]
    assert all(0 <= float(row[-2]) <= 1 for row in rows)


def test_a_recipe_is_judged_by_images_that_it_did_not_learn_from(run, script, tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path))
    monkeypatch.setattr(aerial, "SIZES", {"train": 16, "val": 8, "test": 8})
    asked = ["--profile", "quick", "--set", "epochs=1", "image_size=64", "--sparse", "--ratios", "0.5"]
    said = run("recipe.py", *asked, "--threads", "1", usual=())
    assert "11 training images, 13 evaluation images" in said
    rows = [line.split("|") for line in said.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows[1:]] == ["sparse", "cut 50%"]
    assert float(rows[1][2]) > 2 * float(rows[2][2])
    parts = script("recipe.py")["splits"]("toy-aerial")
    learned, judging = ({record.name for record in part.records} for part in (parts.train, parts.val))
    assert (len(learned), len(judging)) == (11, 13) and not learned & judging
    judged = {json.loads(path.read_text())["step"]["data"] for path in tmp_path.glob("evaluate-*/step.json")}
    assert judged == {parts.val.digest}


def test_every_arm_is_tuned_with_the_same_trials_on_validation_images(run, script, tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(aerial, "SIZES", {"train": 16, "val": 8, "test": 8})
    log = tmp_path / "log.jsonl"
    small = ["--profile", "quick", "--set", "epochs=1", "fine_tune_epochs=1", "image_size=64", "ratios=[0.2, 0.4]"]
    said = run("tuning.py", *small, "--trials", "2", "--threads", "1", "--log", str(log), usual=())
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["trial"], row["arm"]) for row in rows] == [
        (t, a) for t in (0, 1) for a in ("fine-tuning", "KD", "TAKD")
    ]
    assert len({(row["rate"], row["warmup"], row["times"]) for row in rows}) == 2
    assert all(("temperature" in row) == (row["arm"] != "fine-tuning") for row in rows)
    assert said.count("| KD") == 2
    val = script("recipe.py")["Splits"]("toy-aerial").val.digest
    judged = {json.loads(path.read_text())["step"]["data"] for path in tmp_path.glob("store/evaluate-*/step.json")}
    assert judged == {val}


def test_a_trial_with_a_setting_that_does_not_fit_ends_in_one_line(run):
    with pytest.raises(SystemExit, match="^--set: learning_rate: "):
        run("recipe.py", "--profile", "quick", "--set", "learning_rate=2e-3", usual=())


@settings(max_examples=40)
@given(
    hours=st.lists(st.integers(0, 50), min_size=1, max_size=12),
    waits=st.lists(st.frozensets(st.integers(0, 11)), min_size=12, max_size=12),
    gpus=st.integers(1, 20),
)
def test_a_schedule_on_one_gpu_is_the_sum_and_never_shorter_than_the_critical_path(paper, hours, waits, gpus):
    names = [f"job {number}" for number in range(len(hours))]
    length = dict(zip(names, map(float, hours), strict=True))
    after = {name: [names[i] for i in waits[number] if i < number] for number, name in enumerate(names)}
    chain = paper["find_critical_path"](length, after)
    assert all(first in after[second] for first, second in pairwise(chain))
    total, path = sum(hours), sum(length[name] for name in chain)
    assert paper["simulate"](length, after, 1) == total
    ends = paper["simulate"](length, after, gpus)
    # Graham's bound holds for every schedule that leaves no GPU idle while a job could start.
    assert max(path, total / gpus) <= ends <= total / gpus + (1 - 1 / gpus) * path + 1e-9
    assert paper["simulate"](length, after, len(names)) == path


def test_the_longest_job_that_can_start_comes_first(paper):
    hours, after = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 3.0}, {"a": [], "b": [], "c": [], "d": ["c"]}
    assert paper["simulate"](hours, after, 2) == 6  # c, and a and b one after the other; then d
    assert paper["find_critical_path"](hours, after) == ["c", "d"]


@pytest.mark.parametrize("detections", [0, 40, 300])
def test_average_precision_has_the_digits_of_pycocotools(script, detections):
    judging = script("judging.py")
    dataset, found = judging["draw_case"](images=6, detections=detections)
    metrics = judging["compute_metrics"](found, dataset)
    oracle = judging["judge_by_pycocotools"](found, dataset)
    assert (metrics.map50, metrics.map) == pytest.approx((oracle[0].mean(), oracle.mean()), abs=1e-12)


def test_reading_prints_what_an_annotation_file_takes(run):
    said = run("reading.py", "--images", "3", "--rounds", "2", usual=())
    assert "3 images, 0.0 MB, 2 rounds: 0" in said


def test_predict_prints_the_pace_of_both_models(run):
    lines = run("predict.py", "--pictures", "3", "--width", "0.125").splitlines()
    paces = [float(line.split(": ")[1].split(" ")[0]) for line in lines if "pictures a second" in line]
    assert len(paces) == 2 and float(lines[-1].split()[1]) == pytest.approx(paces[1] / paces[0], rel=0.3)
