"""Locks in a store, which the operating system frees when the process ends that holds them."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


def is_held(lock: Path) -> bool:
    """Return whether a process holds a lock at the moment."""
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
