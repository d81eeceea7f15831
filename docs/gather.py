"""Gather what the site shows from the rest of the repository: notebooks, verdicts, commands, public names.

`conf.py` calls `gather_all` before each build. Everything is written into `docs/generated/`, which git ignores.
"""

from __future__ import annotations

import re
import shutil
from importlib.metadata import Distribution
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ROOT / "docs" / "generated"
EXPLORERS = ROOT / "build" / "site-extra"
"""Pages that are copied to the site as they are."""
MATHJAX = "tex-svg-full.js"
SCALES = ("paper", "laptop")
"""The scales whose executed notebooks may be committed, best first."""
WIDGET = "application/vnd.jupyter.widget-view+json"
FOUND = "what-we-found"
"""The tag of the generated cell of each notebook."""


def gather_all() -> None:
    """Bring `docs/generated/` up to date; files that have not changed keep their time, so that builds stay short."""
    for folder in (GENERATED / "notebooks", EXPLORERS):
        folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        gather_notebook(path)


def find_mathjax(package: Distribution) -> Path:
    """Return the file of MathJax in an installed package.

    Raises:
        FileNotFoundError: the package holds no such file.
    """
    for file in package.files or []:
        if file.name == MATHJAX:
            return Path(str(package.locate_file(file)))
    raise FileNotFoundError(f"{package.metadata['Name']} holds no {MATHJAX}")


def find_best_run(name: str) -> tuple[str, Path]:
    """Return the best scale at which a notebook's results are committed, and the executed notebook."""
    for scale in SCALES:
        executed = ROOT / "results" / scale / name / f"{name}.ipynb"
        if executed.is_file():
            return scale, executed
    return "quick", ROOT / "notebooks" / f"{name}.ipynb"


def gather_notebook(path: Path) -> None:
    """Write the page of a notebook: the cells of its best run, with the texts of today."""
    scale, executed = find_best_run(path.stem)
    today, ran = nbformat.read(path, as_version=4), nbformat.read(executed, as_version=4)
    texts = {cell.id: cell.source for cell in today.cells if cell.cell_type == "markdown"}
    for cell in ran.cells:
        if cell.cell_type == "markdown":
            cell.source = texts.get(cell.id, cell.source)
        else:
            hide_plumbing(cell)
            cell.outputs = [embed_explorer(output, path.stem, scale) for output in cell.outputs]
    insert_finding(ran, today)
    ran.cells[0].source += f"\n\n{describe_run(path.stem, scale)}"
    ran.metadata.pop("widgets", None)
    write_if_new(GENERATED / "notebooks" / path.name, nbformat.writes(ran))


def hide_plumbing(cell: nbformat.NotebookNode) -> None:
    """Tag the cells that only import, repeat parameters or check, so that the page shows them folded."""
    tags = cell.metadata.setdefault("tags", [])
    imports = all(re.match(r"(import|from)\b|\s*$", line) for line in cell.source.splitlines())
    if imports or "nbval-check-output" in tags:
        tags.append("hide-input")


def embed_explorer(output: nbformat.NotebookNode, name: str, scale: str) -> nbformat.NotebookNode:
    """Return an output in which the page of the explorer replaces a widget, which works in JupyterLab only."""
    if WIDGET not in output.get("data", {}):
        return output
    page = ROOT / "results" / scale / name / "figure_explorer.html"
    if not page.is_file():
        return nbformat.v4.new_output("display_data", {"text/plain": "(a widget of JupyterLab)"})
    shutil.copyfile(page, EXPLORERS / "explorer_page.html")
    frame = '<iframe class="explorer" src="../../explorer_page.html" title="Explorer of the pruning ratio"></iframe>'
    return nbformat.v4.new_output("display_data", {"text/html": frame})


def insert_finding(ran: nbformat.NotebookNode, today: nbformat.NotebookNode) -> None:
    """Put today's "What we found" into a run that was made before it."""
    found = [cell for cell in today.cells if FOUND in cell.metadata.get("tags", [])]
    if found and FOUND not in {tag for cell in ran.cells for tag in cell.metadata.get("tags", [])}:
        places = [i for i, cell in enumerate(ran.cells) if cell.source.startswith("## Summary")]
        ran.cells[places[0] : places[0]] = found


def describe_run(name: str, scale: str) -> str:
    """Return what a page says of the run that it shows."""
    if scale == "quick":
        return f"*Shown as it ran at the `quick` scale (`paperlib reproduce {name}`).*"
    return f"*Shown as it ran on real data: `paperlib reproduce {name} --profile {scale}`.*"


def write_if_new(path: Path, text: str) -> None:
    """Write a text, unless the file already holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
