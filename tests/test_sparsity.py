"""Sparse training (Eq. 4): the subgradient, the proximal step, and what Adam makes of each."""

import gc
import weakref

import pytest
import torch
from torch import nn

from paperlib.detectors import build_detector
from paperlib.pruning import Sparsity, absolute_gammas, init_gamma


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.BatchNorm2d(2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -0.5, 0.0, 1e-4, -2.0, 1.0]))
    return net.double()


def train(net: nn.Module, optimiser: torch.optim.Optimizer, sparsity: Sparsity, steps: int) -> None:
    """Train on a loss that gamma has no part in: all that moves it is the regulariser."""
    (group,) = optimiser.param_groups
    for _ in range(steps):
        optimiser.zero_grad()
        (net[1].weight * 0).sum().backward()
        sparsity.before_step(net, group["lr"])
        optimiser.step()
        sparsity.after_step(net, group["lr"])


def test_the_subgradient_is_added_to_the_gradient_of_prunable_gammas_only() -> None:
    net = network()
    net(torch.rand(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
    before = {name: p.grad.clone() for name, p in net.named_parameters()}
    Sparsity(0.01).before_step(net, learning_rate=0.1)
    for name, parameter in net.named_parameters():
        added = 0.01 * parameter.detach().sign() if name == "1.weight" else 0.0
        torch.testing.assert_close(parameter.grad, before[name] + added)


def test_the_proximal_step_shrinks_to_exact_zero_and_keeps_signs() -> None:
    net = network()
    Sparsity(0.1, "proximal").after_step(net, learning_rate=0.01)
    expected = torch.tensor([0.499, -0.499, 0.0, 0.0, -1.999, 0.999], dtype=torch.float64)
    torch.testing.assert_close(net[1].weight.detach(), expected, rtol=0, atol=1e-9)
    assert (net[1].weight == 0).sum() == 2
    assert torch.equal(net[4].weight, torch.ones(2, dtype=torch.float64)), "not prunable: the network's output"


@pytest.mark.parametrize("strength", [5e-4, 1e-3, 1.0])
def test_under_adam_the_subgradient_moves_by_the_learning_rate_and_proximal_by_the_strength(strength) -> None:
    moved = {}
    for method in ("subgradient", "proximal"):
        net = network()
        start = net[1].weight[-1].item()
        train(net, torch.optim.Adam([net[1].weight], lr=1e-3), Sparsity(strength, method), steps=10)
        moved[method] = start - net[1].weight[-1].item()
    assert moved["subgradient"] == pytest.approx(10 * 1e-3, rel=1e-3), "whatever the strength"
    assert moved["proximal"] == pytest.approx(10 * 1e-3 * strength, rel=1e-3)


def test_under_adam_only_proximal_comes_to_rest_at_zero() -> None:
    resting = {}
    for method in ("subgradient", "proximal"):
        net = network()
        train(net, torch.optim.Adam([net[1].weight], lr=0.01), Sparsity(1.0, method), steps=100)
        resting[method] = int((net[1].weight[[0, 1, 3]] == 0).sum())
    assert resting == {"subgradient": 0, "proximal": 3}


def test_a_frozen_gamma_is_left_alone() -> None:
    net = network()
    net[1].weight.requires_grad_(False)
    before = net[1].weight.clone()
    for method in ("subgradient", "proximal"):
        Sparsity(1.0, method).before_step(net, 0.1)
        Sparsity(1.0, method).after_step(net, 0.1)
    assert net[1].weight.grad is None
    assert torch.equal(net[1].weight, before)


def test_the_penalty_is_the_term_of_equation_4_and_carries_no_gradient() -> None:
    penalty = Sparsity(0.01).penalty(network())
    assert penalty.item() == pytest.approx(0.01 * 4.0001)
    assert not penalty.requires_grad


def test_gammas_are_copies_of_absolute_values_by_convolution() -> None:
    net = network()
    found = absolute_gammas(net)
    assert list(found) == ["0"]
    assert torch.equal(found["0"], net[1].weight.detach().abs())
    found["0"].zero_()
    assert net[1].weight.abs().sum() > 0


def test_all_scale_factors_start_at_one_half_in_a_detector() -> None:
    detector = build_detector("yolov4-tiny", num_classes=3, width=0.25)
    init_gamma(detector, 0.7)
    assert torch.cat(list(absolute_gammas(detector).values())).unique().tolist() == [pytest.approx(0.7)]
    init_gamma(detector)
    norms = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 0.5).all() for m in norms)


def test_a_traced_network_is_not_kept_alive() -> None:
    net = network()
    Sparsity(0.1).penalty(net)
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None


def test_bad_settings_are_named_and_good_ones_described() -> None:
    with pytest.raises(ValueError, match=r"sparsity strength -0.1 must be ≥ 0"):
        Sparsity(-0.1)
    with pytest.raises(ValueError, match=r"sparsity method 'l2' is not known; choose one of: subgradient, proximal"):
        Sparsity(0.1, "l2")
    assert Sparsity(5e-4, "proximal").describe() == {"strength": 5e-4, "method": "proximal"}
