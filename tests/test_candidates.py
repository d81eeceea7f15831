"""The best of all students is handed over, and a time budget decides once what there is no time for."""

import json
import shutil
import time
from dataclasses import replace

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.compression.budget import SHORTEST, TEACHER_COST, TimeBudget, fit_epochs
from paperlib.compression.request import CompressRequest, parse_duration
from paperlib.detectors.files import load_detector
from paperlib.evaluation.evaluate import evaluate
from paperlib.store.store import Store
from paperlib.structure import describe_structure
from paperlib.workbench.candidates import CONTROLS_HOW, add_controls, compress, train_controls
from paperlib.workbench.options import Compression

TRAIN, VAL = tiny.of_classes(tiny.dataset(), tiny.dataset("val", 4))
[FOUR] = tiny.of_classes(tiny.dataset(count=4))
PLAIN = {"zoom": 1.0, "shift": 0.0, "symmetries": False, "colour": 0.0, "learning_rate": 1e-2, "validate_every": 40}
SETTINGS = Compression(
    step=0.2, max_drop=0.9, target_mb=0.13, similar=1.0, sparsity=1e-3, fine_tuning=tiny.recipe(epochs=4, **PLAIN),
    candidates=("direct", "dynamic", "partners"),
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("steps")
    recipe = tiny.recipe(epochs=24, schedule="cosine", **PLAIN)  # learns the four pictures by heart
    detector = tiny.detector(num_classes=len(FOUR.classes))
    compressed = compress(detector, FOUR, FOUR, recipe, SETTINGS, store=Store(root))
    return root, add_controls(compressed, train_controls(compressed))


def test_no_model_of_the_students_shape_in_the_steps_is_more_accurate_than_the_student(made):
    root, compressed = made
    shape = describe_structure(compressed.student)
    trained = [path.parent for path in root.glob("*/history.jsonl")]
    rivals = [load_detector(folder / "detector.safetensors") for folder in trained]
    alike = [each for each in rivals if describe_structure(each) == shape]
    scores = [evaluate(each, FOUR, image_size=tiny.SIDE).map50 for each in alike]
    # Fine-tuned, distilled, three further candidates, and three controls (one is the direct distillation again).
    assert len(scores) == len(compressed.chain[-1].candidates) == 8
    assert len(set(scores)) > 1 and compressed.delivered.metrics.map50 == max(scores)


def test_every_way_of_training_can_win(made):
    _, compressed = made
    last = compressed.chain[-1]
    assert {each.name for each in last.others} >= {*CONTROLS_HOW.values(), "distilled dynamically"} - {
        "distilled without partners"
    }
    for winner in last.others:
        others = tuple(
            replace(each, metrics=replace(each.metrics, map50=float(each == winner))) for each in last.others
        )
        stage = replace(last, tuned=replace(last.tuned, map50=0.5), others=others)
        changed = replace(compressed, stages=[*compressed.stages[:-1], stage])
        assert changed.delivered.name == winner.name and tiny.equal(changed.student, winner.model.detector())
        assert replace(changed, pure=True).delivered.name == "distilled"


def test_pure_trains_no_further_candidate(made):
    root, compressed = made
    before = {path.name for path in root.iterdir()}
    given = compressed.given.detector()
    pure = SETTINGS.model_copy(update={"pure": True})
    again = compress(given, FOUR, FOUR, compressed.workbench.recipe, pure, store=Store(root))
    assert again.chain[-1].others == () and again.delivered.name == "distilled"
    assert {path.name for path in root.iterdir()} == before


# --- a time budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("2h", 7200), ("90m", 5400), ("45m30s", 2730), ("1H30M", 5400)])
def test_a_time_is_read_as_people_write_it(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "0m", "-1h", "30m2h", "1.5h", "2 h"])
def test_another_time_is_refused(text):
    with pytest.raises(ValueError, match="expected a time such as"):
        parse_duration(text)


counts = st.integers(1, 300)


@given(st.floats(0, 1e4), counts, counts, st.lists(st.floats(0.1, 1), min_size=1, max_size=9))
def test_what_is_planned_fits_and_fine_tunings_are_shortened_first(available, long, short, fractions):
    chosen = fit_epochs(available, long, short, fractions)
    if chosen is None:
        assert available < SHORTEST * (long + 3) + (2 + TEACHER_COST) * SHORTEST * (short + 3)
        return
    weight = sum(fractions) + fractions[-1] + TEACHER_COST
    assert SHORTEST * long <= chosen[0] <= long and SHORTEST * short <= chosen[1] <= short
    shortest = chosen[0] < SHORTEST * long + 1 and chosen[1] < SHORTEST * short + 1
    assert shortest or chosen[0] + chosen[1] * weight <= available + 1e-6
    assert chosen[0] == long or chosen[1] < SHORTEST * short + 1


