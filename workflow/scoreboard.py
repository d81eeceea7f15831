"""Write the committed results and their verdicts into README, site and notebooks: `make scoreboard`."""

from pathlib import Path

import nbformat

from paperlib.claims.findings import FOUND, render_finding
from paperlib.claims.readme import refresh_readme
from paperlib.paths import repository_root


def insert_finding(path: Path) -> None:
    """Write the block "What we found" into a notebook, above its summary."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if FOUND not in cell.metadata.get("tags", [])]
    [place] = [index for index, cell in enumerate(cells) if cell.source.startswith("## Summary")]
    cell = nbformat.v4.new_markdown_cell(
        render_finding(path.stem), id=f"{path.stem[:2]}-found", metadata={"tags": [FOUND]}
    )
    notebook.cells = [*cells[:place], cell, *cells[place:]]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    refresh_readme(repository_root() / "README.md")
    for path in sorted((repository_root() / "notebooks").glob("*.ipynb")):
        insert_finding(path)
