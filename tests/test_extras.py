"""The core works without the packages of the extras; where one is missing, one line says which extra to install."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from paperlib.cli import reproduce
from paperlib.detectors import build_detector
from paperlib.detectors.files import save_detector
from paperlib.extras import DISTRIBUTION, MissingExtraError

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    extra: {Requirement(line).name for line in lines} - {DISTRIBUTION}
    for extra, lines in PROJECT["optional-dependencies"].items()
}
LEAVES = {"paperlib.deploy.int8", "paperlib.__main__"}
"""Modules that nothing but a function imports: one needs an extra as a whole, the other runs the command."""
BLOCKED = sorted({"IPython", "nbclient", "nbformat", "google"}.union(*EXTRAS.values()))
"""The packages of the extras, and those that they bring."""


def test_the_extras_are_those_of_the_design():
    assert set(EXTRAS) == {"runtimes", "batch", "cluster", "notebooks", "docs", "dev"}
    core = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert not core & set().union(*EXTRAS.values())


def test_code_names_the_extra_that_holds_the_package():
    named = [
        found.groups()
        for path in (ROOT / "paperlib").rglob("*.py")
        for found in re.finditer(r'load_later\("(\w+)", lambda: import_module\("(\w+)"\)\)', path.read_text())
    ]
    assert len(named) >= 4
    assert not [pair for pair in named if pair[1] not in EXTRAS[pair[0]]]


COMMANDS = [
    (["predict", "model.onnx", "picture.png"], "onnx", "runtimes"),
    (["export", "model.safetensors", "out.onnx", "--image-size", "64"], "onnxscript", "runtimes"),
    (["quantise", "model.onnx", "out.onnx", "--data", "toy-aerial"], "onnx", "runtimes"),
    (["predict", "model.safetensors", "film.mp4", "--image-size", "64"], "av", "runtimes"),
]
"""Commands that need an extra, the package that they miss first, and the extra."""
RUN = f"""
import importlib, json, os, sys
sys.modules.update(dict.fromkeys({BLOCKED}))  # a module that is None counts as not installed
modules, commands = map(json.loads, sys.argv[2:])
for name in modules:
    importlib.import_module(name)
print("all imported")
from paperlib.cli.main import app

os.chdir(sys.argv[1])
for arguments in commands:
    try:
        app(arguments)
    except SystemExit as end:
        print(end.code)
"""


def test_with_the_core_alone_every_module_imports_and_a_missing_package_is_one_line_with_status_2(tmp_path):
    names = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "paperlib").rglob("*.py")
        if path.parent.name != "templates"  # a script for the user, which is not imported
    )
    save_detector(build_detector("yolov4-tiny", num_classes=2, width=0.25), tmp_path / "model.safetensors")
    for name in ("model.onnx", "picture.png", "film.mp4"):
        (tmp_path / name).write_bytes(b"\0")
    # All in one process, because importing takes longer than everything else.
    given = [name for name in names if name not in LEAVES], [arguments for arguments, _, _ in COMMANDS]
    command = [sys.executable, "-c", RUN, str(tmp_path), *map(json.dumps, given)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stdout.splitlines() == ["all imported", *["2"] * len(COMMANDS)], ended.stderr
    # A progress bar may stand before a line, and clears itself.
    lines = [line for line in re.split(r"[\r\n]+", ended.stderr) if line.startswith("paperlib: ")]
    expected = [f"{name} is not installed: pip install '{DISTRIBUTION}[{extra}]'" for _, name, extra in COMMANDS]
    assert lines == [f"paperlib: {line}" for line in expected]
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_reproduce_without_a_batch_says_so_before_anything_starts(monkeypatch):
    def refuse(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", refuse)
    with pytest.raises(MissingExtraError, match=rf"snakemake is not installed: .*{DISTRIBUTION}\[batch\]"):
        reproduce.reproduce([], "quick")
