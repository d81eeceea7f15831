"""What a person sees of long work: a line that says what runs, how far it is, and how long it will still take."""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paperlib.progress.processes import is_held
from paperlib.progress.report import Report, read_report, report_file

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_LOOKS = 0.5
SMOOTHING_SECONDS = 20.0
"""How long an estimate takes to follow a change: it drifts where it would jump."""
PACE_MEMORY = 0.25
"""The part of all work over which the pace is averaged."""
PRIOR_WORK = 0.05
"""The part of all work that an expected duration counts for, against the pace that is measured."""
LEARNING_PART = 0.95
"""The part of a notebook that its trainings are; figures and tables follow."""


class Estimator:
    """The time that work still takes, at the pace of what this process has watched being done.

    Work that an earlier run had finished does not count. Neither does the time before the first progress.

    Args:
        expected: seconds that all the work should take; without them there is no estimate before the first progress.
        work: the amount that should take so long.
    """

    def __init__(self, expected: float = 0.0, work: float = 0.0) -> None:
        self.pace_seconds = PRIOR_WORK * expected
        self.pace_work = PRIOR_WORK * work if expected else 0.0
        self.done_here = 0.0
        self.found = 0.0
        self.seconds = 0.0
        self.progress_at: float | None = None
        self.shown: float | None = None
        self.shown_at = 0.0

    def update(self, report: Report, now: float) -> float | None:
        """Return the seconds left at time `now`, or None if there is no way to know yet."""
        if self.progress_at is None:
            self.progress_at = now
        self.progress_at = self._learn_pace(report, now, self.progress_at)
        if not self.pace_work:
            return None
        work_left = max(report.total - self.found - self.done_here, 0.0)
        left = work_left * self.pace_seconds / self.pace_work + report.seconds
        if left > 0:
            # Between two moments of progress the time runs down, but never out.
            left *= math.exp(-(now - self.progress_at) / left)
        return self._smooth(left, now)

    def fraction_done(self, report: Report) -> float:
        """Return the finished part of all work and time; below 1 until the end."""
        done = self.found + self.done_here
        if self.shown is None or not self.pace_work:
            return min(done / report.total, 0.99) if report.total else 0.0
        behind = done * self.pace_seconds / self.pace_work
        return behind / (behind + self.shown)

    def _learn_pace(self, report: Report, now: float, progress_at: float) -> float:
        """Take in a report and return when there was progress last."""
        # Reports of several processes may be a moment out of step: what was done stays done.
        done_here = max(report.done - report.found, self.done_here)
        worked = done_here - self.done_here
        if worked and self.done_here and report.found <= self.found:
            forgotten = math.exp(-worked / (PACE_MEMORY * max(report.total, worked)))
            self.pace_seconds = forgotten * self.pace_seconds + now - progress_at
            self.pace_work = forgotten * self.pace_work + worked
        # Evaluation takes time and adds no work: that time belongs to the work that comes next.
        if worked or report.found > self.found or report.seconds != self.seconds:
            progress_at = now
        self.done_here = done_here
        self.found = max(report.found, self.found)
        self.seconds = report.seconds
        return progress_at

    def _smooth(self, left: float, now: float) -> float:
        if self.shown is not None:
            passed = now - self.shown_at
            run_down = self.shown - passed
            left = run_down + (left - run_down) * (1 - math.exp(-passed / SMOOTHING_SECONDS))
        # Only the end of the work is the end of the time.
        self.shown = max(left, 1.0)
        self.shown_at = now
        return self.shown


class Screen:
    """Shows one line: redrawn on a terminal; elsewhere printed at each new step and every 15 seconds."""

    def __init__(self) -> None:
        self.printed_at = float("-inf")
        self.printed_steps: object = None

    def show_line(self, text: str, steps: object) -> None:
        """Replace the line by `text`; where lines are printed, changed `steps` ask for a new one."""
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            shown = text if len(text) <= width else text[: width - 1] + "…"
            print(f"\r\x1b[K{shown}", end="", flush=True)
        elif steps != self.printed_steps or time.monotonic() - self.printed_at >= SECONDS_BETWEEN_LINES:
            print(text, flush=True)
            self.printed_at = time.monotonic()
            self.printed_steps = steps

    def clear_line(self) -> None:
        """Remove the line, so that what follows starts on a clean one."""
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)


