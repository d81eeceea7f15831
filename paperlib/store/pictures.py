"""The folder `pictures/` of a store: data sets that are too large for memory, one file each (`paperlib.data.squares`).

A file ends with the SHA-256 of what stands before it. No result rests on one: it is written again from the data. Who
has mapped a file keeps its contents, also after it was removed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from filelock import FileLock, Timeout

from paperlib import paths
from paperlib.progress.processes import is_held

DIGEST_BYTES = 32
SUFFIX = ".squares"
_CHUNK = 2**24


def ends_with_digest(path: Path) -> bool:
    """Return whether a file ends with the digest of all before it."""
    total = hashlib.sha256()
    with path.open("rb") as opened:
        rest = os.fstat(opened.fileno()).st_size - DIGEST_BYTES
        while rest > 0 and (part := opened.read(min(rest, _CHUNK))):
            total.update(part)
            rest -= len(part)
        return opened.read() == total.digest()


def find_pictures(store: Path) -> list[Path]:
    """Return the finished files of a store."""
    return sorted(_folder_of(store).glob(f"*{SUFFIX}"))


def find_removable_pictures(store: Path) -> list[Path]:
    """Return all files of a store, finished or left by a killed process, except what is being written."""
    written = [lock for lock in _folder_of(store).glob("*.lock") if is_held(lock)]
    found = [path for pattern in (f"*{SUFFIX}", "*.partial") for path in sorted(_folder_of(store).glob(pattern))]
    return [path for path in found if path.with_suffix(".lock") not in written]


def remove_picture(path: Path) -> None:
    """Remove a file and its lock, unless a process is writing it."""
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
    except Timeout:
        pass


def _folder_of(store: Path) -> Path:
    # The variable moves the pictures of the usual store only.
    return paths.pictures_root() if store == paths.store_root() else store / "pictures"
