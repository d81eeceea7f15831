"""Gather what the site shows from the rest of the repository: notebooks, verdicts, commands, public names.

`conf.py` calls `gather_all` before each build. Everything is written into `docs/generated/`, which git ignores.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import nbformat
import typer
from typer.testing import CliRunner

import paperlib
from paperlib.claims.findings import FOUND, REAL_SCALES
from paperlib.cli.main import app
from paperlib.pruning.fx_ops import list_operations

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ROOT / "docs" / "generated"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPLORERS = ROOT / "build" / "site-extra"
EXPLORER_STYLE = ROOT / "paperlib" / "figures" / "templates" / "explorer.css"
"""Pages that are copied to the site as they are."""
MATHJAX = "tex-svg-full.js"
ALL_SCALES = (*REAL_SCALES, "quick")
WIDGET = "application/vnd.jupyter.widget-view+json"


PACKAGES = [
    f"paperlib.{name}"
    for name in (
        "data",
        "detectors",
        "classifiers",
        "training",
        "pruning",
        "distillation",
        "partners",
        "evaluation",
        "costs",
    )
]
"""The packages with which the page of public names begins."""


def gather_all() -> None:
    """Bring `docs/generated/` up to date; files that have not changed keep their time, so that builds stay short."""
    for folder in (GENERATED / "notebooks", EXPLORERS):
        folder.mkdir(parents=True, exist_ok=True)
    for path in NOTEBOOKS:
        gather_notebook(path)
    write_if_new(GENERATED / "notebook_table.md", list_notebooks())
    write_if_new(GENERATED / "cost_table.md", list_costs())
    write_if_new(GENERATED / "packages.md", list_packages())
    write_if_new(GENERATED / "commands.md", describe_commands())
    write_if_new(GENERATED / "public_names.md", list_public_names())
    write_if_new(GENERATED / "operations.md", write_operations(list_operations()))


EFFECTS = {
    "conv": "pruned if a norm follows, also after an activation or a pooling; otherwise only its inputs are",
    "grouped": "pruned; each group keeps equally many inputs and outputs",
    "depthwise": "pruned with what it reads; whole groups go",
    "linear": "loses inputs; outputs go if BatchNorm1d follows, or at a gate",
    "norm": "pruned; its gamma ranks the channels",
    "group_norm": "pruned; whole groups go, so that the statistics of the others stay",
    "pixel_norm": "followed",
    "slope": "pruned with what it reads",
    "activation": "followed",
    "pass_through": "followed",
    "pixel_move": "followed over pixels; over channels it holds them",
    "softmax": "followed over pixels; over channels it holds them",
    "functional_slope": "pruned with what it reads",
    "pad": "followed; a pad of channels holds them",
    "arithmetic": "operands are tied; a gate (a product) needs no batch norm of its own",
    "gated_half": "pruned; each channel goes with its gate in the second half",
    "comparison": "as arithmetic",
    "selection": "operands are tied",
    "spread": "followed over pixels; over channels it holds them",
    "reduction": "followed over pixels; over channels it holds them",
    "permutation": "followed",
    "view": "followed where it names channels by `x.shape[1]` or -1; a number in their place holds them",
    "flatten": "followed",
    "squeeze": "followed",
    "unsqueeze": "followed",
    "expansion": "followed over pixels",
    "item": "slices of pixels are followed; slices of channels hold what their numbers count (see below)",
    "narrow": "as a slice",
    "parts": "parts keep equally many channels; sizes may be read from an attribute (see below)",
    "split": "pruned; its sizes change",
    "concatenation": "followed; along another axis than that of channels, operands are tied",
    "stack": "operands are tied",
    "unbind": "followed over pixels, and over the tensors of a stack",
    "rearrangement": "followed; channels that become pixels go together",
    "bypass": "followed",
    "size": "followed",
    "opaque": "has no channels",
}
"""What happens to the channels at each kind of operation."""


def write_operations(operations: dict[str, list[str]]) -> str:
    """Return the table of the operations that pruning follows."""
    rows = [f"| {EFFECTS[kind]} | {', '.join(names)} |" for kind, names in operations.items()]
    return "\n".join(["| what happens to channels | operations |", "| --- | --- |", *rows, ""])


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
    for scale in REAL_SCALES:
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
    if any("injected-parameters" in cell.metadata.get("tags", []) for cell in ran.cells):
        # The values of the profile follow those of the quick scale, which did not count in this run.
        for cell in ran.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.metadata.tags.append("hide-input")
    insert_finding(ran, today)
    for cell in ran.cells:
        if cell.cell_type == "markdown":
            cell.source = adapt_links(cell.source)
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
    # The numbers of that run in the look of today, which is as narrow as a phone.
    rules = [line for line in EXPLORER_STYLE.read_text(encoding="utf-8").splitlines() if "{{" not in line]
    drawn = page.read_text(encoding="utf-8").replace("</style>", "\n".join([*rules, "</style>"]), 1)
    write_if_new(EXPLORERS / "explorer_page.html", drawn)
    frame = '<iframe class="explorer" src="../../explorer_page.html" title="Explorer of the pruning ratio"></iframe>'
    return nbformat.v4.new_output("display_data", {"text/html": frame})


def insert_finding(ran: nbformat.NotebookNode, today: nbformat.NotebookNode) -> None:
    """Put today's "What we found" into a run that was made before it."""
    found = [cell for cell in today.cells if FOUND in cell.metadata.get("tags", [])]
    if found and FOUND not in {tag for cell in ran.cells for tag in cell.metadata.get("tags", [])}:
        places = [i for i, cell in enumerate(ran.cells) if cell.source.startswith("## Summary")]
        ran.cells[places[0] : places[0]] = found


