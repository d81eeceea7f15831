"""What long work says of itself, how a person is told, and how long it will still take, by a simulated clock."""

import io
import json
import sys
import time
from dataclasses import asdict, replace

import pytest

from paperlib.progress import display, report
from paperlib.progress.display import Estimator, NotebookRun, show_progress, summarise_runs
from paperlib.progress.report import Report, begin_step, end_step, plan_work, read_report, track_items

LOOK = 0.5
"""Seconds between two looks at a report."""
LARGEST_RISE = 0.01
"""By which part of itself an estimate may rise from one look to the next while the pace is steady."""


# --- simulated work -------------------------------------------------------------------------------------


class Clock:
    """Time that passes only when work is done, and what is reported at each look."""

    def __init__(self, total, seconds=0.0):
        self.now = 0.0
        self.report = Report("train", total=total, seconds=seconds)
        self.looks = [(0.0, self.report)]

    def wait(self, seconds):
        end = self.now + seconds
        while self.looks[-1][0] + LOOK <= end:
            self.looks.append((self.looks[-1][0] + LOOK, self.report))
        self.now = end

    def change(self, **fields):
        self.report = replace(self.report, **fields)


def train(clock, epochs, *, batches=20, seconds=10.0, validation=4.0, validate_every=5):
    for epoch in range(epochs):
        for _ in range(batches):
            clock.wait(seconds / batches)
            clock.change(done=clock.report.done + 1 / batches)
        if (epoch + 1) % validate_every == 0:
            clock.wait(validation)


def compression(*, found=0, batches=20, wrong=1.0):
    """A long training and four short ones, each followed by an evaluation; then export and timing."""
    clock = Clock(100, seconds=wrong * 60.0)
    clock.wait(20.0)  # reading the images
    clock.change(done=found, found=found)
    train(clock, 60 - found, batches=batches)
    for _ in range(4):
        clock.wait(8.0)
        train(clock, 10, batches=batches)
    clock.wait(8.0)
    for _ in range(3):
        clock.wait(20.0)
        clock.change(seconds=clock.report.seconds - wrong * 20.0)
    return clock


def estimates(clock, estimator):
    """The estimates from the first one on, each with the time that was truly left."""
    made = [(estimator.update_estimate(report, now), clock.now - now) for now, report in clock.looks]
    return [pair for pair in made if pair[0] is not None]