def request(out, **changes):
    given = {"data": "train.json", "val": "val.json", "out": out, "epochs": 6, "fine_tune_epochs": 3, "budget": "1h"}
    return CompressRequest(**{**given, **changes})


class Trained:
    """A model whose epochs took so many seconds."""

    def __init__(self, seconds):
        self.seconds = seconds

    def history(self):
        import pandas as pd

        return pd.DataFrame({"seconds": [self.seconds] * 3})


def test_a_decision_is_made_once_and_kept_for_the_same_request_and_data(tmp_path):
    def clock(spent, data="d", **changes):
        made = TimeBudget(request(tmp_path, **changes), (data,), 10.0, time.perf_counter() - spent)
        made._plan |= {"epoch_seconds": 1.0, "epochs": 6, "fine_tune_epochs": 3}
        return made

    assert clock(0).has_time("candidate", Trained(100.0), 1)
    assert clock(3500).has_time("candidate", Trained(100.0), 1)  # although the time is over
    assert not clock(3500).has_time("other", Trained(100.0), 1)
    assert not clock(0).has_time("other", Trained(100.0), 1)
    assert clock(0).describe() == ["--budget 1h: there was no time for: other."]
    assert clock(0, data="changed").has_time("other", Trained(100.0), 1)
    assert clock(0, budget="2h").has_time("other", Trained(100.0), 1)


def test_time_of_earlier_runs_counts(tmp_path):
    folder = tmp_path / "steps" / "train-0.partial" / "fit"
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text('{"epoch": 1, "seconds": 3500}\n')
    clock = TimeBudget(request(tmp_path), ("d",), 10.0, time.perf_counter())
    clock._plan |= {"epoch_seconds": 1.0, "fine_tune_epochs": 3}
    assert not clock.has_time("candidate", Trained(10.0), 1)


def test_controls_and_seeds_go_with_no_budget(tmp_path):
    for changes in ({"controls": True}, {"seeds": 2}):
        with pytest.raises(ValueError, match="budget goes neither with controls nor with several seeds"):
            request(tmp_path, **changes)


OPTIONS = {
    "--width": 0.1, "--image-size": 64, "--epochs": 3, "--fine-tune-epochs": 3, "--batch-size": 4, "--step": 0.3,
    "--max-drop": 1, "--round-to": 1, "--threads": 1, "--timing-seconds": 0.01, "--candidates": "direct,dynamic",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("outputs_are_quick")
def test_within_a_budget_the_command_shortens_says_so_and_ends_the_same_when_repeated(tmp_path, monkeypatch):
    for name, data in (("train", TRAIN), ("val", VAL)):
        tiny.write_coco(tmp_path, name, data)
    # As if an epoch took 10 min: there is time for the sparse training, and for shorter ones after it.
    monkeypatch.setattr("paperlib.compression.budget._measure_epoch", lambda workbench, given: 600.0)
    paths = {"--data": tmp_path / "train.json", "--val": tmp_path / "val.json", "--images": tmp_path / "images"}
    arguments = ["compress", *(str(p) for pair in (paths | OPTIONS).items() for p in pair), "--out"]
    told = []
    for out in (tmp_path / "out", tmp_path / "again"):
        if told:  # continued from its plan alone, at another pace
            (tmp_path / "again").mkdir()
            shutil.copy(tmp_path / "out" / "plan.json", out)
            monkeypatch.setattr("paperlib.compression.budget._measure_epoch", lambda workbench, given: 0.01)
        result = CliRunner().invoke(app, [*arguments, str(out), "--budget", "1h"])
        assert result.exit_code == 0, result.output
        told.append((out / "student.safetensors").read_bytes())
    assert told[0] == told[1]
    report = (tmp_path / "out" / "report.md").read_text()
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["fine_tune_epochs"] < 3 and "--budget 1h: fine-tuning and distillation had" in report
    refused = CliRunner().invoke(app, [*arguments, str(tmp_path / "short"), "--budget", "1s"])
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert "--budget 1s: an epoch takes 0.01 s; even the shortest trainings need about" in refused.stderr
