"""The criteria of pruning do what their definitions say; those that look at data leave nothing behind."""

import copy
from decimal import Decimal

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import chain
from torch import Tensor, nn

from paperlib.pruning import absolute_gammas, plan_pruning, score_channels, trace_channels


class Toy(nn.Module):
    """Two convolutions and a squared error, with a gate on each channel of the first."""

    traced_method = "predict"

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.out = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
        nn.init.uniform_(self.bn.weight, -1, 1)
        nn.init.normal_(self.bn.bias)

    def predict(self, x: Tensor) -> Tensor:
        return self.out(self.bn(self.conv(x)).relu())

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.out((self.bn(self.conv(x)) * gate.view(-1, 1, 1)).relu())

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        error = self.predict(images) - targets
        return {"square": error.square().mean(), "size": 0.1 * error.abs().mean()}


def toy() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    return Toy().double(), [(torch.randn(4, 3, 6, 6).double(), torch.randn(4, 2, 6, 6).double()) for _ in range(3)]


def test_taylor_is_the_slope_of_the_loss_along_a_gate_on_each_channel() -> None:
    net, batches = toy()
    expected = torch.zeros(6, dtype=torch.float64)
    for images, targets in batches:
        gate = torch.ones(6, dtype=torch.float64, requires_grad=True)
        error = copy.deepcopy(net).train().gated(images, gate) - targets
        (error.square().mean() + 0.1 * error.abs().mean()).backward()
        expected += gate.grad.abs()
    found = score_channels("taylor", net, trace_channels(net).prunable, iter(batches))
    np.testing.assert_allclose(found["conv"], expected.numpy(), rtol=1e-10)
    order = expected.argsort()
    plan = plan_pruning(net, 0.5, importance="taylor", calibration=batches, image_size=8)
    assert plan.kept["conv"] == sorted(order[3:].tolist())
    assert plan.importance == "taylor"


def test_l1_norms_ranked_by_layer_cut_every_layer_by_the_same_share_and_its_smallest_filters() -> None:
    detector = tiny.detector(width=0.25)
    whole = {
        name: detector.get_submodule(name).weight.detach().abs().sum((1, 2, 3)) for name in absolute_gammas(detector)
    }
    plan = plan_pruning(detector, 0.5, importance="l1-layerwise", min_keep_ratio=0.0)
    for name, kept in plan.kept.items():
        norms = whole[name]
        assert len(kept) == len(norms) / 2
        assert set(kept) == set(norms.topk(len(kept)).indices.tolist())


@pytest.mark.parametrize("importance", ["l1-layerwise", "l2-layerwise", "fpgm"])
@given(ratio=st.integers(0, 99).map(lambda percent: percent / 100))
@settings(max_examples=15)
def test_ranked_by_layer_a_ratio_takes_its_floor_of_every_layer(importance: str, ratio: float) -> None:
    plan = plan_pruning(chain((100, 7, 12)), ratio, importance=importance, min_keep_ratio=0)
    lost = [layer.total - len(plan.kept[name]) for name, layer in plan.layers.items()]
    assert lost == [int(Decimal(repr(ratio)) * count) for count in (100, 7, 12)]


def test_the_public_codes_norm_is_that_of_the_kernel_alone() -> None:
    net = chain((4,))
    rows = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 6.0], [1.0, 1.0, 1.0], [4.0, 4.0, 0.0]])  # L2: 5, 6, 1.7, 5.7
    net.get_parameter("0.weight").data = rows.view(4, 3, 1, 1)
    assert plan_pruning(net, 0.5, importance="l2-layerwise").kept["0"] == [1, 3]
    assert plan_pruning(net, 0.5, importance="l1-layerwise").kept["0"] == [0, 3]


def test_fpgm_prunes_the_filters_nearest_to_all_others_however_large_they_are() -> None:
    net = chain((5,))
    net.get_parameter("0.weight").data = torch.zeros(5, 3, 1, 1)
    # On a line at these places, the distances to all others sum to 33, 30, 29, 37 and 67.
    net.get_parameter("0.weight").data[:, 1, 0, 0] = torch.tensor([10.0, 11, 12, 20, 30])
    assert score_channels("fpgm", net, {"0": "1"})["0"].tolist() == [0.6, 0.4, 0.2, 0.8, 1.0]
    assert plan_pruning(net, 0.5, importance="fpgm").kept["0"] == [0, 3, 4]


def test_hrank_is_the_mean_matrix_rank_of_what_a_channel_emits() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    net.get_parameter("0.weight").data = torch.eye(4, dtype=torch.float64).view(4, 4, 1, 1)
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(3, 4, 6, 6, dtype=torch.float64)
    # Each channel of an image is a sum of so many outer products of positive vectors, and so of that rank.
    ranks = [[2, 5, 1, 3], [3, 4, 2, 2], [3, 6, 1, 1]]
    for image, each in zip(images, ranks, strict=True):
        for channel, rank in zip(image, each, strict=True):
            sides = torch.rand(2, 6, rank, dtype=torch.float64, generator=generator)
            channel.copy_(sides[0] @ sides[1].T)
    batches = [(images[:2], None), (images[2:], None)]
    scores = score_channels("hrank", net, {"0": "1"}, batches)["0"]
    assert scores.tolist() == [0.75, 1.0, 0.25, 0.5]
    # What the rectifier blocks has rank 0.
    net.get_parameter("1.weight").data[1] = -1
    assert score_channels("hrank", net, {"0": "1"}, batches)["0"].tolist() == [1.0, 0.25, 0.5, 0.75]


def test_calibration_leaves_statistics_gradients_and_modes_as_they_are() -> None:
    detector = tiny.detector().eval().requires_grad_(False)
    before = copy.deepcopy(detector.state_dict())
    data = tiny.dataset(count=2)
    images = [data[index][0].float() / 255 for index in range(2)]
    with torch.no_grad():
        plan = plan_pruning(
            detector, 0.4, importance="taylor", calibration=[(images, [data[0][1], data[1][1]])], image_size=tiny.SIDE
        )
    assert plan.channels_kept < plan.channels_total
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert not detector.training
    assert not any(p.requires_grad or p.grad is not None for p in detector.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "taylor"}, "importance 'taylor' needs calibration: batches of .images, targets."),
        ({"importance": "taylor", "calibration": []}, "calibration holds no batch"),
        ({"importance": "hrank"}, "importance 'hrank' needs calibration"),
        ({"importance": "hrank", "calibration": []}, "calibration holds no batch"),
        ({"importance": "gamma", "calibration": []}, "importance 'gamma' takes no calibration"),
        ({"importance": "l1", "calibration": []}, "importance 'l1' takes no calibration"),
        ({"importance": "fpgm", "ratio": 1.0}, r"ratio 1.0 is not in \[0, 1\)"),
    ],
)
def test_calibration_belongs_to_the_criteria_that_look_at_data(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_pruning(toy()[0], **{"ratio": 0.5, **options})
