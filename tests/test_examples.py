"""Every example runs as a user would run it, in an empty folder, and writes the files that it names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
WRITTEN = {
    "prune_torchvision": ["small.safetensors"],
    "compress_own_data": ["student.safetensors"],
    "deploy_int8": ["detector.onnx", "detector.int8.onnx"],
    "extend_and_fuse": [],
    "custom_criterion": [],
    "log_epochs": ["epochs.csv"],
    "own_detector": ["own.safetensors"],
}
SAID = {
    "prune_torchvision": r"equal after loading: True",
    "compress_own_data": r"student",
    "deploy_int8": r"PyTorch: \d\.\de-0[4-9]",
    "extend_and_fuse": r"fused network: \d\.\de-0[4-9]",
    "custom_criterion": r"kept by both: [1-9]",
    "log_epochs": r"epoch 3 of 3: loss \d",
    "own_detector": r"channels kept, mAP50 \d",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store that the examples share, so that the scenes are drawn once."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs_and_says_what_it_promises(path, store, tmp_path):
    environment = {**os.environ, "PAPERLIB_STORE": str(store), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert re.search(SAID[path.stem], ended.stdout), ended.stdout
    assert not [name for name in WRITTEN[path.stem] if not (tmp_path / name).stat().st_size]


def test_the_page_of_the_examples_lists_each():
    listed = re.findall(r"^\| `(\w+)\.py`", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(WRITTEN)
