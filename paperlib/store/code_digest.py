"""A digest of source code: equal as long as nothing changed that can change a number."""

import ast
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import EllipsisType, FunctionType, ModuleType
from typing import NamedTuple

ASIDE = frozenset({"paperlib.paths", "paperlib.progress.report", "paperlib.store.code_digest"})
"""Modules that place, show or name things and cannot change a number: an import of them is not followed."""

_NAMED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_process_start_ns = time.time_ns()


def code_digest(*parts: ModuleType | FunctionType | str, root: Path | None = None) -> str:
    """Return a digest (64 hex digits) of the source that can change the numbers of `parts`.

    It covers the given modules and, transitively, every module of the same package that they import anywhere in
    their source, but for those that stand `ASIDE`. Comments, docstrings and layout do not enter; any other change of
    code does. `from package.sub import module` takes in the module alone; `from package.sub import name` and `import
    package.sub` take in the `__init__.py` of `package.sub` and all it imports. So an `__init__.py` must only gather
    names, never set state. Of a given function its own source counts, not its module and not what it calls.

    `root` is the folder of the package (default: paperlib's). Nothing is imported. Raises ValueError, naming file
    and line, for a module that does not exist, does not parse, imports by a computed name (which cannot be
    followed), or was edited after this process loaded it (what runs would not be what is recorded).
    """
    package = _Package(Path(__file__).parent.parent if root is None else root)
    functions = [part for part in parts if isinstance(part, FunctionType)]
    found = {f"{part.__module__}:{part.__qualname__}": package.fingerprint(part) for part in functions}
    pending = [part if isinstance(part, str) else part.__name__ for part in parts if part not in functions]
    while pending:
        name = pending.pop()
        if name not in found:
            source = package.source(name)
            found[name] = source.fingerprint
            pending.extend(package.imported_by(name, source))
    return _sha256("\n".join(f"{name} {found[name]}" for name in sorted(found)))


class _Import(NamedTuple):
    """`from <level dots><module> import <name>`, or, without a name, `import <module>`."""

    level: int
    module: str
    name: str | None


class _Source(NamedTuple):
    fingerprint: str
    imports: tuple[_Import, ...]
    bound: frozenset[str]  # every name that the source binds, at whatever depth
    computed: int | None  # line of an import by a computed name, which cannot be followed


class _Package:
    """The modules below one folder, by their dotted names."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, name: str) -> Path | None:
        top, *parts = name.split(".")
        if top != self.root.name:
            return None
        path = self.root.joinpath(*parts)
        candidates = [path / "__init__.py"] + ([path.with_name(f"{path.name}.py")] if parts else [])
        return next((candidate for candidate in candidates if candidate.is_file()), None)

    def source(self, name: str) -> _Source:
        path = self.file(name)
        if path is None:
            raise ValueError(f"{self.root}: there is no module {name!r}")
        state = path.stat()
        loaded = getattr(sys.modules.get(name), "__file__", None) or ""
        if os.path.realpath(loaded) == os.path.realpath(path) and state.st_mtime_ns > _process_start_ns:
            raise ValueError(f"{path}: edited after this process loaded it; restart the process (the kernel)")
        return _parse(path, state.st_mtime_ns, state.st_size)

    def imported_by(self, importer: str, source: _Source) -> Iterator[str]:
        """Yield the modules of this package that `importer` asks for; what does not exist cannot change a number."""
        if source.computed:
            place = f"{self.file(importer)}, line {source.computed}"
            raise ValueError(f"{place}: imports by a computed name; spell the name out")
        for statement in source.imports:
            base = self._absolute(importer, statement)
            if statement.name is None:
                wanted = [base]
            else:
                submodule = f"{base}.{statement.name}"
                is_module = self.file(submodule) is not None
                # A package may bind a name that is also one of its modules: then either may be meant.
                is_attribute = not is_module or self._binds(base, statement.name)
                wanted = [submodule] * is_module + [base] * is_attribute
            yield from (name for name in wanted if name not in ASIDE and self.file(name) is not None)

    def fingerprint(self, function: FunctionType) -> str:
        """The source of one function, found by its qualified name."""
        self.source(function.__module__)  # refuses a file that was edited since
        node: ast.AST = ast.parse(self.file(function.__module__).read_bytes())
        for name in function.__qualname__.replace("<locals>.", "").split("."):
            node = next(inner for inner in ast.walk(node) if isinstance(inner, _NAMED) and inner.name == name)
        return _sha256(_essence(node))

    def _absolute(self, importer: str, statement: _Import) -> str:
        if statement.level == 0:
            return statement.module
        path = self.file(importer)
        is_package = path is not None and path.name == "__init__.py"
        parts = importer.split(".")
        anchor = parts[: len(parts) - statement.level + is_package]
        return ".".join([*anchor, statement.module] if statement.module else anchor)

    def _binds(self, name: str, attribute: str) -> bool:
        return self.file(name) is not None and attribute in self.source(name).bound


@cache
def _parse(path: Path, mtime_ns: int, size: int) -> _Source:
    """Parse a file once for each of its states (`mtime_ns` and `size` are there for the cache)."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from None
    imports = tuple(found for node in ast.walk(tree) for found in _imports_of(node))
    computed = next((node.lineno for node in ast.walk(tree) if _imports_computed(node)), None)
    bound = frozenset(name for node in ast.walk(tree) for name in _names_bound_by(node))
    return _Source(_sha256(_essence(tree)), imports, bound, computed)


def _imports_of(node: ast.AST) -> Iterator[_Import]:
    if isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield _Import(node.level, node.module or "", alias.name)
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield _Import(0, alias.name, None)
            if alias.asname is None:
                # `import a.b` binds `a`, through which all that `a` gathers can be reached.
                parts = alias.name.split(".")
                yield from (_Import(0, ".".join(parts[:depth]), None) for depth in range(1, len(parts)))
    elif (name := _dynamic_import(node)) and name is not ...:
        yield _Import(0, name, None)


def _imports_computed(node: ast.AST) -> bool:
    return _dynamic_import(node) is ...


def _dynamic_import(node: ast.AST) -> str | EllipsisType | None:
    """The name in `import_module("name")`; `...` where it is computed; None for any other node."""
    function = getattr(node.func, "attr", getattr(node.func, "id", None)) if isinstance(node, ast.Call) else None
    if function not in ("import_module", "__import__"):
        return None
    name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
    return name if isinstance(name, str) and not name.startswith(".") else ...


def _names_bound_by(node: ast.AST) -> Iterator[str]:
    if isinstance(node, _NAMED):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.alias):
        yield node.asname or node.name


def _essence(tree: ast.AST) -> str:
    return ast.dump(_WithoutDocstrings().visit(tree))


class _WithoutDocstrings(ast.NodeTransformer):
    """Drop every bare string: docstrings, and the ones below attributes, do nothing when run."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
