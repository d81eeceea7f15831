"""What a reader of someone's data set repairs or leaves out: counted by kind, and told in one line for each."""

from __future__ import annotations


class Remarks:
    """Findings that do not stop the reading of a data set."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, line: str) -> None:
        """Take in a remark that is a line of its own."""
        self._lines.append(line)

    def count(self, kind: str, place: str, times: int = 1) -> None:
        """Count findings of one kind; only the place of the first is told."""
        self._first.setdefault(kind, place)
        self._counts[kind] = self._counts.get(kind, 0) + times

    def lines(self) -> tuple[str, ...]:
        """Return the remarks, one line each."""
        counted = (f"{kind}: {count:,} (first: {self._first[kind]})" for kind, count in self._counts.items())
        return *self._lines, *counted
