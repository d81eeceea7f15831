"""What whoever started a batch sees: which notebooks run, how far they are, how long it will still take."""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from paperlib.progress import processes
from paperlib.progress import report as progress

SECONDS_BETWEEN_LINES = 15.0


@dataclass
class Run:
    """One notebook of a batch.

    `state` is the path that `paperlib.progress.processes` was given; `expected` is how long the profile says the
    notebook takes, in seconds; `cores` is how many it keeps busy. `started` and `ended` are of `time.monotonic()`.
    """

    name: str
    state: Path
    expected: float
    cores: int = 1
    started: float | None = None
    ended: float | None = None
    said: dict | None = None

    @property
    def lock(self) -> Path:
        """The file that is locked while the notebook runs."""
        return Path(f"{self.state}.lock")

    @property
    def report(self) -> Path:
        """The file that the notebook reports to."""
        return Path(f"{self.state}.json")

    @property
    def running(self) -> bool:
        """Whether it has started and not ended."""
        return self.started is not None and self.ended is None

    def forget(self) -> None:
        """Remove what an earlier batch left."""
        for file in self.state.parent.glob(f"{self.state.name}.*"):
            file.unlink()

    def look(self, now: float) -> None:
        """Bring this up to date with the disk at time `now`."""
        if self.ended is not None:
            return
        # Asked first: a report read after the lock was seen held is never older than that.
        over = self.started is not None and not processes.is_held(self.lock)
        self.said = progress.read(self.report)
        if self.said and self.started is None:
            self.started = now
        if over:
            self.ended = now

    def describe(self) -> str:
        """Say in a few words how far it is: `03_components 12/19 steps · fine-tune, seed 1 · epoch 5/12`."""
        return f"{self.name} {in_words(self.said or {})}"


def remaining(runs: list[Run], cores: int, now: float) -> float:
    """Estimate the seconds until all `runs` have ended on `cores` cores.

    The profiles' expectations, scaled by how the finished notebooks compare with theirs; for a running
    notebook, the further it is, the more its own pace counts.
    """
    finished = [run for run in runs if run.ended is not None]
    took = sum(run.ended - run.started for run in finished)
    pace = took / sum(run.expected for run in finished) if finished else 1.0
    left = {run.name: _left(run, run.expected * pace, now) for run in runs if run.ended is None}
    shared = sum(left[run.name] * min(run.cores, cores) for run in runs if run.name in left) / cores
    return max([shared, *left.values()])


def _left(run: Run, expected: float, now: float) -> float:
    if run.started is None:
        return expected
    elapsed = now - run.started
    fraction = (run.said or {}).get("fraction", 0.0)
    if not fraction:
        return max(expected - elapsed, 0.1 * expected)
    return (1 - fraction) * (fraction * (elapsed / fraction) + (1 - fraction) * expected)


class Screen:
    """Where the live line is shown: redrawn on a terminal; elsewhere printed at each new step and every 15 seconds."""

    def __init__(self) -> None:
        self.printed_at, self.printed_steps = float("-inf"), None

    def show(self, text: str, steps: object) -> None:
        """Put `text` in the place of what was shown before; `steps` is what must change for a new printed line."""
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text if len(text) <= width else text[: width - 1] + '…'}", end="", flush=True)
        elif steps != self.printed_steps or time.monotonic() - self.printed_at >= SECONDS_BETWEEN_LINES:
            print(text, flush=True)
            self.printed_at, self.printed_steps = time.monotonic(), steps

    def clear(self) -> None:
        """Remove the live line, so that what follows starts on a clean one."""
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)


class Line:
    """The live line of a batch."""

    def __init__(self, runs: list[Run], cores: int) -> None:
        self.runs, self.cores = runs, cores
        self.began = time.monotonic()
        self.screen = Screen()

    def update(self) -> None:
        """Look at every notebook and show the state of the batch."""
        now = time.monotonic()
        for run in self.runs:
            run.look(now)
        steps = [(run.name, run.running, (run.said or {}).get("step")) for run in self.runs]
        self.screen.show(self._text(now), steps)

    def close(self) -> None:
        """Clear the live line."""
        self.screen.clear()

    def _text(self, now: float) -> str:
        ended = sum(run.ended is not None for run in self.runs)
        running = " | ".join(run.describe() for run in self.runs if run.running) or "waiting for Snakemake"
        left = remaining(self.runs, self.cores, now)
        clock = f"{duration(now - self.began)}, about {duration(left)} left"
        return f"[{ended}/{len(self.runs)} done, {clock}] {running}"


def in_words(said: dict) -> str:
    """What was reported, in a few words: `12/19 steps · fine-tune, seed 1 · epoch 5/12`."""
    steps = f"{said['done']}/{said['of']} steps" if said.get("of") else ""
    return " · ".join(filter(None, [steps, said.get("step"), said.get("detail")]))


def duration(seconds: float) -> str:
    """Write a duration for people: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
