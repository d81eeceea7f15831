"""Start a command that nobody else is running and that does not outlive whoever started it.

    python -m paperlib.progress.processes STATE COMMAND…

`STATE.lock` is held until the command ends, however it ends; `STATE.json` is where it reports its progress.
The workflow starts every notebook this way: killed children of a killed batch would otherwise go on writing.
"""

import ctypes
import fcntl
import os
import signal
import sys
from pathlib import Path

from paperlib.progress import report as progress

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process, exec or not, when its parent ends (Linux; elsewhere do nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def hold(lock: Path) -> int | None:
    """Lock `lock` until this process ends and return its descriptor; None if another process holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_held(lock: Path) -> bool:
    """Whether a process holds `lock`. A lock that does not exist is not held."""
    if not lock.exists():
        return False
    descriptor = hold(lock)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def main(state: str, *command: str) -> None:
    """Become `command`, holding the lock. Exits with a message if the lock is held."""
    die_with_parent()
    lock = hold(Path(f"{state}.lock"))
    if lock is None:
        sys.exit(f"{state}.lock is held: this notebook is being run by another process")
    os.set_inheritable(lock, True)
    os.environ[progress.VARIABLE] = os.path.abspath(f"{state}.json")
    progress.report("starting", 0, 0)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
