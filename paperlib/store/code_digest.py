"""What code a number depends on, told by its content: moving or renaming a file makes no finished step stale.

The unit is a package of paperlib (`training`, `pruning`, …) or a module at its root (`seeding`, `costs`, …). Its
content is the set of its definitions, each as a syntax tree without docstrings. Comments, layout, names and order of
files, and the paths by which paperlib's modules import each other do not enter; imports of other libraries do. (So it
is not noticed if a name is imported from another module of the same unit that defines the same name.)
A step depends on the units that its method mentions and, transitively, on the units that these import.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType, MethodType
from typing import NamedTuple

from paperlib import files
from paperlib.store.syntax import (
    Source,
    analyse_source,
    digest_of,
    find_mentions,
    hash_texts,
    read_public_names,
    read_source,
)

NOT_NUMERIC = frozenset({"claims", "cli", "figures", "files", "limits", "paths", "progress", "store", "typed_options"})
"""Units that check, place, show or remember things and cannot change a number of a step. Every other unit counts."""
NOT_IN_RESULTS = frozenset({"cli", "paths", "progress"})
"""Units that cannot change what a notebook writes: besides numbers these are figures, tables and provenance."""


def _state_of_files(folder: Path | str) -> frozenset[tuple[str, int, int]]:
    """Return path, date and size of every source file in a folder and in those below it."""
    found: set[tuple[str, int, int]] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                found |= _state_of_files(entry.path)
            elif entry.name.endswith(".py"):
                state = entry.stat()
                found.add((entry.path, state.st_mtime_ns, state.st_size))
    return frozenset(found)


_PACKAGE = Path(__file__).parent.parent
_process_start_ns = time.time_ns()
_states_at_start = {Path(path): (date, size) for path, date, size in _state_of_files(_PACKAGE)}


@dataclass(frozen=True)
class Code:
    """The state of the code that a step depends on.

    Attributes:
        parts: where the search began: "module:Class.method", or "module" for the unit that holds it.
        units: for each unit, a short digest of each of its definitions by name.
        digest: 64 hex digits; equal as long as no definition changes, wherever it stands.
    """

    parts: tuple[str, ...]
    units: dict[str, dict[str, str]]
    digest: str


def code_of(*parts: object, root: Path = _PACKAGE) -> Code:
    """Return the state of the code that can change what `parts` compute. Nothing is imported.

    Args:
        parts: A function, a method or "module:qualified.name" stands for its source, the source of what it reaches in
            its module, and the units that these mention. "package.module" stands for its unit. Any other object
            stands for the units of its class and base classes. In all cases the units that these import count, too.
        root: the folder of the package.

    Raises:
        ValueError: source that does not exist, does not parse, imports by a computed name (which cannot be followed),
            or was edited after this process loaded it (what runs would not be what is recorded). Names the file.
    """
    names = sorted({name for part in parts for name in _names_of(part, root.name)})
    return _code_of_names(tuple(names), root, _state_of_files(root))


@cache
def _code_of_names(names: tuple[str, ...], root: Path, _state: frozenset[tuple[str, int, int]]) -> Code:
    """Search once for each state of the files (which is there for the cache): a batch asks thousands of times."""
    package = _Package(root, NOT_NUMERIC)
    reached: set[_Definition] = set()
    units: set[str] = set()
    for name in names:
        module, _, function = name.partition(":")
        if function:
            definitions, mentioned = package.reached_by(module, function)
            reached |= definitions
            units |= mentioned
        else:
            package.find_file(module)  # raises ValueError if there is none
            units |= package.units_of([module])
    return package.describe(list(names), units, reached)


def code_digest(*parts: object, root: Path = _PACKAGE) -> str:
    """Return the digest of the code that can change what `parts` compute; see `code_of`."""
    return code_of(*parts, root=root).digest


def notebook_code(notebook: Path, root: Path = _PACKAGE) -> Code:
    """Return the state of the code that a notebook's cells import; the cells themselves do not enter.

    Raises:
        ValueError: source that does not parse or imports by a computed name. Names the file.
    """
    # Another process will run the notebook, so it does not matter what this one has loaded.
    package = _Package(root, NOT_IN_RESULTS, refuse_edited=False)
    cells = files.read_json(notebook)["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines()]
    source = analyse_source("\n".join(line for line in lines if not line.startswith(("%", "!"))), notebook, "notebook")
    return package.describe([notebook.name], package.units_of(source.targets), set())


def notebook_digest(notebook: Path, root: Path = _PACKAGE) -> str:
    """Return the digest of the code that a notebook's cells import; see `notebook_code`."""
    return notebook_code(notebook, root).digest


class _Definition(NamedTuple):
    unit: str
    name: str
    digest: str


