"""The Taylor criterion: the true first-order effect of closing a channel, from data, and nothing left behind."""

import copy

import numpy as np
import pytest
import tiny
import torch
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
        ({"importance": "gamma", "calibration": []}, "importance 'gamma' takes no calibration"),
        ({"importance": "l1", "calibration": []}, "importance 'l1' takes no calibration"),
    ],
)
def test_calibration_belongs_to_the_criteria_that_look_at_data(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_pruning(toy()[0], 0.5, **options)
