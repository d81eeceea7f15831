"""Reading and writing of files. A written file is complete or absent: a temporary file is renamed to its path."""

import errno
import hashlib
import json
import math
import os
import re
import reprlib
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

MAX_DEPTH = 50
"""How deep the values of a JSON or YAML file may be nested."""
MAX_JSON_BYTES = 512 * 2**20
"""Largest JSON file; the annotations of COCO's training images have 448 MB."""
MAX_YAML_BYTES = 2**20
"""Largest YAML file, which takes some ten seconds to read."""
MAX_YAML_NODES = 100_000
QUOTED = 60
"""Longest quotation of a file in a message, in characters."""
MAX_QUOTED_BITS = 128
BINARY_FILES = {
    b"PK\x03\x04": "ZIP file",
    b"\x1f\x8b": "gzip file",
    b"\x89PNG": "PNG picture",
    b"\xff\xd8\xff": "JPEG picture",
    b"%PDF": "PDF file",
}
"""How files begin that are handed over instead of JSON, mostly by a download that was not unpacked."""
BYTE_ORDER_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))


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
    # The new name is an entry of the folder, which reaches the disk separately from the file.
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


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file; raise `ValueError` if it has more than `max_bytes`."""
    with path.open("rb") as opened:
        # One byte more shows that there is more, also in a pipe, which has no length.
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path}: more than {max_bytes / 2**20:,.0f} MiB are not read")
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """Return the text of a UTF-8 file; a byte order mark is ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has more than `max_bytes`, or another encoding. One line names the file and the remedy.
    """
    return _decode_text(read_bytes(path, max_bytes), str(path))


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES, *, constants: list[str] | None = None) -> Any:
    """Return the content of a JSON file; a byte order mark is ignored.

    Args:
        path: the file.
        max_bytes: its largest size.
        constants: if given, NaN and the infinities, which JSON lacks, are read, and this list gets each, the first with
            its line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON in UTF-8, is larger than `max_bytes`, or nested deeper than `MAX_DEPTH`. One line
            names the file and, where there is one, the line.
    """
    content = read_bytes(path, max_bytes)
    kind = next((name for start, name in BINARY_FILES.items() if content.startswith(start)), None)
    if kind:
        raise ValueError(f"{path}: not JSON: it is a {kind}")
    return parse_json(_decode_text(content, str(path)), str(path), constants)


def parse_json(text: str, place: str, constants: list[str] | None = None) -> Any:
    """Return the content of a JSON text; `place` is how messages name it; for `constants` see `read_json`.

    Raises:
        ValueError: it is not JSON, or nested deeper than `MAX_DEPTH`. One line names the place.
    """
    if _json_depth(text) > MAX_DEPTH:
        raise ValueError(f"{place}: not read: nested more than {MAX_DEPTH} deep")
    try:
        found: list[str] = []
        content = json.loads(text, parse_constant=lambda name: found.append(name) or float(name))
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}, line {error.lineno}: not JSON: {error.msg}") from None
    except ValueError:
        # The only other error of the parser: Python converts no text of so many digits.
        raise ValueError(f"{place}: not read: a number has more than {sys.get_int_max_str_digits()} digits") from None
    if found and constants is None:
        raise ValueError(f"{place}, line {_constant_line(text, found[0])}: not JSON: {found[0]} is not a JSON value")
    if found and constants is not None:
        constants += [f"{found[0]} in line {_constant_line(text, found[0])}", *found[1:]]
    return content


def read_yaml(path: Path, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """Return the content of a YAML file; a byte order mark is ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML in UTF-8, a key is given twice, a value does not fit its tag, or the file is larger
            than `max_bytes`, nested deeper than `MAX_DEPTH`, or has more than `MAX_YAML_NODES` values, each alias
            counted as what it stands for. One line names the file and the line.
    """
    try:
        return yaml.load(read_text(path, max_bytes), _GuardedLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        fault = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{path}{place}: not YAML ({shorten_text(fault, 200)})") from None


def shorten_text(text: str, length: int = QUOTED) -> str:
    """Return `text` on one line, or its beginning with an ellipsis if it is longer than `length`."""
    text = _cut_text(text, length)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut_text(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def quote_value(value: Any) -> str:
    """Return a value of a file as a message shows it: on one line, and no longer than `QUOTED`."""
    if isinstance(value, int) and value.bit_length() > MAX_QUOTED_BITS:
        return "a very large number"
    if isinstance(value, str):
        # The representation of a long text would be made in full, to be cut again.
        value = _cut_text(value, QUOTED)
    return shorten_text(reprlib.repr(value) if isinstance(value, list | dict) else repr(value))


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


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def remembered_digest(path: Path) -> str:
    """Return the same, remembered as long as the file's time and length stay: for the images of a data set."""
    state = path.stat()
    return _remember_digest(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=100_000)
