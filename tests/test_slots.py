"""Processes that share the cores of a batch."""

import os
import time

import pytest
import tiny
from filelock import FileLock

from paperlib.progress.processes import is_held
from paperlib.progress.slots import VARIABLE, describe_slots, occupy_slots, take_slots
from paperlib.store.store import Step, Store

STEP = Step("new", {}, (), "", "")


def work(slots, folder, threads, name):
    """Write down when the work began and ended."""
    os.environ[VARIABLE] = slots
    with occupy_slots(threads):
        began = time.monotonic()
        time.sleep(0.2)
        (folder / f"{name}.txt").write_text(f"{began} {time.monotonic()} {threads}")


@pytest.mark.parametrize("threads", [(1, 1, 1), (2, 1, 2), (9, 2, 1)])
def test_no_more_threads_work_at_a_time_than_there_are_slots_and_all_come_to_an_end(tmp_path, threads):
    slots = describe_slots(2, tmp_path)
    started = [
        tiny.processes.Process(target=work, args=(slots, tmp_path, count, name)) for name, count in enumerate(threads)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=60)
    assert [process.exitcode for process in started] == [0, 0, 0]
    spans = [tuple(map(float, path.read_text().split())) for path in tmp_path.glob("*.txt")]
    for moment, *_ in spans:
        assert sum(min(count, 2) for began, ended, count in spans if began <= moment < ended) <= 2


def make_step(slots, root):
    os.environ[VARIABLE] = slots
    with occupy_slots(1):
        time.sleep(0.5)
        Store(root).get_step(STEP, lambda _: time.sleep(0.1))


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_who_waits_for_a_step_that_another_makes_lends_its_slots(tmp_path):
    slot = tmp_path / "slot-0.lock"
    with FileLock(tmp_path / f"{STEP.name}.lock"):
        process = tiny.processes.Process(target=make_step, args=(describe_slots(1, tmp_path), tmp_path))
        process.start()
        wait_until(lambda: is_held(slot))
        wait_until(lambda: not is_held(slot))
        assert not (tmp_path / STEP.name).exists()
    process.join(timeout=60)
    assert process.exitcode == 0 and (tmp_path / STEP.name / "step.json").is_file()


def test_without_a_batch_nobody_waits(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    take_slots(3)
