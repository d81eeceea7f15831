"""Errors of a notebook's parameters and inputs, shown as one line: the reader of a notebook needs no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class _OneLineError(Exception):
    """An error that IPython shows without its traceback, because it has this method."""

    def _render_traceback_(self) -> list[str]:
        return [f"paperlib: {' '.join(str(self).split())}"]


class SettingsError(_OneLineError, ValueError):
    """A parameter of a notebook is unknown, or of a wrong type or range."""


class MissingInputError(_OneLineError, FileNotFoundError):
    """Data or weights that a notebook reads are not on this machine."""


@contextmanager
def fold_traceback() -> Iterator[None]:
    """Show a ValueError or FileNotFoundError of the block as one line in a notebook.

    Raises:
        SettingsError, MissingInputError: instead of these errors, with the same text.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise MissingInputError(str(error)) from error
    except ValueError as error:
        raise SettingsError(str(error)) from error
