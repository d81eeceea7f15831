"""The shipped notebooks: their form, and that their regression tests can fail."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

from paperlib.parameters import NOTEBOOKS
from paperlib.study import PARAMETERS

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
SHIPPED = sorted(FOLDER.glob("*.ipynb"))
CHECKED = "nbval-check-output"
ABSOLUTE = re.compile(r"(?<![\w.:/~])/(?:home|root|tmp|work|Users|usr|opt|var|mnt)/|[A-Z]:\\\\")
TINY = {"width": 0.1, "image_size": 64, "epochs": 1, "fine_tune_epochs": 1}


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


def test_a_notebook_begins_with_the_section_of_the_paper_that_it_is_about(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    title, section, *_ = first.source.splitlines()
    assert title.startswith("# ")
    assert re.match(r"\*\*Section \d", section)


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
    assert checked.outputs, "there is nothing to compare with"
    assert not re.search(r"\d\.\d{4}", str(checked.outputs)), "more digits than all machines agree on"


def test_the_parameters_cell_says_what_the_quick_profile_says(path):
    [cell] = code_cells(read(path), "parameters")
    assert cell.source.startswith(f"{PARAMETERS}\n"), "Study.begin reads these cells for misspelt names"
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    quick = yaml.safe_load((FOLDER / "profiles" / "quick" / path.name).with_suffix(".yaml").read_text())
    settings = NOTEBOOKS[path.stem]
    assert settings(**values) == settings(**quick) == settings()


def needed_by_the_check(notebook):
    """The notebook without the cells that only draw: the checked cell and all whose names it builds on."""
    kept, wanted = [], {"study"}
    for cell in reversed(code_cells(notebook)):
        names = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name | ast.alias)]
        bound = {node.asname or node.name for node in names if isinstance(node, ast.alias)}
        bound |= {node.id for node in names if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        if bound & wanted or cell.metadata.get("tags"):
            kept.insert(0, cell)
            wanted |= {node.id for node in names if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return nbformat.v4.new_notebook(cells=kept, metadata=notebook.metadata)


def test_a_changed_number_in_a_stored_output_fails_the_regression_test(tmp_path, monkeypatch):
    for name in ("STORE", "RESULTS"):
        monkeypatch.setenv(f"PAPERLIB_{name}", str(tmp_path / name.lower()))
    short, ran = tmp_path / "short.ipynb", tmp_path / "ran.ipynb"
    nbformat.write(needed_by_the_check(read(FOLDER / "00_start_here.ipynb")), short)
    papermill.execute_notebook(short, ran, TINY, progress_bar=False, cwd=FOLDER)
    executed = read(ran)
    [checked] = code_cells(executed, CHECKED)
    truth = checked.outputs[0].data["text/plain"]
    size = re.search(r"\d+\.\d\d MB", truth).group()
    checked.outputs[0].data["text/plain"] = truth.replace(size, "9.99 MB")
    nbformat.write(executed, ran)

    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval-lax", str(ran)]
    found = subprocess.run(command, env=os.environ, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 1
    assert re.search(rf"1 failed, {len(code_cells(executed)) - 1} passed", found.stdout)
    assert "9.99 MB" in found.stdout and size in found.stdout
