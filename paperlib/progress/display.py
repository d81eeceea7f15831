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
PRIOR_WORK = 0.01
"""The part of all work that an expected duration counts for, against the pace that is measured: little, so that the
first training, a few hundredths of a batch, tells how this machine compares with the one that the profiles know."""
LEARNING_PART = 0.95
"""The part of a notebook that its trainings are; figures and tables follow."""


class Estimator:
    """The time that work still takes, at the pace of what this process has watched being done.

    Work that an earlier run had finished does not count. Neither does the time before the first progress.

    Args:
        expected: seconds that all the work should take, if work is counted in these; without them there is no
            estimate before the first progress.
    """

    def __init__(self, expected: float = 0.0) -> None:
        # A unit of expected work is a second.
        self.pace_seconds = PRIOR_WORK * expected
        self.pace_work = PRIOR_WORK * expected
        self.done_here = 0.0
        self.found = 0.0
        self.seconds = 0.0
        self.progress_at: float | None = None
        self.shown: float | None = None
        self.shown_at = 0.0

    def update_estimate(self, report: Report, now: float) -> float | None:
        """Return the seconds left at time `now`, or None if there is no way to know yet."""
        if self.progress_at is None:
            self.progress_at = now
        self.progress_at = self._learn_pace(report, now, self.progress_at)
        if not self.pace_work:
            return None
        work_left = max(report.total - self.found - self.done_here, 0.0)
        left = work_left * self.pace_seconds / self.pace_work + report.seconds
        if left > 0 and self.done_here:
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
            # Before the first progress nothing is known of this machine, so the expected time stands.
            run_down = self.shown - passed if self.done_here else self.shown
            left = run_down + (left - run_down) * (1 - math.exp(-passed / SMOOTHING_SECONDS))
        # Only the end of the work is the end of the time.
        self.shown = max(left, 1.0)
        self.shown_at = now
        return self.shown


class ProgressLine:
    """One line of progress: redrawn on a terminal; elsewhere printed at each new step and every 15 seconds.

    Args:
        expected: how long all the work should take, in seconds; its work is then counted in these.
    """

    def __init__(self, expected: float = 0.0) -> None:
        self.estimator = Estimator(expected)
        self.began = time.monotonic()
        self.printed_at = float("-inf")
        self.printed_steps: object = None

    def show_report(self, report: Report, steps: object = None) -> None:
        """Replace the line by what `report` says; a line is printed when `steps` change (default: the step)."""
        steps = steps or report.step
        now = time.monotonic()
        left = self.estimator.update_estimate(report, now)
        clock = format_duration(now - self.began)
        if left is not None:
            clock += f", about {format_duration(left)} left"
        text = f"[{100 * self.estimator.fraction_done(report):.0f} %, {clock}] {report.text}"
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            shown = text if len(text) <= width else text[: width - 1] + "…"
            print(f"\r\x1b[K{shown}", end="", flush=True)
        elif steps != self.printed_steps or now - self.printed_at >= SECONDS_BETWEEN_LINES:
            print(text, flush=True)
            self.printed_at = now
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
        is_over = threading.Event()
        thread = threading.Thread(target=_watch_report, args=(path, is_over), daemon=True)
        if not is_shown:
            thread.start()
        try:
            yield
        finally:
            is_over.set()
            if not is_shown:
                thread.join()


def _watch_report(path: Path, is_over: threading.Event) -> None:
    line = ProgressLine()
    while not is_over.wait(SECONDS_BETWEEN_LOOKS):
        if report := read_report(path):
            line.show_report(report)
    line.clear_line()


@dataclass
class NotebookRun:
    """One notebook of a batch.

    Attributes:
        name: the notebook.
        state: the path that `paperlib.progress.processes` was given.
        expected: the seconds it should take, by its profile.
        cores: how many it keeps busy.
        report: what it last said of itself; None before it starts.
        has_ended: whether it has run to its end, good or bad.
    """

    name: str
    state: Path
    expected: float
    cores: int = 1
    report: Report | None = None
    has_ended: bool = False

    def remove_traces(self) -> None:
        """Remove what an earlier batch left."""
        for file in self.state.parent.glob(f"{self.state.name}.*"):
            file.unlink()

    def look_again(self) -> None:
        """Bring this up to date with the disk."""
        # The lock first: the report that is read after a look at a held lock is never older than that look.
        self.has_ended = self.report is not None and not is_held(Path(f"{self.state}.lock"))
        self.report = read_report(Path(f"{self.state}.json"))

    def describe_state(self) -> str:
        """Return in a few words how far it is: `03_components 45 % · fine-tune, seed 1 · epoch 5/12, 60 %`."""
        report = self.report or Report()
        percent = f" {100 * report.done / report.total:.0f} %" if report.total else ""
        return f"{self.name}{percent} · {report.text}"

    def finished_part(self, *, found_only: bool = False) -> float:
        """Return the part of it, 0 to 1, that is finished, or that an earlier run had finished."""
        if self.has_ended and not found_only:
            return 1.0
        if not self.report or not self.report.total:
            return 0.0
        done = self.report.found if found_only else self.report.done
        return LEARNING_PART * min(done / self.report.total, 1.0)


def summarise_runs(runs: Sequence[NotebookRun], cores: int) -> Report:
    """Return the progress of a batch on `cores` cores, its work counted in seconds that the profiles expect."""
    total = _schedule([(run, run.expected) for run in runs], cores)
    left = _schedule([(run, (1 - run.finished_part()) * run.expected) for run in runs], cores)
    found = total - _schedule([(run, (1 - run.finished_part(found_only=True)) * run.expected) for run in runs], cores)
    running = [run for run in runs if run.report and not run.has_ended]
    return Report(
        step=f"{sum(run.has_ended for run in runs)}/{len(runs)} done",
        detail=" | ".join(run.describe_state() for run in running) or "waiting for Snakemake",
        done=total - left,
        found=min(found, total - left),
        total=total,
    )


def _schedule(jobs: Sequence[tuple[NotebookRun, float]], cores: int) -> float:
    """Return how many seconds notebooks take together, given the seconds that each takes."""
    shared = sum(seconds * min(run.cores, cores) for run, seconds in jobs) / cores
    return max([shared, *(seconds for _, seconds in jobs)])


def format_duration(seconds: float) -> str:
    """Write a duration for people: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"
