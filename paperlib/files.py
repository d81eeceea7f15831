"""Files that are whole or absent: written beside their place, then renamed into it."""

import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import yaml


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix) that takes its place when the block ends without an error.

    Missing folders above `path` are made. If the block raises, what it wrote is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8: a reader sees the old file or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `value` as indented JSON. NaN and the infinities become `null`: JSON has no word for them.

    Raises ValueError, before anything is written, if `value` holds something else that JSON lacks.
    """
    finite = map_leaves(value, lambda leaf, place: leaf if _is_finite(leaf) else None, str(path))
    write_text_atomically(path, json.dumps(finite, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return what the JSON file holds.

    A byte order mark is passed over. Raises FileNotFoundError if it is missing and ValueError, naming file and line,
    if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def read_yaml(path: Path) -> Any:
    """Return what the YAML file holds.

    Raises FileNotFoundError if it is missing and ValueError, naming file and line, if it is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{place}: not YAML ({getattr(error, 'problem', error)})") from None


def map_leaves(value: Any, change: Callable[[Any, str], Any], place: str) -> Any:
    """Copy nested dicts, lists and tuples (which become lists), with `change(leaf, place)` for every leaf.

    `place` names where a leaf sits ("settings.optimiser.lr", "settings.ratios[2]"). Raises ValueError naming the
    place of a key that is not a string and of a changed leaf that JSON cannot hold.
    """
    if isinstance(value, dict):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{place}: key {strange[0]!r} is not a string")
        return {key: map_leaves(item, change, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_leaves(item, change, f"{place}[{index}]") for index, item in enumerate(value)]
    leaf = change(value, place)
    if leaf is not None and not isinstance(leaf, str | int | float):
        raise ValueError(f"{place}: a {type(leaf).__name__} has no form in JSON")
    return leaf


def file_digest(file: Path) -> bytes:
    """Return the SHA-256 of a file, remembered as long as its time and length stay."""
    state = file.stat()
    return _file_digest(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=100_000)
def _file_digest(file: Path, changed: int, length: int) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def sync_tree(folder: Path) -> None:
    """Force every file and folder below `folder`, and itself, to the disk."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if path.is_file():
                sync(path)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Force one file's bytes, or one folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_finite(leaf: Any) -> bool:
    return not isinstance(leaf, float) or math.isfinite(leaf)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