@contextmanager
def show_progress(log: Path | None = None) -> Iterator[None]:
    """Show the progress of this process in a line while the block runs, unless somebody else shows it.

    The file `log` gets a line for each step and epoch.
    """
    with report_file(log) as (path, is_shown):
        if is_shown:
            yield
            return
        is_over = threading.Event()
        thread = threading.Thread(target=_watch_report, args=(path, is_over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def _watch_report(path: Path, is_over: threading.Event) -> None:
    began = time.monotonic()
    screen = Screen()
    estimator = Estimator()
    while not is_over.wait(SECONDS_BETWEEN_LOOKS):
        if report := read_report(path):
            now = time.monotonic()
            left = estimator.update(report, now)
            clock = format_duration(now - began)
            if left:
                clock += f", at most about {format_duration(left)} left"
            percent = 100 * estimator.fraction_done(report)
            screen.show_line(f"[{percent:.0f} %, {clock}] {report.text}", report.step)
    screen.clear_line()


@dataclass
class NotebookRun:
    """One notebook of a batch.

    Attributes:
        name: the notebook.
        state: the path that `paperlib.progress.processes` was given.
        expected: the seconds it should take, by its profile.
        cores: how many it keeps busy.
        started, ended: seconds of `time.monotonic()`, once known.
        report: what it last said of itself.
    """

    name: str
    state: Path
    expected: float
    cores: int = 1
    started: float | None = None
    ended: float | None = None
    report: Report | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has started and not ended."""
        return self.started is not None and self.ended is None

    def remove_traces(self) -> None:
        """Remove what an earlier batch left."""
        for file in self.state.parent.glob(f"{self.state.name}.*"):
            file.unlink()

    def look_again(self, now: float) -> None:
        """Bring this up to date with the disk at time `now`."""
        if self.ended is not None:
            return
        # The lock first: the report that is read after a look at a held lock is never older than that look.
        is_over = self.started is not None and not is_held(Path(f"{self.state}.lock"))
        self.report = read_report(Path(f"{self.state}.json"))
        if self.report and self.started is None:
            self.started = now
        if is_over:
            self.ended = now

    def describe_state(self) -> str:
        """Return in a few words how far it is: `03_components 45 % · fine-tune, seed 1 · epoch 5/12, 60 %`."""
        report = self.report or Report()
        percent = f" {100 * report.done / report.total:.0f} %" if report.total else ""
        return f"{self.name}{percent} · {report.text}"

    def seconds_left(self, *, after_found: bool = False) -> float:
        """Return the part of the expected time that is left, or that was when only found work was done."""
        report = self.report or Report()
        done = report.found if after_found else report.done
        part = LEARNING_PART * min(done / report.total, 1.0) if report.total else 0.0
        if self.ended is not None and not after_found:
            part = 1.0
        return (1 - part) * self.expected


def schedule_runs(runs: Sequence[NotebookRun], left: Sequence[float], cores: int) -> float:
    """Return how many seconds `runs`, of which so many seconds are `left`, take together on `cores` cores."""
    shared = sum(seconds * min(run.cores, cores) for run, seconds in zip(runs, left, strict=True)) / cores
    return max([shared, *left])


def summarise_runs(runs: Sequence[NotebookRun], cores: int) -> Report:
    """Return the progress of a whole batch, its work counted in seconds that its profiles expect."""
    total = schedule_runs(runs, [run.expected for run in runs], cores)
    left = schedule_runs(runs, [run.seconds_left() for run in runs], cores)
    left_after_found = schedule_runs(runs, [run.seconds_left(after_found=True) for run in runs], cores)
    return Report(done=total - left, found=total - max(left_after_found, left), total=total)


class BatchLine:
    """The live line of a batch."""

    def __init__(self, runs: Sequence[NotebookRun], cores: int) -> None:
        self.runs = runs
        self.cores = cores
        self.began = time.monotonic()
        self.screen = Screen()
        self.expected = summarise_runs(runs, cores).total
        self.estimator = Estimator(self.expected, self.expected)

    def update_line(self) -> None:
        """Look at every notebook and show the state of the batch."""
        now = time.monotonic()
        for run in self.runs:
            run.look_again(now)
        steps = [(run.name, run.is_running, run.report and run.report.step) for run in self.runs]
        self.screen.show_line(self._describe_batch(now), steps)

    def _describe_batch(self, now: float) -> str:
        ended = sum(run.ended is not None for run in self.runs)
        running = [run.describe_state() for run in self.runs if run.is_running]
        clock = format_duration(now - self.began)
        if left := self.estimator.update(summarise_runs(self.runs, self.cores), now):
            clock += f", about {format_duration(left)} left"
        return f"[{ended}/{len(self.runs)} done, {clock}] {' | '.join(running) or 'waiting for Snakemake'}"


def format_duration(seconds: float) -> str:
    """Write a duration for people: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"
