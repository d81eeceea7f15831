"""A wheel works alone: installed without the checkout, in an empty folder, its commands find what they read."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "paperlib", "notebooks", "workflow")
PARTS = ("data/registry.yaml", "data/splits", "results/reported")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build a wheel from a copy of the sources, and unpack it into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in (*SOURCES, *PARTS):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=ignored)
        else:
            shutil.copy(ROOT / name, target)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    alone = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *alone, "--wheel-dir", folder, folder / "source"], check=True)
    (wheel,) = folder.glob("prune_distil-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def run(site, tmp_path):
    """Return a function that runs Python with the unpacked wheel in an empty folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PAPERLIB_")}
    options = {"cwd": tmp_path, "env": {**kept, "PYTHONPATH": str(site)}, "capture_output": True, "text": True}
    return lambda *arguments: subprocess.run([sys.executable, *arguments], **options)


SEVERAL = """
import sys
from paperlib.cli.main import app
for command in sys.argv[1:]:
    try:
        app(command.split())
    except SystemExit as end:
        print("status", end.code)
"""
"""Runs commands in one process, because importing takes longer than everything else."""


def test_a_wheel_holds_every_file_that_the_package_reads(site):
    kept = subprocess.run(["git", "ls-files", *SOURCES[6:], *PARTS], cwd=ROOT, capture_output=True, text=True)
    read = {name for name in kept.stdout.split("\n") if Path(name).suffix not in {"", ".py", ".md"}}
    packed = {str(path.relative_to(site / "paperlib/assets")) for path in site.glob("paperlib/assets/**/*.*")}
    assert read and packed == read
    assert (site / "paperlib/assets/workflow/Snakefile").is_file()


def test_its_tables_are_read_and_results_go_into_the_current_folder(run, tmp_path):
    ended = run("-c", SEVERAL, "data list", "data check vhr10", "claims")
    listed, absent, judged, _ = re.split(r"^status (?=\d)", ended.stdout, flags=re.MULTILINE)
    assert "vhr10" in listed and f"data folder: {tmp_path / 'data'}" in listed, ended.stderr
    assert absent.startswith("0\n") and judged.startswith("2\n"), "the status of the command before"
    assert str(tmp_path / "data") in absent + ended.stderr
    assert "were not run at the quick scale" in judged and ended.stdout.endswith("status 0\n"), ended.stderr
    assert (tmp_path / "results" / "quick" / "claims.md").is_file()


def test_a_notebook_runs_and_writes_into_the_current_folder(run, tmp_path):
    ended = run("-m", "paperlib", "reproduce", "99_claims", "--cores", "1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "in results/quick" in ended.stdout
    assert (tmp_path / "results/quick/99_claims/provenance.json").is_file()
    again = run("-m", "paperlib", "reproduce", "99_claims")
    assert again.stdout.startswith("Nothing to do")
