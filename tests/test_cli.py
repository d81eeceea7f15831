"""The command line: one line on stderr and exit status 2 for bad input, and quick to answer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import paperlib
from paperlib.cli.main import app
from paperlib.store.provenance import package_version

ROOT = Path(paperlib.__file__).resolve().parent.parent


def paperlib_command(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAPERLIB_")}
    command = [sys.executable, "-m", "paperlib", *arguments]
    return subprocess.run(command, env=inherited | environment, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one notebook and one profile, and nothing else."""
    (tmp_path / "notebooks" / "profiles" / "quick").mkdir(parents=True)
    (tmp_path / "notebooks" / "02_pruning_ratio.ipynb").write_text("{}")
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    for name in ("RESULTS", "STORE", "DATA", "WEIGHTS"):
        monkeypatch.delenv(f"PAPERLIB_{name}", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("profile", "arguments", "complaint"),
    [
        ("epoch: 3", (), "02_pruning_ratio.yaml: unknown key 'epoch'"),
        ("epochs: '3'", (), "02_pruning_ratio.yaml: epochs: Input should be a valid integer (found '3')"),
        ("ratios: [0.5, 1.2]", (), "02_pruning_ratio.yaml: ratios.1: Input should be less than 1 (found 1.2)"),
        ("epochs: [3", (), "02_pruning_ratio.yaml, line"),
        ("profile: quick", ("02_pruning",), "no notebook 02_pruning; there are 02_pruning_ratio"),
        ("profile: quick", ("--profile", "huge"), "no profile huge; there are quick"),
    ],
)
def test_a_bad_profile_or_notebook_is_one_line_and_nothing_is_begun(project, profile, arguments, complaint):
    (project / "notebooks" / "profiles" / "quick" / "02_pruning_ratio.yaml").write_text(profile)
    before = sorted(project.rglob("*"))
    result = CliRunner().invoke(app, ["reproduce", *arguments])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("paperlib: ") and complaint in result.stderr
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nosuch"], "unknown detector 'nosuch'; known: yolov3, "),
        (["yolov4-tiny", "--width", "0"], "'--width': Input should be greater than or equal to 0.01"),
    ],
)
def test_a_detector_that_cannot_be_built_is_one_line(arguments, complaint):
    result = CliRunner().invoke(app, ["cost", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"paperlib: {result.stderr.strip().removeprefix('paperlib: ')}\n"
    assert complaint in result.stderr


def test_as_a_command_it_shows_no_traceback_unless_asked():
    plain, debug = (paperlib_command(*options, "reproduce", "04_nowhere") for options in ((), ("--debug",)))
    assert (plain.returncode, plain.stdout, plain.stderr.count("\n")) == (2, "", 1)
    assert debug.returncode == 1 and "Traceback" in debug.stderr


def test_the_cost_of_a_detector_is_the_papers():
    result = CliRunner().invoke(app, ["cost", "yolov4-tiny", "--num-classes", "80"])
    assert result.exit_code == 0
    assert "size        24.3 MB" in result.stdout
    result = CliRunner().invoke(app, ["cost", "yolov4-tiny"])
    assert "compute     12.57 GMACs" in result.stdout


def test_the_cost_of_resnet50_is_the_one_that_everybody_knows():
    result = CliRunner().invoke(app, ["cost", "resnet50", "--num-classes", "1000", "--image-size", "224"])
    assert "parameters  25,557,032" in result.stdout
    assert "compute     4.09 GMACs" in result.stdout


@pytest.mark.skipif(package_version("paperlib") == "absent", reason="run from a folder, not installed")
def test_it_says_its_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout == f"paperlib {package_version('paperlib')}\n"


HEAVY = "{'torch', 'torchvision', 'matplotlib', 'pandas', 'pydantic', 'snakemake'}"


@pytest.mark.parametrize(
    "script", ["import paperlib; dir(paperlib)", "from paperlib.cli.main import app; app(['--help'])"]
)
def test_importing_the_package_and_asking_for_help_load_nothing_heavy(script):
    check = f"import atexit, sys; atexit.register(lambda: print('loaded', sorted({HEAVY} & set(sys.modules))))\n"
    done = subprocess.run([sys.executable, "-c", check + script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_the_public_face_is_all_there():
    for name in paperlib.__all__:
        assert getattr(paperlib, name).__name__ == name
    assert set(paperlib.__all__) <= set(dir(paperlib))
    with pytest.raises(AttributeError, match="module 'paperlib' has no attribute 'nosuch'"):
        paperlib.nosuch  # noqa: B018
