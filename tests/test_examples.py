"""Every example runs in an empty folder, says what it promises, and writes the files that it names."""

import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TESTED_APART = {"own_detector"}
"""In test_own_detector.py, because it promises more."""
WRITTEN = {
    "prune_torchvision": ["small.safetensors"],
    "compress_own_data": ["student.safetensors"],
    "deploy_int8": ["detector.onnx", "detector.int8.onnx"],
    "extend_and_fuse": [],
    "custom_criterion": [],
    "log_epochs": ["epochs.csv"],
    "verdict": [],
}
SAID = {
    "prune_torchvision": r"equal after loading: True",
    "compress_own_data": r"student",
    "deploy_int8": r"PyTorch: \d\.\de-0[4-9]",
    "extend_and_fuse": r"fused network: \d\.\de-0[4-9]",
    "custom_criterion": r"kept by both: [1-9]",
    "verdict": r"takd-gain: -?\d+\.\d\d ± \d+\.\d\d points",
    "log_epochs": r"epoch 3 of 3: loss \d",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store that the examples share, so that the scenes are drawn once."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_an_example_runs_and_says_what_it_promises(name, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAPERLIB_STORE", str(store))
    # In this process, because importing takes longer than most of them.
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert re.search(SAID[name], said), said
    assert not [file for file in WRITTEN[name] if not (tmp_path / file).stat().st_size]


def test_the_page_of_the_examples_lists_each():
    listed = re.findall(r"^\| `(\w+)\.py`", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted({*WRITTEN, *TESTED_APART})
    assert sorted(listed) == sorted(path.stem for path in EXAMPLES.glob("*.py"))
