"""Digests of a finished step's files: a step that was cut, emptied or changed in one bit is recognised when it is read.

`step.json` lists the SHA-256 of every other file of its folder, and holds a checksum of itself. A step that came from
another machine also has an `imported.json`, which names the files of weights that it came without.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paperlib import files

RECORD = "step.json"
"""The file that says what a folder is: the step, its digest, when and where it was made, and its files."""
IMPORTED = "imported.json"
"""The file in the folder of a step that was made on another machine: when it came, and which weights were left out."""
WEIGHTS = ".safetensors"
"""The suffix of the files that an imported step may lack."""
ASIDE = "damaged-"
"""How the name of a folder begins that was set aside; no kind of step begins so."""
_RECENT_NS = 2_000_000_000

_log = logging.getLogger(__name__)
_intact: dict[Path, tuple[object, ...]] = {}
"""Folders that this process has read and found intact, and the times and lengths of their files then."""


def seal_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the checksum by which `read_sealed` recognises a change."""
    return {**record, "checksum": _checksum_of(record)}


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the record in a file, without its checksum.

    Raises:
        ValueError: the file is missing or is not what was written. Names the file and the fault.
    """
    try:
        record = files.read_json(path)
    except PermissionError:
        raise  # a store of somebody else is not a damaged one
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{path} is missing or not readable") from None
    if not isinstance(record, dict) or record.pop("checksum", None) != _checksum_of(record):
        raise ValueError(f"{path} was changed after it was written")
    return record


def digest_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, without its record, by the path within the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD)
    return {path.relative_to(folder).as_posix(): files.file_digest(path) for path in paths}


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Compare the files of a folder with their digests.

    Raises:
        ValueError: a file is missing or is not what was written. Names the file.
    """
    for name, digest in digests.items():
        path = folder / name
        try:
            intact = files.file_digest(path) == digest
        except PermissionError:
            raise
        except OSError:
            raise ValueError(f"{path} is missing or not readable") from None
        if not intact:
            raise ValueError(f"{path} was changed after it was written")


def check_step(folder: Path, digest: str | None = None) -> None:
    """Read a finished step and compare every byte with the digests; once per process, as long as its files stay.

    Args:
        folder: the step.
        digest: the digest of the step that it must be; None: the one whose first digits are in its name.

    Raises:
        ValueError: it is damaged or another step. Names the file and the fault.
    """
    record = read_sealed(folder / RECORD)
    expected = digest or folder.name[-16:]
    if str(record.get("digest"))[: len(expected)] != expected:
        raise ValueError(f"{folder / RECORD} is of another step")
    if "files" not in record:
        raise ValueError(f"{folder / RECORD} is of an unfinished step")
    omitted = read_omitted(folder)
    if strange := sorted(name for name in omitted if name not in record["files"] or not name.endswith(WEIGHTS)):
        raise ValueError(f"{folder / IMPORTED} leaves out {strange[0]}, which is no file of its weights")
    present = {name: digest for name, digest in record["files"].items() if name not in omitted}
    stamps = _stamps_of(folder, record, present)
    if stamps is not None and _intact.get(folder) == stamps:
        return
    check_files(folder, present)
    _intact.pop(folder, None)
    if stamps is not None:
        _intact[folder] = stamps


def read_omitted(folder: Path) -> dict[str, dict[str, str]]:
    """Return the files of weights that a step was imported without, and the metadata of each; none if it is complete.

    Raises:
        ValueError: `imported.json` is damaged. Names the file.
    """
    path = folder / IMPORTED
    return read_sealed(path)["omitted"] if os.path.lexists(path) else {}


def write_imported(folder: Path, imported: str, omitted: Mapping[str, Mapping[str, str]]) -> None:
    """Write `imported.json` into the folder of a step: when it was imported, and what it lacks (see `read_omitted`)."""
    record = {"imported": imported, "omitted": {name: dict(metadata) for name, metadata in omitted.items()}}
    files.write_json_atomically(folder / IMPORTED, seal_record(record))


def set_aside(folder: Path, fault: object, remedy: str) -> None:
    """Rename a damaged folder, so that it is neither used nor lost, and say so in one line."""
    aside = folder.with_name(f"{ASIDE}{folder.name}")
    remove_path(aside)
    os.rename(folder, aside)
    _log.warning("%s; set aside as %s, %s", fault, aside.name, remedy)


def remove_path(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing happens if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _stamps_of(folder: Path, record: Mapping[str, Any], present: Iterable[str]) -> tuple[object, ...] | None:
    """Return what changes when a file is written; None if one was written just now.

    Two writes shortly after each other can have the same time, so a file that is new is read again.
    """
    stamps: list[object] = [json.dumps(record, sort_keys=True)]
    for name in present:
        try:
            state = os.stat(folder / name)
        except OSError:
            return None
        if time.time_ns() - state.st_ctime_ns < _RECENT_NS:
            return None
        stamps.append((name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino))
    return tuple(stamps)


def _checksum_of(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
