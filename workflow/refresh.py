"""Copy the outputs of `results/quick` into the committed notebooks: `make refresh`.

It leaves out what papermill added (its cell, its metadata) and outputs that differ between runs (progress, times), so
that the diff of a notebook shows only its numbers. A still picture replaces the explorer, a widget of JupyterLab.
"""

import base64
import re
import sys
from pathlib import Path

import nbformat
import pyvips

from paperlib.paths import repository_root, results_root
from paperlib.store.results import INSERTED

EXPLORER = "figure_explorer.html"
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
            outputs = [_to_still(out, executed.with_name(EXPLORER)) for out in done.outputs]
            cell.outputs = [_scrubbed(out, count) for out in outputs if not _is_transient(out)]
    source.metadata.pop("papermill", None)
    nbformat.write(source, notebook)


def _made_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the cells that were written by people."""
    return [cell for cell in notebook.cells if INSERTED.isdisjoint(cell.metadata.get("tags", []))]


def _to_still(output: nbformat.NotebookNode, page: Path) -> nbformat.NotebookNode:
    """Return a picture of the page instead of the widget that shows the same; other outputs as they are."""
    if WIDGET not in output.get("data", {}) or not page.is_file():
        return output
    png = base64.b64encode(draw_still(page.read_text(encoding="utf-8"))).decode()
    return nbformat.v4.new_output("display_data", {"image/png": png, "text/plain": "(the explorer at 50 %)"})


def draw_still(page: str) -> bytes:
    """Return the drawing of an explorer's page, at the first position of its slider, as PNG."""
    drawing, style = (re.search(pattern, page, re.DOTALL) for pattern in (r"<svg(.*?</svg>)", r"<style>.*?</style>"))
    if drawing is None or style is None:
        raise ValueError(f"{EXPLORER} holds no drawing")
    frame = '<svg xmlns="http://www.w3.org/2000/svg" class="explorer" font-family="sans-serif" font-size="9.5"'
    picture = f"{frame}{drawing[1].replace('>', '>' + style[0], 1)}"
    return pyvips.Image.svgload_buffer(picture.encode(), dpi=144).flatten(background=255).pngsave_buffer()


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
