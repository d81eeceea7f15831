"""Export: the file computes what the detector does, or there is no file."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn

from paperlib.export import TOLERANCE, export_onnx
from paperlib.pruning import apply_plan, plan_pruning

SIDE = 64


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "detector.onnx"


@pytest.mark.parametrize("ratio", [0.0, 0.6])
def test_boxes_and_scores_are_pytorchs_for_any_number_of_images(tiny_detector, path, ratio):
    whole = tiny_detector().to(memory_format=torch.channels_last).train()
    detector = apply_plan(whole, plan_pruning(whole, ratio)) if ratio else whole
    assert export_onnx(detector, path, (64, 96)) <= TOLERANCE
    assert detector.training
    detector.eval()
    for count in (1, 4):
        images = torch.rand(count, 3, 64, 96, generator=torch.Generator().manual_seed(7))
        with torch.inference_mode():
            expected = detector.decode(detector.head_outputs(images), (64, 96))
        for found, wanted in zip(run(path, images), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
