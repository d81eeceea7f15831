"""Reading and writing of files. A written file is complete or absent: a temporary file is renamed to its path."""

import errno
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
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffix, and rename it to `path` when the block ends.

    Missing folders above `path` are made. If the block raises an error, the temporary file is removed and `path` stays
    as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        with name_path(path, also_for=temporary):
            yield temporary
            # To the disk before the renaming: after a power cut the new name must not stand for an empty file.
            sync_path(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


@contextmanager
def name_path(path: Path, *, also_for: Path | None = None) -> Iterator[None]:
    """Name `path` in an OSError of the block that names no file, such as that of a full disk, or `also_for`."""
    try:
        yield
    except OSError as error:
        unknown = error.filename is None or str(error.filename) == str(also_for)
        if unknown and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error says that the disk is full, or that a quota or the largest size of a file is reached."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8. A reader sees the old file or the new one, never a part of one."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `value` as indented JSON. NaN and the infinities, which JSON lacks, become `null`.

    Raises:
        ValueError: before anything is written, if `value` holds something else that JSON lacks.
    """
    finite = map_leaves(value, lambda leaf, place: leaf if _is_finite(leaf) else None, str(path))
    write_text_atomically(path, json.dumps(finite, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; a byte order mark is ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON. Names file and line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or a key is given twice. Names file and line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{place}: not YAML ({getattr(error, 'problem', error)})") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else. Names the file and the fault.
    """
    values = read_yaml(path)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path}: expected lines of the form `key: value`")
    return values


def map_leaves(value: Any, change: Callable[[Any, str], Any], place: str) -> Any:
    """Copy nested dicts, lists and tuples (which become lists), and replace every leaf by `change(leaf, place)`.

    Args:
        value: what to copy.
        change: gets each leaf and its place, such as "settings.optimiser.lr" or "settings.ratios[2]".
        place: how the name of every place begins.

    Raises:
        ValueError: a key is not a string, or JSON cannot hold a changed leaf. Names the place.
    """
    if isinstance(value, dict):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{place}: key {strange[0]!r} is not a string")
        return {key: map_leaves(item, change, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_leaves(item, change, f"{place}[{index}]") for index, item in enumerate(value)]
    leaf = change(value, place)
    if leaf is not None and not isinstance(leaf, str | int | float):
        raise ValueError(f"{place}: a {type(leaf).__name__} is not JSON serialisable")
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
    """Force `folder`, and every file and folder below it, to the disk."""
    for path in (folder, *folder.rglob("*")):
        # A pipe or a socket would block.
        if path.is_file() or path.is_dir():
            sync_path(path)


def sync_path(path: Path) -> None:
    """Force one file's bytes, or one folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, which by itself takes the last of equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _is_finite(leaf: Any) -> bool:
    return not isinstance(leaf, float) or math.isfinite(leaf)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
