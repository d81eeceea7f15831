"""How far a long command is and how long it will still take."""

import io
import json
import sys
import time

import pytest

from paperlib.progress import live
from paperlib.progress import report as progress


def said(step, fraction, weight=100.0):
    return {"step": step, "fraction": fraction, "weight": weight}


def test_the_time_left_follows_the_work_that_was_watched():
    outlook = live.Outlook()
    assert outlook.remaining(said("train", 0.10), now=0.0) is None
    assert outlook.remaining(said("train", 0.30), now=40.0) == pytest.approx(140.0)


def test_what_an_earlier_run_has_done_is_no_pace():
    outlook = live.Outlook()
    outlook.remaining(said("train", 0.0), now=0.0)
    outlook.remaining(said("train", 0.1), now=10.0)
    assert outlook.remaining(said("distil", 0.8), now=10.0) == pytest.approx(20.0)


def test_judging_takes_time_and_undoes_nothing():
    outlook = live.Outlook()
    outlook.remaining(said("train", 0.0), now=0.0)
    outlook.remaining(said("train", 0.5), now=50.0)
    assert outlook.remaining(said("train", 0.4), now=60.0) == pytest.approx(60.0 / 50.0 * 60.0)
    assert outlook.remaining(said("train", 0.5), now=60.0) == pytest.approx(60.0 / 50.0 * 50.0)


def test_every_round_is_as_much_work_as_the_first():
    outlook = live.Outlook(rounds=3)
    outlook.remaining(said("train", 0.0), now=0.0)
    assert outlook.remaining(said("train", 0.5), now=50.0) == pytest.approx(250.0)
    outlook.round = 2
    assert outlook.remaining(said("train again", 0.0), now=50.0) == pytest.approx(100.0)


def test_steps_weigh_what_they_are_said_to(tmp_path, monkeypatch):
    target = tmp_path / "state.json"
    monkeypatch.setenv(progress.VARIABLE, str(target))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_WRITES", 0.0)
    progress.weigh(60, 20, 100)
    progress.report("fine-tune", 1, 3)
    seen = [progress.read(target) for _ in progress.bar(range(2), "epoch")]
    assert [(state["fraction"], state["weight"]) for state in seen] == [(0.6, 100), (0.7, 100)]
    assert json.loads(target.read_text())["fraction"] == 0.8, "what is over stays in view"
    progress.weigh(0, 0, 0)
    progress.report("fine-tune", 1, 4)
    assert progress.read(target)["fraction"] == 0.25


def test_the_line_is_shown_while_the_block_runs_and_by_one_only(monkeypatch):
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    monkeypatch.setattr(live, "SECONDS_BETWEEN_LOOKS", 0.01)
    # Not pytest's capture: what is written between its reading and its emptying is lost.
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    with live.shown(live.Outlook()):
        with live.shown(live.Outlook()):  # somebody shows it already
            progress.report("sparse training", 0, 4)
            while not screen.getvalue().endswith("\n"):
                time.sleep(0.001)
    assert screen.getvalue() == "[0%, 0 s] 0/4 steps · sparse training\n"
