"""The settings of a notebook, read from its parameters cells while it runs."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from itertools import dropwhile, takewhile
from typing import Any

from paperlib.experiments.parameters import validate_settings

PARAMETERS = "# Parameters"
"""First line of a notebook's parameters cell, and of the one that papermill inserts after it."""


def read_parameters(notebook: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all known settings, and of all other names that the parameters cells set.

    A misspelt name would go unnoticed: to Python it is one more variable, and papermill only prints a notice. So the
    names are read from the cells that ran last (the notebook's own, and papermill's after it).
    """
    known = validate_settings(notebook, {}).model_dump()
    latest = dropwhile(lambda cell: not cell.startswith(PARAMETERS), reversed(namespace.get("In", [])))
    cells = takewhile(lambda cell: cell.startswith(PARAMETERS), latest)
    named: set[str] = set().union(*map(_names_set_by, cells))
    return {name: namespace[name] for name in sorted(known.keys() | named) if name in namespace}


def _names_set_by(cell: str) -> set[str]:
    try:
        nodes = list(ast.walk(ast.parse(cell)))
    except SyntaxError:  # it never ran
        return set()
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
