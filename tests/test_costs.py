"""Size and compute: the paper's numbers, and their definition counted by hand."""

import pytest
import torch
from torch import nn

from paperlib.costs import cost
from paperlib.detectors import build_detector

DARKNET_HEADER_BYTES = 20


@pytest.mark.parametrize(
    ("name", "classes", "size_mb", "gmacs"),
    [
        ("yolov3", 10, 246.5, 120.85),
        ("yolov4", 80, 257.7, 111.14),
        ("yolov4", 10, 256.2, None),
        ("yolov4", 15, 256.3, None),
        ("yolov4-tiny", 80, 24.3, None),
        ("yolov4-tiny", 10, 23.6, 12.57),
    ],
)
def test_size_and_compute_are_those_of_the_paper(name, classes, size_mb, gmacs):
    with torch.device("meta"):
        found = cost(build_detector(name, classes))
    assert found.size_mb == pytest.approx(size_mb, abs=0.05)
    assert gmacs is None or found.gmacs == pytest.approx(gmacs, rel=1e-3)


@pytest.mark.parametrize(("name", "size"), [("yolov3", 248_007_048), ("yolov4", 257_717_640)])
def test_the_size_is_that_of_the_published_weights_file(name, size):
    with torch.device("meta"):
        found = cost(build_detector(name, 80))
    assert round(found.size_mb * 1e6) + DARKNET_HEADER_BYTES == size


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
