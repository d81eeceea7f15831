"""A detector of one's own goes through the whole face: trained, pruned, distilled, saved, exported and timed."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import paperlib as pl

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_detector.py"


def test_the_example_of_an_own_detector_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path / "store"))
    example = runpy.run_path(str(EXAMPLE))
    example["main"](tmp_path)
    assert (tmp_path / "student.onnx").is_file()
    loaded = pl.load_network(tmp_path / "student.safetensors", build=lambda: example["GridDetector"](3))
    assert loaded.body[0][0].out_channels < 16


def test_a_detector_that_distillation_cannot_read_is_told_what_it_lacks() -> None:
    images, targets = torch.zeros(1, 3, 8, 8), [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}]
    with pytest.raises(ValueError, match="Conv2d has no head_outputs, assign_targets, compute_losses, head_responses"):
        pl.Distillation(nn.Conv2d(3, 3, 1))(nn.Conv2d(3, 3, 1), images, targets)
