"""The shipped notebooks: their form, and that their regression tests can fail."""

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import nbformat
import pytest
import yaml

from paperlib.claims import findings
from paperlib.claims.findings import FOUND, render_finding
from paperlib.experiments.cells import PARAMETERS
from paperlib.experiments.parameters import NOTEBOOKS

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
SHIPPED = sorted(FOLDER.glob("*.ipynb"))
CHECKED = "nbval-check-output"
ABSOLUTE = re.compile(r"(?<![\w.:/~])/(?:home|root|tmp|work|Users|usr|opt|var|mnt)/|[A-Z]:\\\\")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook, tag=None):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if tag is None or tag in cell.metadata.get("tags", [])]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


@pytest.fixture(params=SHIPPED, ids=lambda path: path.stem)
def notebook(request):
    return read(request.param)


@pytest.fixture(params=SHIPPED, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_every_notebook_has_settings_and_every_settings_class_a_notebook():
    assert [path.stem for path in SHIPPED] == sorted(NOTEBOOKS)


def test_a_notebook_is_short_and_defines_nothing(notebook):
    cells = code_cells(notebook)
    assert len(cells) <= 15
    assert max(len(cell.source.splitlines()) for cell in cells) <= 10
    trees = [ast.parse(cell.source) for cell in cells]
    defined = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert not defined


def test_a_notebook_begins_with_the_section_or_the_system_that_it_is_about(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    title, section, *_ = first.source.splitlines()
    assert title.startswith("# ")
    assert re.match(r"\*\*(Section|Related system) \d", section)


def test_a_notebook_is_committed_as_it_ran_from_top_to_bottom(notebook):
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]


def test_a_notebook_names_no_folder_of_the_machine_it_ran_on(notebook):
    texts = [nbformat.writes(nbformat.v4.new_notebook(cells=[cell])) for cell in notebook.cells]
    assert not [found.group() for text in texts for found in ABSOLUTE.finditer(text)]


def test_a_notebook_checks_the_one_cell_that_ends_it(notebook):
    [checked] = code_cells(notebook, CHECKED)
    assert checked is code_cells(notebook)[-1]
    assert "study.finish(" in checked.source
    [output] = checked.outputs
    assert list(output.data) == ["text/plain"] and re.search(r"\d|True", output.data["text/plain"])
    assert not re.search(r"\d\.\d{4}", str(output.data)), "more digits than all machines agree on"


@pytest.fixture(scope="module")
def judged_once():
    """Evaluate the claims of each scale once for all notebooks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "evaluate_claims", cache(findings.evaluate_claims))
        yield


@pytest.mark.usefixtures("judged_once")
def test_a_notebook_concludes_with_what_the_best_committed_results_show(path):
    notebook = read(path)
    [found] = [index for index, cell in enumerate(notebook.cells) if FOUND in cell.metadata.get("tags", [])]
    assert notebook.cells[found].source == render_finding(path.stem), "bring it up to date: make scoreboard"
    assert notebook.cells[found + 1].source.startswith("## Summary")
    assert not any(cell.source.startswith("## What we found") for cell in notebook.cells[:found])


def test_the_parameters_cell_says_what_the_quick_profile_says(path):
    [cell] = code_cells(read(path), "parameters")
    assert cell.source.startswith(f"{PARAMETERS}\n"), "Study.begin reads these cells for misspelt names"
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    quick = yaml.safe_load((FOLDER / "profiles" / "quick" / path.name).with_suffix(".yaml").read_text())
    settings = NOTEBOOKS[path.stem]
    assert settings(**values) == settings(**quick) == settings()


# --- that the regression tests can fail -----------------------------------------------------------------
# On the shipped notebooks `make notebooks` itself tries it, with every value of every checked output, on the kernel
# that has run the notebook (notebooks/conftest.py). Here its verdicts are tested: nbval and kernel are real, the
# notebook and its four outputs stand in.

SUMMARY = "{'mb': '1.51 MB', 'learned': True, 'best': 'tiny'}"
CELLS = {
    "up to date": (SUMMARY, SUMMARY),
    "outdated": (SUMMARY, SUMMARY.replace("1.51", "1.53")),
    "never compared": (f"# NBVAL_IGNORE_OUTPUT\n{SUMMARY}", SUMMARY),
    "broken": ("1 / 0", SUMMARY),
}


def checked_cell(source, stored):
    output = nbformat.v4.new_output("execute_result", {"text/plain": stored}, execution_count=1)
    return nbformat.v4.new_code_cell(source, outputs=[output], execution_count=1, metadata={"tags": [CHECKED]})


def test_a_notebook_passes_if_nbval_takes_its_output_and_no_other(tmp_path):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [checked_cell(source, stored) for source, stored in CELLS.values()]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "four.ipynb")
    shutil.copy(FOLDER / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--nbval-lax", "four.ipynb"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
    verdicts = {name: [] for name in CELLS}
    for number, verdict in re.findall(r"::Cell (\d).* (PASSED|FAILED)", said):
        verdicts[list(CELLS)[int(number)]].append(verdict)
    assert verdicts == {
        "up to date": ["PASSED", *["PASSED"] * 3],  # as it is; with 1.51, True and tiny altered
        "outdated": ["FAILED", *["PASSED"] * 3],
        "never compared": ["PASSED", *["FAILED"] * 3],
        "broken": ["FAILED", *["PASSED"] * 3],  # compared with what the cell before it has shown
    }
