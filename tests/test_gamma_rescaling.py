"""Levelled scale factors: every prunable |gamma| alike, and the same network."""

import pytest
import torch
from torch import Tensor, nn

from paperlib.detectors import build_detector, load_darknet_weights
from paperlib.pruning import absolute_gammas, rescale_gamma_
from paperlib.structure import ChannelSplit


class Everything(nn.Module):
    """A shortcut, a split, a concatenation, pooling, upsampling and a deconvolution."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.activation = activation()
        self.stem, self.body, self.deep = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(12, 6, 1)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2, bias=False)
        self.stem_norm, self.body_norm, self.deep_norm, self.up_norm = map(nn.BatchNorm2d, (8, 8, 6, 5))
        self.split, self.head = ChannelSplit((4, 4)), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem_norm(self.stem(x)))
        x = x + self.activation(self.body_norm(self.body(x)))
        _, half = self.split(x)
        x = torch.cat((nn.functional.max_pool2d(x, 3, 1, 1), half), 1)
        x = self.activation(self.deep_norm(self.deep(x)))
        return self.head(self.activation(self.up_norm(self.up(x))))


def everything(activation: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = Everything(activation).double().eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, -3, 3)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return module


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
@pytest.mark.parametrize("seed", range(3))
def test_levelling_changes_gammas_and_not_the_function(activation, seed):
    module, x = everything(activation, seed), torch.randn(2, 3, 11, 11, dtype=torch.float64)
    before = module(x)
    rescale_gamma_(module, 0.5)
    found = absolute_gammas(module)
    tied = (found["stem"] + found["body"]) / 2
    for gamma in (tied, found["deep"], found["up"]):
        torch.testing.assert_close(gamma, torch.full_like(gamma, 0.5))
    torch.testing.assert_close(module(x), before, rtol=1e-12, atol=1e-12)


def test_a_dead_channel_is_left_alone():
    module = everything(nn.ReLU)
    module.up_norm.weight.data[2] = 1e-9
    rescale_gamma_(module)
    assert absolute_gammas(module)["up"][2] == 1e-9


@pytest.mark.parametrize("activation", [nn.Mish, nn.SiLU, nn.ReLU6])
def test_an_activation_that_does_not_scale_is_refused_and_nothing_is_changed(activation):
    module = everything(activation)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=f"cannot rescale gamma: {activation.__name__} at .* does not scale"):
        rescale_gamma_(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_level_of_zero_is_refused():
    with pytest.raises(ValueError, match="must be > 0"):
        rescale_gamma_(everything(nn.ReLU), 0.0)


def test_the_official_coco_detector_stays_the_same_detector(coco_weights):
    detector = build_detector("yolov4-tiny", 80).eval()
    load_darknet_weights(detector, coco_weights)
    detector.double()
    batch = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    before = detector.head_outputs(batch)
    rescale_gamma_(detector, 0.5)
    torch.testing.assert_close(detector.head_outputs(batch), before, rtol=1e-9, atol=1e-9)
    levels = torch.cat(list(absolute_gammas(detector).values()))
    assert levels.min() > 0.499
    assert levels.max() < 0.501
