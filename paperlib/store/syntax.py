"""What one file of source defines, imports and mentions, read from its syntax tree."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Source(NamedTuple):
    """What one file defines and imports.

    Attributes:
        definitions: names of what is defined at the top of the file or in a class there, and their syntax trees.
        contents: a digest for each of these names, and for each name that is imported from another library.
        bound: names that imports bind, and what each stands for ("np": {"numpy"}).
        targets: everything that is imported, by full name.
    """

    definitions: list[tuple[str, ast.stmt]]
    contents: list[tuple[str, str]]
    bound: dict[str, set[str]]
    targets: set[str]


@cache
def read_source(path: Path, package: str, mtime_ns: int, size: int) -> Source:
    """Analyse a file of `package` once for each of its states (`mtime_ns` and `size` are there for the cache)."""
    return analyse_source(path.read_text(encoding="utf-8"), path, package)


def analyse_source(text: str, path: Path, package: str) -> Source:
    """Return what source defines and imports; `path` is for messages, `package` for relative imports.

    Raises:
        ValueError: the source does not parse or imports by a computed name; names file and line.
    """
    reader = _Reader(path, package)
    try:
        tree = reader.visit(ast.parse(text))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from None
    # `import paperlib as pl` does not tell what is used; `pl.Study` does.
    for first, *attributes in find_mentions(tree):
        packages = [target for target in reader.bound.get(first, ()) if "." not in target]
        reader.targets |= {".".join([target, *attributes]) for target in packages}
    definitions = list(_split_module(tree))
    contents = [(name, digest_of(name, node)) for name, node in definitions]
    # Where paperlib keeps its own modules does not count. Another function of another library does.
    ours = (package.partition(".")[0], "__future__")
    for name, origins in reader.bound.items():
        foreign = sorted(origin for origin in origins if origin.partition(".")[0] not in ours)
        contents += [(f"import {name}", hash_texts(name, origin)) for origin in foreign]
    return Source(definitions, contents, reader.bound, reader.targets)


def find_mentions(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Yield the dotted names in code: ("self", "plan"), ("np", "linalg", "norm"), ("", "to") for `f(x).to`.

    Annotations are left out: a step does not depend on what only names its types.
    """
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        yield (node.id, *attributes)
        return
    if attributes:
        yield ("", *attributes)
    for field, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        if field not in ("annotation", "returns"):
            for child in children:
                if isinstance(child, ast.AST):
                    yield from find_mentions(child)


@cache
def read_public_names(init: Path) -> dict[str, str]:
    """Return the units of the names that a package's `__init__.py` offers: {"Study": "experiments"}.

    They stand there in a table of modules and names: {"paperlib.experiments.study": ("Study",)}.
    """
    units = {}
    for node in ast.walk(ast.parse(init.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                names = [each.value for each in ast.walk(value) if isinstance(each, ast.Constant)]
                if isinstance(key, ast.Constant):
                    units |= {str(name): str(key.value).split(".")[1] for name in names}
    return units


def digest_of(name: str, node: ast.AST) -> str:
    """Return the digest of a definition."""
    return hash_texts(name, ast.dump(node))


def hash_texts(*texts: str) -> str:
    """Return the SHA-256 (64 hex digits) of several texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _split_module(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Yield what a module defines, by name; methods apart from their class."""
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            shell = copy.copy(statement)
            shell.body = [inner for inner in statement.body if not isinstance(inner, _FUNCTIONS)]
            yield statement.name, shell
            for inner in statement.body:
                if isinstance(inner, _FUNCTIONS):
                    yield f"{statement.name}.{inner.name}", inner
        elif isinstance(statement, _FUNCTIONS):
            yield statement.name, statement
        else:
            nodes = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
            stored = [node.id for node in nodes if isinstance(node.ctx, ast.Store)]
            yield ", ".join(stored) or type(statement).__name__.lower(), statement


class _Reader(ast.NodeTransformer):
    """Collects what a tree imports, and takes out imports, bare strings and what only the type checker reads."""

    def __init__(self, path: Path, package: str) -> None:
        self.path = path
        self.package = package
        self.bound: dict[str, set[str]] = {}
        self.targets: set[str] = set()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.targets.add(alias.name)
            # `import a.b` binds `a`, `import a.b as c` binds `a.b`.
            top = alias.name.partition(".")[0]
            self.bound.setdefault(alias.asname or top, set()).add(alias.name if alias.asname else top)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        origin = resolve_name("." * node.level + (node.module or ""), self.package)
        for alias in node.names:
            self.targets.add(f"{origin}.{alias.name}")
            self.bound.setdefault(alias.asname or alias.name, set()).add(f"{origin}.{alias.name}")

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _last_name(node.func) in ("import_module", "__import__"):
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            if not isinstance(name, str) or name.startswith("."):
                raise ValueError(f"{self.path}, line {node.lineno}: imports by a computed name; spell the name out")
            self.targets.add(name)
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        # Docstrings, and the texts below attributes.
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if _last_name(node.test) != "TYPE_CHECKING":
            return self.generic_visit(node)
        node.body = []
        self.generic_visit(node)
        return node.orelse


def _last_name(node: ast.AST) -> str | None:
    return getattr(node, "attr", getattr(node, "id", None))
