"""The cores of a batch, shared by the processes of all its notebooks: whoever works holds a slot for each thread.

`PAPERLIB_SLOTS` is `<number>:<folder>`; a slot is a lock in that folder, which the system frees when its holder ends.
While a notebook starts or draws, so that its workers do not need the cores, those of another one work. Without the
variable nobody waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paperlib.progress.processes import hold_lock

VARIABLE = "PAPERLIB_SLOTS"
SECONDS_BETWEEN_TRIES = 0.05
_held: list[int] = []
"""The descriptors of the locks that this process holds."""


def describe_slots(number: int, folder: Path) -> str:
    """Return the value of `PAPERLIB_SLOTS` for so many slots in a folder."""
    return f"{number}:{folder}"


def take_slots(count: int) -> None:
    """Wait until `count` slots are free (or all, if there are fewer), and hold them until `free_slots` or the end."""
    number, _, folder = os.environ.get(VARIABLE, "0:").partition(":")
    locks = [Path(folder) / f"slot-{index}.lock" for index in range(int(number))]
    wanted = min(count, len(locks))
    while len(_held) < wanted:
        for lock in locks:
            if len(_held) < wanted and (descriptor := hold_lock(lock)) is not None:
                _held.append(descriptor)
        if len(_held) < wanted:
            free_slots()  # else two who wait for the rest would wait for each other
            time.sleep(SECONDS_BETWEEN_TRIES)


def free_slots() -> int:
    """Let others have the slots of this process; return how many there were."""
    count = len(_held)
    while _held:
        os.close(_held.pop())
    return count


@contextmanager
def occupy_slots(count: int) -> Iterator[None]:
    """Hold `count` slots while the block runs."""
    take_slots(count)
    try:
        yield
    finally:
        free_slots()


@contextmanager
def lend_slots() -> Iterator[None]:
    """Let others have the slots of this process while the block waits for one of them."""
    count = free_slots()
    try:
        yield
    finally:
        take_slots(count)