@pytest.mark.parametrize(
    ("clock", "error"),
    [
        (compression(), 0.1),
        (compression(found=37), 0.15),
        (compression(batches=1), 0.15),
        (compression(wrong=1.5), 0.2),
    ],
    ids=["from the start", "resumed", "reported per epoch only", "export quicker than expected"],
)
def test_at_a_steady_pace_the_estimate_falls_and_is_right(clock, error):
    made = estimates(clock, Estimator())
    assert len(made) > 0.9 * len(clock.looks) - 80
    for (before, _), (after, _) in zip(made, made[1:], strict=False):
        assert after <= (1 + LARGEST_RISE) * before
    assert all(left > 0 for left, _ in made), "only the end is the end"
    settled = made[len(made) // 10 :]
    assert max(abs(left - truly) for left, truly in settled) < error * made[0][1]


def test_what_an_earlier_run_has_done_is_no_pace():
    clock = Clock(100)
    clock.wait(5)
    clock.change(done=80, found=80)
    clock.wait(5)
    train(clock, 10)
    assert estimates(clock, Estimator())[-1][0] == pytest.approx(100, rel=0.15)


def test_before_any_progress_nobody_can_know_unless_told():
    waiting = Report("read the images", total=100)
    assert Estimator().update_estimate(waiting, 0.0) is None
    told = Estimator(expected=100.0)
    assert [told.update_estimate(waiting, now) for now in (0.0, 80.0)] == pytest.approx([100.0, 100.0])


def test_it_is_not_all_done_while_export_and_timing_run():
    clock, estimator = compression(), Estimator()
    parts = []
    for now, said in clock.looks:
        estimator.update_estimate(said, now)
        parts.append(estimator.fraction_done(said))
    assert max(a - b for a, b in zip(parts, parts[1:], strict=False)) < 0.01
    assert 0.8 < parts[-100] < parts[-1] < 1


def notebook(name, expected, cores=1, **fields):
    return NotebookRun(name, None, expected, cores, **fields)


def test_a_batch_weighs_its_notebooks_by_the_time_that_their_profiles_promise():
    half = notebook("half", 40.0, report=Report(done=6, total=12))
    waiting = notebook("waiting", 100.0, 2)
    ended = notebook("ended", 60.0, has_ended=True, report=Report(done=12, found=6, total=12))
    whole = summarise_runs([half, waiting, ended], cores=2)
    assert whole.total == (40 + 2 * 100 + 60) / 2
    assert whole.done == pytest.approx((display.LEARNING_PART * 20 + 60) / 2)
    assert whole.found == pytest.approx(display.LEARNING_PART * 30 / 2)
    assert summarise_runs([half, waiting], cores=1).total == 140.0, "one core cannot do what two were meant for"
    assert summarise_runs([half, notebook("long", 500.0)], cores=2).total == 500.0


@pytest.mark.parametrize("slowness", [0.5, 1.0, 2.0])
def test_a_batch_learns_how_its_promises_compare_with_this_machine(slowness):
    runs = [notebook(f"{number}", 100.0) for number in range(4)]
    whole = summarise_runs(runs, cores=1).total
    estimator, now, shown = Estimator(whole), 0.0, []
    for run in runs:
        for second in range(int(100 * slowness)):
            now += 1.0
            if second > 10 * slowness:  # imports come first, figures last
                run.report = Report(done=min(second / (90 * slowness), 1.0), total=1.0)
            shown.append(estimator.update_estimate(summarise_runs(runs, 1), now))
        run.has_ended = True
    assert shown[0] == pytest.approx(400.0, rel=0.01)
    for moment, error in ((100, 0.35), (200, 0.2), (300, 0.2)):
        assert shown[int(moment * slowness)] == pytest.approx((400 - moment) * slowness, rel=error)
    if slowness <= 1:
        assert all(after <= 1.01 * before for before, after in zip(shown, shown[1:], strict=False))


@pytest.mark.parametrize("slowness", [0.7, 1.0, 3.0, 6.0])
def test_after_its_first_training_a_batch_is_right_to_a_quarter(slowness):
    run = notebook("first", 100.0, report=Report(total=100.0))
    runs = [run, *(notebook(f"{number}", 100.0) for number in range(9))]
    estimator, now = Estimator(summarise_runs(runs, 1).total), 20.0
    for done in range(51):
        run.report = Report(done=float(done), total=100.0)
        shown = estimator.update_estimate(summarise_runs(runs, 1), now)
        now += 1.0 * slowness
    left = (1000 - display.LEARNING_PART * 50) * slowness / display.LEARNING_PART
    assert shown == pytest.approx(left, rel=0.25)


# --- reports and the line -------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path, monkeypatch):
    monkeypatch.setenv(report.VARIABLE, str(tmp_path / "state.json"))
    monkeypatch.setenv(report.LOG_VARIABLE, str(tmp_path / "progress.log"))
    for name in ("SECONDS_BETWEEN_WRITES", "SECONDS_BETWEEN_PARTS"):
        monkeypatch.setattr(report, name, 0.0)
    return tmp_path / "state.json"


def test_what_a_notebook_reports_can_be_read_at_any_moment(target):
    plan_work(40)
    begin_step("fine-tune, seed 1", epochs=20)
    seen = [read_report(target) for _ in track_items(range(2), "epoch")]
    assert [said.detail for said in seen] == ["epoch 1/2", "epoch 2/2"]
    assert [(said.done, said.total) for said in seen] == [(0, 40), (10, 40)]
    assert read_report(target).done == 20, "what is over stays in view"
    end_step(20)
    worker = Report("seed 2", "epoch 2/2", done=5, found=3, total=10)
    target.with_name("state.json.17").write_text(json.dumps(asdict(worker)))
    begin_step("distil", epochs=20)
    both = read_report(target)
    assert (both.text, both.done, both.found) == ("distil · seed 2 · epoch 2/2", 25, 3)


def test_within_an_epoch_the_loss_and_the_latest_map_are_told(target):
    plan_work(12)
    begin_step("distil, seed 0", epochs=12)
    for epoch in track_items(range(3), "epoch"):
        assert report.is_due()
        report.report_part(0.6, loss=2.3124)
        said = read_report(target)
        assert said.done == pytest.approx(4 * (epoch + 0.6))
        known = " · mAP 41.2 %" if epoch == 2 else ""
        assert said.detail == f"epoch {epoch + 1}/3, 60 % · loss 2.31{known}"
        report.report_epoch(loss=2.0, **({"map50": 0.412} if epoch == 1 else {}))
    logged = [line.split("  ", 1) for line in target.with_name("progress.log").read_text().splitlines()]
    assert [text for _, text in logged] == [
        "distil, seed 0",
        "distil, seed 0 · epoch 1/3 · loss 2",
        "distil, seed 0 · epoch 2/3 · loss 2 · mAP 41.2 %",
        "distil, seed 0 · epoch 3/3 · loss 2",
    ]
    assert all(time.strptime(moment, "%Y-%m-%d %H:%M:%S") for moment, _ in logged)


def test_finished_steps_and_resumed_epochs_are_found_work(target):
    plan_work(50)
    end_step(20)  # it was never begun: the store had it
    assert read_report(target).found == 20
    begin_step("train", epochs=10)
    seen = [read_report(target) for _ in track_items(range(3, 5), "epoch", first=3)]
    assert [said.done for said in seen] == [26, 28]
    end_step(10)
    assert (read_report(target).done, read_report(target).found) == (30, 26)
    end_step(30)  # more than was planned
    assert (read_report(target).done, read_report(target).found) == (50, 46)


def test_the_line_is_shown_while_the_block_runs_and_by_one_only(monkeypatch, tmp_path):
    monkeypatch.delenv(report.VARIABLE, raising=False)
    monkeypatch.setattr(display, "SECONDS_BETWEEN_LOOKS", 0.01)
    # Not pytest's capture: what is written between its reading and its emptying is lost.
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    with show_progress(tmp_path / "progress.log"), show_progress():  # the second sees that the first shows it
        plan_work(4)
        begin_step("sparse training", epochs=1)
        while not screen.getvalue().endswith("\n"):
            time.sleep(0.001)
    assert screen.getvalue() == "[0 %, 0 s] sparse training\n"
    assert (tmp_path / "progress.log").read_text().endswith("  sparse training\n")
