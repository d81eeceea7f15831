"""Optional dependencies: packages that only some commands need, and that an extra of the distribution installs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

DISTRIBUTION = "prune-distil"
"""The name of this package on the package index, where `paperlib` is another project."""


class MissingExtraError(ModuleNotFoundError):
    """A package of an extra is not installed; the message is one line with the command that installs it."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Tell which extra to install if an import in the block fails.

    Raises:
        MissingExtraError: a package is not installed.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as error:
        raise MissingExtraError(describe_missing(str(error.name), extra), name=error.name) from error


def describe_missing(package: str, extra: str) -> str:
    """Return the message for a package that is not installed, with the command that installs it."""
    return f"{package} is not installed: pip install '{DISTRIBUTION}[{extra}]'"


def load_later(extra: str, load: Callable[[], ModuleType]) -> Any:
    """Return a stand-in for a module of an extra, which is imported when one of its names is first used.

    The stand-in has type `Any`, so type checkers need the usual import as well, under `TYPE_CHECKING`.

    Args:
        extra: the extra that installs it.
        load: imports it; `lambda: import_module("onnx")`, with the name spelled out, so that digests of code find it.
    """
    return _LaterModule(extra, load)


class _LaterModule:
    def __init__(self, extra: str, load: Callable[[], ModuleType]) -> None:
        self._extra, self._load = extra, load

    def __getattr__(self, name: str) -> Any:
        with needs_extra(self._extra):
            return getattr(self._load(), name)