def _remember_digest(path: Path, changed: int, length: int) -> str:
    return file_digest(path)


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


class _GuardedLoader(yaml.SafeLoader):
    """The safe loader, bounded; by itself it takes the last of equal keys, and recurses as deep as the file."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        before = self._nodes
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _yaml_fault(f"nested more than {MAX_DEPTH} deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._nodes += 1
            self._sizes[id(node)] = self._nodes - before
        elif id(node) in self._sizes:
            # Whoever reads the values later meets the aliased ones once more: nine times nine is soon a billion.
            self._nodes += self._sizes[id(node)]
        else:
            raise _yaml_fault(f"alias {quote_value(event.anchor)} stands inside what it names", event.start_mark)
        if self._nodes > MAX_YAML_NODES:
            raise _yaml_fault(f"more than {MAX_YAML_NODES:,} values, aliases included", event.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # The constructors of single values let the errors of `int`, `float` and a table of truth values escape.
            kind = str(node.tag).rpartition(":")[2]
            raise _yaml_fault(f"{quote_value(node.value)} is no {shorten_text(kind)}", node.start_mark) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise _yaml_fault(f"{quote_value(node.value)} is not a finite number", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        # A tag such as `!!map` may claim that something else is a mapping.
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise _yaml_fault("a key is not a single value", key.start_mark)
            if key.value in seen:
                raise _yaml_fault(f"key {quote_value(key.value)} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml_fault(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _decode_text(content: bytes, place: str) -> str:
    found = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if found is None and b"\0" in content[:4]:
        found = "UTF-16 or UTF-32 without a byte order mark, or no text"
    if found:
        raise ValueError(f"{place}: is {found}; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{content[error.start]:02X}"
        raise ValueError(f"{place}, line {line}: not UTF-8 ({byte}, perhaps Latin-1); save it as UTF-8") from None


def _json_depth(text: str) -> int:
    """Return how deep the brackets outside of texts are nested, by passes that know no recursion."""
    # Pairs of backslashes go first: a quotation mark after such a pair is not escaped.
    content = text.encode("utf-8", "surrogatepass").replace(b"\\\\", b"").replace(b'\\"', b"")
    signs = np.frombuffer(content.translate(None, NOT_STRUCTURE), dtype=np.uint8)
    outside = ~np.logical_xor.accumulate(signs == ord('"'))
    opens = outside & ((signs == ord("[")) | (signs == ord("{")))
    closes = outside & ((signs == ord("]")) | (signs == ord("}")))
    return int(np.cumsum(opens.astype(np.int8) - closes.astype(np.int8), dtype=np.int32).max(initial=0))


def _is_finite(leaf: Any) -> bool:
    return not isinstance(leaf, float) or math.isfinite(leaf)


def _constant_line(text: str, name: str) -> int:
    """Return the line of the first value of that name, which may also stand in a text."""
    value = re.search(rf"[:\[,]\s*{re.escape(name)}", text)
    return text.count("\n", 0, value.end()) + 1 if value else 1
