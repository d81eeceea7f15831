"""A line that says how far this very process is with a long command, and how long it will still take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paperlib.progress import display
from paperlib.progress import report as progress

SECONDS_BETWEEN_LOOKS = 0.5


class Outlook:
    """What is left, at the pace of the work seen so far.

    Work counts while one and the same step is watched. What an earlier run has done is passed over between two
    steps, in no time, and would make the pace look better than it is.

    Attributes:
        rounds: how often the whole work is done; `round` of them lie behind.
    """

    def __init__(self, rounds: int = 1) -> None:
        self.rounds, self.round = rounds, 0
        self.step, self.work, self.then = None, 0.0, 0.0
        self.worked, self.spent = 0.0, 0.0

    def remaining(self, said: dict, now: float) -> float | None:
        """Seconds left at time `now`, after `said` was reported; None as long as nobody can know."""
        work = said["fraction"] * said["weight"]
        if said["step"] != self.step:
            self.step, self.work, self.then = said["step"], work, now
        self.worked += max(work - self.work, 0.0)
        self.spent += now - self.then
        self.work, self.then = max(work, self.work), now
        if not self.worked:
            return None
        left = said["weight"] * (self.rounds - self.round) - work
        return max(left, 0.0) * self.spent / self.worked


@contextmanager
def shown(outlook: Outlook) -> Iterator[None]:
    """Show the line while the block runs, unless somebody else does."""
    with progress.reporting() as (place, in_batch):
        if in_batch:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(target=_watch, args=(place, outlook, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _watch(place: Path, outlook: Outlook, over: threading.Event) -> None:
    began, screen = time.monotonic(), display.Screen()
    while not over.wait(SECONDS_BETWEEN_LOOKS):
        if said := progress.read(place):
            now = time.monotonic()
            left = outlook.remaining(said, now)
            clock = display.duration(now - began) + (f", at most about {display.duration(left)} left" if left else "")
            done = (outlook.round + said["fraction"]) / outlook.rounds
            screen.show(f"[{done:.0%}, {clock}] {display.in_words(said)}", said["step"])
    screen.clear()
