"""The one line that tells of an error: the place, the fault and, where there is one, the remedy."""

from __future__ import annotations

from typer.exceptions import TyperException

from paperlib.files import is_disk_full

LONGEST_LINE = 500
"""Characters of a line; of a longer one the beginning and the end are shown."""


def describe_error(error: Exception) -> str:
    """Return the line for bad input, for what the operating system refuses, or for a package that is missing."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        text = f"{place}{error.strerror[:1].lower()}{error.strerror[1:]}"
    if is_disk_full(error):
        text = f"{text}; free some space, then the same command continues"
    return _one_line(text)


def describe_usage(error: TyperException) -> str:
    """Return the line for a wrong command line; if no command was given, the help."""
    text = error.format_message()
    if text.startswith("Usage:"):
        return text
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "paperlib"
    # "Value error" is a word of the library that checks values.
    fault = " ".join(text.split()).rstrip(".").replace(": Value error, ", ": ")
    return _one_line(f"{fault}; see `{command} --help`")


def last_line(said: str) -> str:
    """Return the last line that another program has written, which tells the fault; lines before it are a log."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"


def _one_line(text: str) -> str:
    line = f"paperlib: {' '.join(text.split())}"
    if len(line) <= LONGEST_LINE:
        return line
    # The beginning names the place and the end the remedy, so the middle is left out.
    half = LONGEST_LINE // 2 - 2
    return f"{line[:half]} … {line[-half:]}"