def list_notebooks() -> str:
    """Return the table of notebooks: section, question, and the scale at which the site shows each."""
    rows = ["| notebook | section | question | shown at |", "| --- | --- | --- | --- |"]
    for path in NOTEBOOKS:
        title, section = nbformat.read(path, as_version=4).cells[0].source.splitlines()[:2]
        where = re.match(r"\*\*(?:Section )?(.*?)\.?\*\*", section)
        link = f"[{path.stem}](/generated/notebooks/{path.name})"
        rows.append(
            f"| {link} | {where[1] if where else ''} | {title.removeprefix('# ')} | {find_best_run(path.stem)[0]} |"
        )
    return "\n".join(rows) + "\n"


def list_costs() -> str:
    """Return what each profile costs, from its second line."""
    rows = ["| notebook | quick | laptop | paper |", "| --- | --- | --- | --- |"]
    for path in NOTEBOOKS:
        cells = [
            read_cost(ROOT / "notebooks" / "profiles" / scale / f"{path.stem}.yaml") for scale in reversed(ALL_SCALES)
        ]
        rows.append(f"| `{path.stem}` | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def read_cost(profile: Path) -> str:
    """Return the cost that a profile states; a dash if there is none."""
    if not profile.is_file():
        return "–"
    return profile.read_text(encoding="utf-8").splitlines()[1].removeprefix("# Cost: about ")


def list_packages() -> str:
    """Return the packages of `paperlib` in the order of their layers, each with the first line of its docstring."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    [layers] = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    rows = ["| layer | package | content |", "| --- | --- | --- |"]
    for number, layer in enumerate(layers):
        for name in re.findall(r"\w+", layer):
            place = ROOT / "paperlib" / name
            source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            words = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
            rows.append(f"| {len(layers) - number} | `{name}` | {' '.join(words.split())} |")
    return "\n".join(rows) + "\n"


def describe_commands() -> str:
    """Return the help of every command, as `--help` prints it."""
    group = typer.main.get_command(app)
    parts = []
    for name in walk_commands(group, "paperlib"):
        asked = CliRunner().invoke(app, [*name.split()[1:], "--help"], prog_name="paperlib", env={"COLUMNS": "92"})
        parts.append(f"## {name}\n\n```text\n{asked.stdout.strip()}\n```\n")
    return "\n".join(parts)


def walk_commands(group: Any, name: str) -> Iterator[str]:
    """Yield the full name of every command, without groups."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk_commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}"


def list_public_names() -> str:
    """Return the directives that document every name of `paperlib.__all__`, by package."""
    groups: dict[str, list[str]] = {}
    for name in paperlib.__all__:
        thing = getattr(paperlib, name)
        kind = "autoclass" if isinstance(thing, type) else "autofunction"
        package = ".".join(thing.__module__.split(".")[:2])
        inherited = f"\n   :inherited-members: {_name_foreign_bases(thing)}" if isinstance(thing, type) else ""
        directive = f".. {kind}:: {thing.__module__}.{name}{inherited}"
        groups.setdefault(package, []).append(f"```{{eval-rst}}\n{directive}\n```\n")
    order = sorted(groups, key=lambda package: PACKAGES.index(package) if package in PACKAGES else len(PACKAGES))
    return "\n".join(f"## {package}\n\n" + "\n".join(groups[package]) for package in order)


def _name_foreign_bases(kind: type) -> str:
    """Return the base classes that are not of paperlib, whose members are not repeated."""
    return ", ".join(base.__name__ for base in kind.__mro__ if base.__module__.split(".")[0] != "paperlib")


def adapt_links(text: str) -> str:
    """Return a notebook's text with links that lead somewhere on the site; other files are only named."""
    text = re.sub(r"\]\(\.\./results/\w+/claims\.md\)", "](/reference/scoreboard.md)", text)
    return re.sub(r"\[([^]]+)\]\((?:\.\./)?(results/[\w/]+|\w[\w/]*\.\w+)\)", r"\1 (`\2`)", text)


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
