"""The pages of the site that are gathered from the repository. `make site` builds it, with warnings as errors."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import paperlib
from paperlib.claims.findings import FOUND

ROOT = Path(__file__).resolve().parent.parent


def load(name, folder):
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gather():
    return load("gather", "docs")


def test_a_notebooks_page_shows_the_run_on_real_data_with_the_texts_and_the_finding_of_today(
    gather, tmp_path, monkeypatch
):
    monkeypatch.setattr(gather, "GENERATED", tmp_path)
    monkeypatch.setattr(gather, "EXPLORERS", tmp_path)
    notebook = ROOT / "notebooks" / "02_pruning_ratio.ipynb"
    gather.gather_notebook(notebook)
    page = nbformat.read(tmp_path / "notebooks" / notebook.name, as_version=4)
    ran = nbformat.read(ROOT / "results" / "laptop" / notebook.stem / notebook.name, as_version=4)
    codes = [[cell.source for cell in each.cells if cell.cell_type == "code"] for each in (page, ran)]
    assert codes[0] == codes[1]
    [found] = [cell for cell in page.cells if FOUND in cell.metadata.get("tags", [])]
    assert "](/reference/scoreboard.md)" in found.source and "](../" not in found.source
    assert "hide-input" in page.cells[1].metadata.tags
    [frame] = [out for cell in page.cells for out in cell.get("outputs", []) if "iframe" in str(out)]
    assert 'src="../../explorer_page.html"' in frame.data["text/html"] and (tmp_path / "explorer_page.html").is_file()


def test_the_generated_pages_name_every_package_command_and_public_name(gather):
    packages, commands, names = gather.list_packages(), gather.describe_commands(), gather.list_public_names()
    folders = [path.parent.name for path in (ROOT / "paperlib").glob("*/__init__.py")]
    assert all(f"| `{folder}` |" in packages for folder in folders)
    assert all(f"## paperlib {name}\n" in commands for name in ("reproduce", "compress", "data check", "store why"))
    assert "Usage: paperlib compress" in commands
    assert all(f".{name}\n" in names for name in paperlib.__all__)
    assert "| pruned; its gamma ranks the channels | BatchNorm1d" in gather.write_operations(gather.list_operations())


BAD = {
    "console": "<script>console.error('broken')</script>",
    "log": "<script src='missing.js'></script>",
    "another host": "<img src='http://192.0.2.1/x.png'>",
    "wider": "<div style='width: 3000px'>wide</div>",
    "formulas": "<div class='math'>x</div>",
}


@pytest.mark.slow
def test_the_check_of_the_site_finds_every_kind_of_fault_and_passes_a_sound_page(tmp_path):
    programs = load("check_site", "docs").PROGRAMS
    if not any(map(shutil.which, programs)):
        pytest.skip("neither Chromium nor Chrome is installed")
    page = "<!doctype html><meta name=viewport content='width=device-width'><link rel=icon href='data:,'>{}"
    (tmp_path / "sound.html").write_text(page.format("<p>sound"))
    for name, fault in BAD.items():
        (tmp_path / f"{name}.html").write_text(page.format(fault))
    command = [sys.executable, str(ROOT / "docs" / "check_site.py"), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    lines = ran.stdout.splitlines()
    for name in BAD:
        assert any(line.startswith(f"{name}.html") and name in line.partition(": ")[2] for line in lines), lines
    assert not any(line.startswith("sound") for line in lines)


def test_a_committed_notebook_shows_a_still_picture_of_the_explorer():
    page = (ROOT / "results" / "laptop" / "02_pruning_ratio" / "figure_explorer.html").read_text()
    assert load("refresh", "workflow").draw_still(page).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="holds no drawing"):
        load("refresh", "workflow").draw_still(json.dumps({}))
