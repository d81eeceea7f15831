"""The plan: which channels a global threshold, ties, the floor and rounding leave."""

import dataclasses
import json
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paperlib.pruning import PruningPlan, apply_plan, plan_pruning, plan_ratios, removed_channels, trace_channels
from paperlib.structure import ChannelSplit

WIDTHS = (7, 12, 20, 9)
ratios = st.floats(0, 0.99)


def chain(widths: tuple[int, ...] = WIDTHS) -> nn.Sequential:
    """Convolutions in a row, nothing tied; gammas are a shuffled range."""
    layers = [
        part
        for inputs, outputs in pairwise((3, *widths))
        for part in (nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU())
    ]
    return set_gammas(nn.Sequential(*layers, nn.Conv2d(widths[-1], 2, 1)))


def set_gammas(net: nn.Module, seed: int = 0) -> nn.Module:
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    values = np.random.default_rng(seed).permutation(sum(m.num_features for m in norms)) + 1.0
    for norm, part in zip(norms, np.split(values, np.cumsum([m.num_features for m in norms])[:-1]), strict=True):
        norm.weight.data = torch.as_tensor(part) * torch.as_tensor(np.sign(part % 2 - 0.5))
    return net


class Tied(nn.Module):
    """A shortcut, and a split whose second part goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
        self.b, self.bn_b = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.split = ChannelSplit([6, 10])
        self.c, self.bn_c = nn.Conv2d(10, 8, 1), nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.bn_a(self.a(x))
        return self.out(self.bn_c(self.c(self.split(a + self.bn_b(self.b(a)))[1])))


@given(ratio=ratios)
def test_exactly_the_ratio_goes_where_nothing_is_tied_and_no_floor_binds(ratio: float) -> None:
    plan = plan_pruning(chain((48,)), ratio, min_keep_ratio=0)
    assert plan.channels_total - plan.channels_kept == int(Decimal(repr(ratio)) * 48)


def test_the_threshold_is_the_least_importance_kept_and_shares_are_decimal() -> None:
    net = chain((100,))
    plan = plan_pruning(net, 0.29, min_keep_ratio=0)
    gammas = net[1].weight.detach().abs().numpy()
    assert plan.threshold == 30.0
    assert plan.kept == {"0": np.flatnonzero(gammas >= 30).tolist()}


@pytest.mark.parametrize("make", [chain, lambda: set_gammas(Tied())])
@given(low=ratios, high=ratios)
@settings(max_examples=20)
def test_a_higher_ratio_removes_more_and_never_other_channels(make, low: float, high: float) -> None:
    low, high = sorted((low, high))
    some, fewer = plan_pruning(make(), low), plan_pruning(make(), high)
    for name, kept in fewer.kept.items():
        assert set(kept) <= set(some.kept[name])


@pytest.mark.parametrize("value", [0.5, 0.0])
def test_equal_gammas_never_block_the_ratio(value: float) -> None:
    net = chain()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, value)
    plan = plan_pruning(net, 0.5, min_keep_ratio=0.0)
    assert plan.kept["0"] == [6], "the first layers empty first, down to one channel"
    assert plan.channels_kept == 24 + 2


def test_tied_channels_go_only_if_all_are_candidates() -> None:
    net = set_gammas(Tied())
    with torch.no_grad():
        net.bn_a.weight.copy_(torch.arange(16) + 1.0)
        net.bn_b.weight.copy_(16.0 - torch.arange(16))
        net.bn_c.weight.fill_(100.0)
    plan = plan_pruning(net, 0.5, min_keep_ratio=0)
    # The 20 lowest of 1,1,2,2,…,16,16 are 1…10 twice: both members are among them in positions 6…9.
    assert plan.kept["a"] == plan.kept["b"] == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]


@given(ratio=ratios, min_keep_ratio=st.floats(0, 1))
@settings(max_examples=20)
def test_layers_and_parts_of_splits_keep_their_floor(ratio: float, min_keep_ratio: float) -> None:
    net = set_gammas(Tied())
    plan = plan_pruning(net, ratio, min_keep_ratio=min_keep_ratio)
    kept = plan.kept["a"]
    for count, total in [(len(kept), 16), (sum(c < 6 for c in kept), 6), (len(plan.kept["c"]), 8)]:
        assert count >= max(1, min_keep_ratio * total * (1 - 1e-12))
    removed_channels(trace_channels(net), plan)


@pytest.mark.parametrize("make", [chain, lambda: set_gammas(Tied())])
def test_a_floor_of_the_original_does_not_compound_when_pruning_is_repeated(make) -> None:
    net = original = make()
    for _ in range(4):
        plan = plan_pruning(net, 0.9, min_keep_ratio=0.25, original=original)
        net = apply_plan(net, plan, compensate="off")
    counts = [(len(s.channels), len(t.channels)) for s, t in _segments(net, original)]
    assert all(left >= 0.25 * before for left, before in counts)
    assert any(left < 0.3 * before for left, before in counts)
    again = plan_pruning(net, 0.9, min_keep_ratio=0.25)
    assert again.channels_kept < plan.channels_kept, "a floor of what is left lets more go"
    with pytest.raises(ValueError, match="the original network has no layer"):
        plan_pruning(net, 0.5, original=nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))


def _segments(net: nn.Module, original: nn.Module) -> zip:
    return zip(trace_channels(net).segments, trace_channels(original).segments, strict=True)


def test_the_floor_brings_back_the_most_important_and_says_so() -> None:
    net = chain()
    with torch.no_grad():
        net[4].weight.copy_(torch.arange(12) * 1e-3)
    plan = plan_pruning(net, 0.4, min_keep_ratio=0.25)
    assert plan.kept["3"] == [9, 10, 11]
    summary = plan.summary().set_index("layer")
    assert summary.held_by_floor.to_dict() == {"0": False, "3": True, "6": False, "9": False}
    assert summary.loc["3", ["total", "kept"]].tolist() == [12, 3]
    assert summary.loc["3", "maximum"] == pytest.approx(0.011)


@pytest.mark.parametrize("multiple", [2, 4, 8])
@given(ratio=ratios)
@settings(max_examples=10)
def test_rounding_keeps_multiples_or_all_and_no_more_than_needed(multiple: int, ratio: float) -> None:
    exact, rounded = plan_pruning(chain(), ratio), plan_pruning(chain(), ratio, round_to=multiple)
    for (name, kept), total in zip(rounded.kept.items(), WIDTHS, strict=True):
        assert set(exact.kept[name]) <= set(kept)
        assert len(kept) == min(-(-len(exact.kept[name]) // multiple) * multiple, total)
    tied = plan_pruning(set_gammas(Tied()), ratio, round_to=multiple)
    assert len(tied.kept["a"]) % multiple == 0
    assert tied.kept["a"] == tied.kept["b"]


def test_l1_ranks_filters_by_the_norm_of_their_weights() -> None:
    net = chain((10,))
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(10).reshape(10, 1, 1, 1) * torch.tensor([1.0, -1, 1]).reshape(1, 3, 1, 1))
    plan = plan_pruning(net, 0.3, importance="l1")
    assert plan.kept == {"0": [3, 4, 5, 6, 7, 8, 9]}
    assert plan.threshold == 9.0


def test_a_plan_survives_json() -> None:
    plan = plan_pruning(set_gammas(Tied()), 0.4)
    assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1.2}, r"ratio 1.2 is not in \[0, 1\)"),
        ({"ratio": 1.0}, r"ratio 1.0 is not in \[0, 1\)"),
        ({"ratio": float("nan")}, r"ratio nan is not in \[0, 1\)"),
        ({"ratio": 0.5, "min_keep_ratio": -0.1}, r"min_keep_ratio -0.1 is not in \[0, 1\]"),
        ({"ratio": 0.5, "round_to": 0}, "round_to 0 is not a whole number ≥ 1"),
        ({"ratio": 0.5, "importance": "beta"}, "importance 'beta' is not known; choose one of: gamma, l1"),
    ],
)
def test_settings_out_of_range_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_pruning(chain(), **arguments)


def test_networks_that_cannot_be_ranked_are_refused() -> None:
    with pytest.raises(ValueError, match="Sequential has no prunable channel"):
        plan_pruning(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), 0.5)
    net = chain()
    net[1].weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="importance 'gamma' of 0 is not finite"):
        plan_pruning(net, 0.5)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"nowhere": [0]}, "the plan names nowhere, which is not a layer"),
        ({"out": [0]}, "the plan names out, which is not a prunable convolution"),
        ({"c": [0, 8]}, "the plan keeps channel 8 of c, which has 8"),
        ({"c": [-1]}, "the plan keeps channel -1 of c, which has 8"),
        ({"c": [1, 1]}, "the plan names a channel of c twice"),
        ({"c": []}, "the plan keeps no channel of c"),
        ({"a": [0, 7]}, "tied channels of a, b"),
        ({"a": [0, 7], "b": [0, 8]}, "tied channels of a, b"),
        ({"a": [0, 1], "b": [0, 1]}, "no channel in a part of split"),
    ],
)
def test_a_plan_that_does_not_fit_the_network_is_refused_by_name(kept: dict, message: str) -> None:
    plan = dataclasses.replace(plan_pruning(set_gammas(Tied()), 0.0), kept=kept)
    with pytest.raises(ValueError, match=message):
        removed_channels(trace_channels(Tied()), plan)


def test_plans_made_together_are_those_made_one_by_one():
    net, choices = set_gammas(Tied()), {"min_keep_ratio": 0.2, "round_to": 2, "image_size": 32}
    asked = [0.0, 0.3, 0.29, 0.9]
    assert plan_ratios(net, asked, **choices) == [plan_pruning(net, ratio, **choices) for ratio in asked]
    with pytest.raises(ValueError, match=r"ratio 1.2 is not in \[0, 1\)"):
        plan_ratios(net, [0.5, 1.2])


def test_the_former_name_of_the_floor_still_works() -> None:
    net = set_gammas(Tied())
    assert plan_pruning(net, 0.9, keep_floor=0.4) == plan_pruning(net, 0.9, min_keep_ratio=0.4)
    assert plan_ratios(net, [0.9], keep_floor=0.4) == plan_ratios(net, [0.9], min_keep_ratio=0.4)
