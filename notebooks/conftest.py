"""Check that the regression tests of the notebooks can fail: `make notebooks` tries it on each checked cell.

For each value in the stored output of a checked cell there is one more test. It shows the value of the cell again, on
the same kernel, and compares it with the stored output in which only this value is changed. nbval must then fail.
"""

import copy
import re
from collections.abc import Iterator

import pytest
from nbval.plugin import IPyNbCell, NbCellError

CHECKED = "nbval-check-output"
VALUE = re.compile(r"\b(?:True|False|None)\b|\d+(?:\.\d+)?|'[^'\d]*'(?=[,}\]])")
"""The values of a summary: truth values, numbers (also those in texts), and texts without numbers."""
OPPOSITE = {"True": "False", "False": "True", "None": "0"}


class AlteredCell(IPyNbCell):
    """A cell with one value of its stored output altered; it passes if nbval sees the difference."""

    def runtest(self) -> None:
        """Show the value of the cell and expect a difference; nbval reports any other error."""
        try:
            super().runtest()
        except NbCellError as error:
            if str(error) != "Cell outputs differ":
                raise
        else:
            self.raise_cell_error(f"{self.name}, and it was not noticed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Insert the altered copies of every checked cell behind it."""
    for item in list(items):
        if isinstance(item, IPyNbCell) and CHECKED in item.cell.metadata.get("tags", []):
            behind = items.index(item) + 1
            items[behind:behind] = list(alter_outputs(item))


def alter_outputs(item: IPyNbCell) -> Iterator[AlteredCell]:
    """Yield copies of a checked cell, each with another value of its stored outputs altered."""
    texts = [output.get("data", {}).get("text/plain", "") for output in item.cell.outputs]
    values = [(index, value) for index, text in enumerate(texts) for value in VALUE.finditer(text)]
    for number, (index, value) in enumerate(values, 1):
        other = alter_value(value[0])
        cell = copy.deepcopy(item.cell)
        cell.source = "_"  # the last value shown, because the cell itself writes all results again
        cell.outputs[index].data["text/plain"] = value.string[: value.start()] + other + value.string[value.end() :]
        name = f"{item.name}, value {number} altered from {value[0]} to {other}"
        given = {"cell_num": item.cell_num, "cell": cell, "options": item.options}
        yield AlteredCell.from_parent(item.parent, name=name, **given)


def alter_value(value: str) -> str:
    """Return a similar value: the opposite, a number with another last digit, a text with one more letter."""
    if value[-1].isdigit():
        return value[:-1] + str((int(value[-1]) + 1) % 10)
    return OPPOSITE.get(value) or f"{value[:-1]}x'"
