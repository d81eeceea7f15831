"""Compare the summaries of a batch that has just run with those of the committed notebooks: `make outputs`.

The summary of a notebook is the output of its cells tagged `nbval-check-output`, rounded so that it is the same on
every machine. `make notebooks` compares the same outputs by running every notebook again.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat

from paperlib.paths import repository_root, results_root

CHECKED = "nbval-check-output"


def find_differences(notebook: Path, executed: Path) -> Iterator[str]:
    """Yield in one line each what differs between the summaries of a notebook and of its executed copy."""
    if not executed.is_file():
        yield f"{notebook.stem}: no {executed}; run make reproduce first"
        return
    stored, made = _read_summaries(notebook), _read_summaries(executed)
    if not stored:
        yield f"{notebook.stem}: no cell is tagged {CHECKED}"
    if len(stored) != len(made):
        yield f"{notebook.stem}: {len(stored)} tagged cells, but {len(made)} in the executed copy; run make reproduce"
    for number, (old, new) in enumerate(zip(stored, made, strict=False), 1):
        if old != new or not old:
            yield f"{notebook.stem}, summary {number}: stored {old or 'nothing'}, now {new or 'nothing'}"


def _read_summaries(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    checked = [cell for cell in cells if CHECKED in cell.metadata.get("tags", [])]
    return ["".join(output.get("data", {}).get("text/plain", "") for output in cell.outputs) for cell in checked]


if __name__ == "__main__":
    notebooks = sorted((repository_root() / "notebooks").glob("*.ipynb"))
    found = [
        line for path in notebooks for line in find_differences(path, results_root() / "quick" / path.stem / path.name)
    ]
    print("\n".join(found) or f"The summaries of {len(notebooks)} notebooks are those that are stored.")
    sys.exit(1 if found else 0)
