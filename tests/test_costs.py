"""Size and compute: the paper's numbers, and their definition counted by hand."""

import pytest
from torch import nn

from paperlib.costs import cost
from paperlib.detectors import build_detector

DARKNET_HEADER_BYTES = 20


def test_size_and_compute_are_those_of_the_paper():
    assert cost(build_detector("yolov4-tiny", 80)).size_mb == pytest.approx(24.3, abs=0.05)
    ten = cost(build_detector("yolov4-tiny", 10))
    assert ten.size_mb == pytest.approx(23.6, abs=0.05)
    assert ten.gmacs == pytest.approx(12.57, rel=1e-3)


def test_the_size_is_that_of_the_official_weights_file(coco_weights):
    size = cost(build_detector("yolov4-tiny", 80)).size_mb * 1e6
    assert round(size) + DARKNET_HEADER_BYTES == coco_weights.stat().st_size


def test_multiply_accumulates_follow_their_definition():
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 8·3·9 per each of 4×4 outputs
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # 8·9 per each of 4×4 outputs
        nn.ConvTranspose2d(8, 2, 2, stride=2),  # 8·2·4 per each of 4×4 inputs
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(2 * 8 * 8, 5),
    )
    found = cost(layers, image_size=8)
    assert found.gmacs * 1e9 == pytest.approx(16 * (216 + 72 + 64) + 640)
    assert found.parameters == 216 + (72 + 8) + (64 + 2) + 4 + (640 + 5)
    assert found.size_mb * 1e6 == pytest.approx(4 * (found.parameters + 4))
    assert all(p.device.type == "cpu" for p in layers.parameters()) and not layers[0]._forward_hooks