class _Package:
    """The units below one folder, without those that are ignored."""

    def __init__(self, root: Path, ignored: frozenset[str], *, refuse_edited: bool = True) -> None:
        self.root = root
        self.ignored = ignored
        self.refuse_edited = refuse_edited
        self.units = {path.stem for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}

    def describe(self, parts: list[str], units: set[str], reached: set[_Definition]) -> Code:
        """Return the state of the code of units, of all that they import, and of the definitions `reached` besides."""
        closure = self._closure(units)
        found = {each for each in reached if each.unit not in closure}
        for unit, sources in closure.items():
            found |= {_Definition(unit, *content) for source in sources for content in source.contents}
        by_unit: dict[str, dict[str, str]] = {}
        for unit, name, digest in sorted(found):
            named = by_unit.setdefault(unit, {})
            # Two files of a unit may both define `_read`.
            named[name] = f"{named[name]} {digest[:12]}" if name in named else digest[:12]
        return Code(tuple(parts), by_unit, hash_texts(*sorted(each.digest for each in found)))

    def units_of(self, targets: Iterable[str]) -> set[str]:
        """Return the units that hold "paperlib.unit.module.name", for names of this package."""
        names = {tuple(target.split(".")[:2]) for target in targets}
        found = {name[1] for name in names if name[0] == self.root.name and len(name) == 2}
        # The package itself offers names of its units: `paperlib.Study` is in `paperlib.experiments`.
        homes = read_public_names(self.root / "__init__.py") if found - self.units else {}
        return {name if name in self.units else homes[name] for name in found if name in self.units | homes.keys()}

    def find_file(self, module: str) -> Path:
        """Return the file of a module of this package. Raises ValueError if there is none."""
        path = self.root.parent.joinpath(*module.split("."))
        for candidate in (path / "__init__.py", path.with_suffix(".py")):
            if candidate.is_file():
                return candidate
        raise ValueError(f"{self.root}: there is no module {module!r}")

    def reached_by(self, module: str, function: str) -> tuple[set[_Definition], set[str]]:
        """Return the definitions of a module that a function reaches, itself among them, and the units they mention."""
        source = self._source(self.find_file(module))
        unit = module.split(".")[1]
        names = [name for name, _ in source.definitions]
        pending = {function.partition(".<locals>")[0]}
        seen: set[str] = set()
        found: set[_Definition] = set()
        units: set[str] = set()
        while pending:
            name = pending.pop()
            seen.add(name)
            for node in (node for other, node in source.definitions if name in other.split(", ")):
                found.add(_Definition(unit, name, digest_of(name, node)))
                for mention in find_mentions(node):
                    first, *attributes = mention
                    imported = source.bound.get(first)
                    if imported:
                        units |= self.units_of(".".join([target, *attributes]) for target in imported)
                    else:
                        pending |= set(_local_names(mention, name.rpartition(".")[0], names)) - seen
        if not found:
            raise ValueError(f"{self.find_file(module)}: defines no {function}")
        return found, units - self.ignored

    def _closure(self, units: set[str]) -> dict[str, list[Source]]:
        """Return the source of units and of all that they import, directly or not."""
        found: dict[str, list[Source]] = {}
        pending = units - self.ignored
        while pending:
            unit = pending.pop()
            found[unit] = self._sources(unit)
            imported = self.units_of(target for source in found[unit] for target in source.targets)
            pending |= imported - self.ignored - found.keys()
        return found

    def _sources(self, unit: str) -> list[Source]:
        folder = self.root / unit
        paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        return [self._source(path) for path in paths if path.is_file()]

    def _source(self, path: Path) -> Source:
        state = path.stat()
        parts = path.relative_to(self.root.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        # A file may be dated ahead of the clock, so what counts is whether its date has changed since the start.
        at_start = _states_at_start.get(path)
        is_new = state.st_mtime_ns > _process_start_ns
        if self.refuse_edited and (is_new if at_start is None else at_start != (state.st_mtime_ns, state.st_size)):
            loaded = getattr(sys.modules.get(module), "__file__", None)
            if loaded and os.path.samefile(loaded, path):
                raise ValueError(f"{path}: edited after this process loaded it; restart the process (the kernel)")
        package = module if parts[-1] == "__init__" else module.rpartition(".")[0]
        return read_source(path, package, state.st_mtime_ns, state.st_size)


def _local_names(mention: tuple[str, ...], own_class: str, names: list[str]) -> Iterator[str]:
    """Yield which of the names that a module defines may be meant by a mention within `own_class`."""
    first, *attributes = mention
    owner = own_class if first in ("self", "cls") else first
    if attributes and f"{owner}.{attributes[0]}" in names:
        yield f"{owner}.{attributes[0]}"
        return
    for name in names:
        class_name, _, method = name.rpartition(".")
        # The class of an object is not known, so a method of this name counts in every class.
        is_method = method in attributes and class_name
        # Whoever makes an object of a class runs its `__init__` or `__post_init__`.
        is_special = class_name == first and method.startswith("__")
        if is_method or is_special or first in name.split(", "):
            yield name


def _names_of(part: object, package: str) -> list[str]:
    if isinstance(part, str):
        return [part]
    if isinstance(part, FunctionType | MethodType):
        return [f"{part.__module__}:{part.__qualname__}"]
    classes = part.__mro__ if isinstance(part, type) else type(part).__mro__
    return [kind.__module__ for kind in classes if kind.__module__.partition(".")[0] == package]
