"""Copy the outputs of `results/quick` into the committed notebooks: `make refresh`.

It leaves out what papermill added (its cell, its metadata) and outputs that differ between runs (progress, times,
widgets), so that the diff of a notebook shows only its numbers.
"""

import sys
from pathlib import Path

import nbformat

from paperlib.paths import repository_root, results_root
from paperlib.store.results import INSERTED

WIDGET = "application/vnd.jupyter.widget-view+json"


def refresh_notebook(notebook: Path, executed: Path) -> None:
    """Rewrite `notebook` with the outputs of `executed`, which must have been made from it."""
    source = nbformat.read(notebook, as_version=4)
    ran = nbformat.read(executed, as_version=4)
    targets, cells = _made_cells(source), _made_cells(ran)
    if [cell.source for cell in cells] != [cell.source for cell in targets]:
        sys.exit(f"{executed} was made from another {notebook.name}; run make reproduce first")
    count = 0
    for cell, done in zip(targets, cells, strict=True):
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = [_scrubbed(out, count) for out in done.outputs if not _is_transient(out)]
    source.metadata.pop("papermill", None)
    nbformat.write(source, notebook)


def _made_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the cells that were written by people."""
    return [cell for cell in notebook.cells if INSERTED.isdisjoint(cell.metadata.get("tags", []))]


def _is_transient(output: nbformat.NotebookNode) -> bool:
    return output.get("name") == "stderr" or WIDGET in output.get("data", {})


def _scrubbed(output: nbformat.NotebookNode, count: int) -> nbformat.NotebookNode:
    if "execution_count" in output:
        output.execution_count = count
    if output.output_type == "stream":
        output.pop("metadata", None)
    else:
        output.update(metadata={})
    return output


if __name__ == "__main__":
    for path in sorted((repository_root() / "notebooks").glob("*.ipynb")):
        refresh_notebook(path, results_root() / "quick" / path.stem / path.name)
