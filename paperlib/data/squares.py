"""Where the squares of a data set are held: in memory, or mapped from a file if they would take too much of it.

All data sets of a process share `memory_limit()`. A data set that does not fit is written once, picture by picture, to
a file in `paths.pictures_root()`, which later processes read again. Its pages belong to the operating system, which
takes them back when memory is short, so a process holds no more than the limit, whatever the number of pictures.
"""

from __future__ import annotations

import hashlib
import logging
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from paperlib import files, paths
from paperlib.store.code_digest import code_digest
from paperlib.store.pictures import DIGEST_BYTES, SUFFIX, ends_with_digest
from paperlib.store.provenance import package_version

VARIABLE = "PAPERLIB_PICTURE_MEMORY"
"""Names the limit in GiB."""
DEFAULT_GIB, LARGEST_GIB, SHARE = 2.0, 4096.0, 1 / 8
"""The limit if the variable is not set: so many GiB, but at most that share of the machine's memory."""

_log = logging.getLogger(__name__)
_held = {"bytes": 0}


def memory_limit() -> int:
    """Return how many bytes the squares of all data sets may take in this process.

    Raises:
        ValueError: the variable holds no number of GiB from 0 to `LARGEST_GIB`.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return int(min(DEFAULT_GIB * 2**30, memory * SHARE))
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit <= LARGEST_GIB:
        raise ValueError(f"{VARIABLE}={files.shorten_text(text)}: expected GiB, a number from 0 to {LARGEST_GIB:g}")
    return int(limit * 2**30)


def hold_squares(squares: Iterable[Tensor], count: int, side: int, digest: str) -> Tensor:
    """Return squares as one tensor, uint8 `[count, 3, side, side]`, in memory or mapped from a file: the same bits.

    Args:
        squares: uint8 `[3, side, side]` each; not looked at if a file has them already.
        count: their number.
        side: in pixels.
        digest: of the data set, equal for equal squares.

    Raises:
        OSError: the disk is full; names the file.
    """
    size = count * 3 * side * side
    if _held["bytes"] + size > memory_limit():
        return _map_squares(squares, digest, side, size).view(count, 3, side, side)
    images = torch.empty((count, 3, side, side), dtype=torch.uint8)
    for position, square in enumerate(squares):
        images[position] = square
    _held["bytes"] += size
    weakref.finalize(images, _release, size)
    return images


def _release(size: int) -> None:
    _held["bytes"] -= size


def _map_squares(squares: Iterable[Tensor], digest: str, side: int, size: int) -> Tensor:
    path = paths.pictures_root() / f"{_name_squares(digest, side)}{SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Other processes, such as those that share a training, wait until the first has written the file.
    with FileLock(path.with_suffix(".lock")):
        if not _is_whole(path, size):
            _write_squares(squares, path)
    # Not shared: nothing that a caller writes into the tensor reaches the file.
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def _name_squares(digest: str, side: int) -> str:
    """Return a digest of all that decides the bits of the squares."""
    versions = [package_version(name) for name in ("torch", "torchvision", "pillow", "numpy")]
    identity = repr((digest, side, versions, code_digest("paperlib.data.records", "paperlib.data.scenes")))
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _is_whole(path: Path, size: int) -> bool:
    """Return whether a file holds so many bytes of squares and their digest; a damaged one is told."""
    if not path.exists():
        return False
    if path.stat().st_size == size + DIGEST_BYTES and ends_with_digest(path):
        return True
    _log.warning("%s: was cut or changed after it was written; it is written again", path)
    return False


def _write_squares(squares: Iterable[Tensor], path: Path) -> None:
    # Of one name, under the lock, so that one that was left by a killed process is overwritten and takes no more disk.
    partial = path.with_suffix(".partial")
    total = hashlib.sha256()
    try:
        with files.name_path(path, also_for=partial):
            with partial.open("wb") as opened:
                for square in squares:
                    content = square.contiguous().numpy().tobytes()
                    total.update(content)
                    opened.write(content)
                opened.write(total.digest())
            files.sync_path(partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
