"""Plans to a target, and what a plan says before pruning: costs by arithmetic, savings and notes."""

import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layers import Darknet, ResNet
from test_surgery import Branches, Depthwise, randomise
from torch import nn

from paperlib.costs import cost
from paperlib.detectors import build_detector
from paperlib.pruning import PruningPlan, apply_plan, plan_pruning

SIDE = 64
NETWORKS = st.sampled_from([Branches, Depthwise, Darknet, ResNet])
LAYERED = (Darknet, ResNet)


@given(make=NETWORKS, ratio=st.floats(0, 0.95), layers=st.integers(0, 3), round_to=st.sampled_from([1, 4]))
@settings(max_examples=12)
def test_planned_costs_are_those_of_the_pruned_network(make: type, ratio: float, layers: int, round_to: int) -> None:
    net = randomise(make(), 0)
    layers = layers if make in LAYERED else 0
    plan = plan_pruning(net, ratio, layers=layers, round_to=round_to, image_size=SIDE)
    assert plan.cost_before == cost(net, SIDE)
    assert plan.cost_after == cost(apply_plan(net, plan, compensate="off"), SIDE)


def reached(plan: PruningPlan, target: str) -> float:
    return plan.channels_kept if target == "channels" else getattr(plan.cost_after, target)


@pytest.mark.parametrize("target", ["size_mb", "gmacs", "channels"])
@given(make=NETWORKS, share=st.floats(0, 1.1), round_to=st.sampled_from([1, 4]), seed=st.integers(0, 99))
@settings(max_examples=8)
def test_a_target_gives_the_largest_plan_that_fits(
    make: type, target: str, share: float, round_to: int, seed: int
) -> None:
    net = randomise(make(), seed)
    options = {"round_to": round_to, "image_size": SIDE}
    whole, least = (reached(plan_pruning(net, r, **options), target) for r in (0.0, 0.9999))
    limit = least + share * (whole - least)
    plan = plan_pruning(net, **{target: limit}, **options)
    assert reached(plan, target) <= limit
    count = sum(layer.total for layer in plan.layers.values())
    candidates = round(plan.ratio * count)
    if candidates:
        larger = plan_pruning(net, (candidates - 0.5) / count, **options)  # one candidate fewer
        assert reached(larger, target) > limit
    else:
        assert plan.channels_kept == plan.channels_total


def test_blocks_go_before_channels_on_the_way_to_a_target() -> None:
    net = randomise(Darknet(), 1)
    plan = plan_pruning(net, size_mb=0.5 * cost(net).size_mb, layers=2)
    assert len(plan.blocks) == 2
    assert plan.cost_after.size_mb <= 0.5 * plan.cost_before.size_mb
    assert plan.ratio < plan_pruning(net, size_mb=0.5 * cost(net).size_mb).ratio


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of ratio, size_mb, gmacs, channels is needed, not none"),
        ({"ratio": 0.5, "gmacs": 1.0}, "exactly one of ratio, size_mb, gmacs, channels is needed, not ratio and gmacs"),
        ({"size_mb": 1e-6}, r"size_mb 1e-06 cannot be reached; the smallest is 0\.00\d+"),
        ({"gmacs": float("nan")}, r"gmacs nan cannot be reached; the smallest is 0\.06\d+"),
    ],
)
def test_targets_that_cannot_be_met_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_pruning(Branches(), **arguments)


def test_an_image_that_the_network_cannot_take_is_named() -> None:
    with pytest.raises(ValueError, match="image_size 2: Sequential does not accept this image size .*[Kk]ernel size"):
        plan_pruning(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), gmacs=1.0, image_size=2)


def test_the_smallest_that_is_named_can_be_reached() -> None:
    net = randomise(Branches(), 2)
    with pytest.raises(ValueError) as refused:
        plan_pruning(net, size_mb=0.0)
    smallest = float(str(refused.value).split()[-1])
    assert plan_pruning(net, size_mb=1.001 * smallest).cost_after.size_mb <= 1.001 * smallest


def test_a_full_size_detector_is_planned_to_a_target_in_two_seconds() -> None:
    with torch.device("meta"):
        ghost = build_detector("yolov4-tiny", 80)
    detector = ghost.to_empty(device="cpu")
    for norm in (m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight)
    start = time.process_time()
    plan = plan_pruning(detector, size_mb=8.0, round_to=8)
    assert time.process_time() - start < 2
    assert 7.5 < plan.cost_after.size_mb <= 8.0


def test_the_summary_shows_quantiles_and_what_each_convolution_saves() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    )
    net[1].weight.data = torch.tensor([1.0, -2, 3, 4, 5])
    net[4].weight.data = torch.tensor([6.0, 7, 8, 9])
    plan = plan_pruning(net, 0.25, image_size=10)
    summary = plan.summary().set_index("layer")
    assert summary.loc["0", "minimum":"maximum"].tolist() == [1, 2, 3, 4, 5]
    assert summary[["total", "kept", "share_kept"]].loc["0"].tolist() == [5, 3, 0.6]
    assert summary["parameters_saved"].tolist() == [2 * 3 * 9 + 2 * 2, 2 * 4], "two filters; two inputs"
    assert summary["macs_saved"].tolist() == [2 * 3 * 9 * 100, 2 * 4 * 100]
    assert plan.cost_before.parameters - plan.cost_after.parameters == summary["parameters_saved"].sum()


def test_a_removed_block_saves_all_of_its_convolutions() -> None:
    net = Darknet()
    summary = plan_pruning(net, 0.0, layers=1, image_size=SIDE).summary().set_index("layer")
    gone = summary[summary["kept"] == 0]
    block = gone.index[0].removesuffix(".first.0")
    assert list(gone.index) == [f"{block}.first.0", f"{block}.second.0"]
    assert gone["parameters_saved"].sum() == sum(p.numel() for p in net.get_submodule(block).parameters())
    assert summary.loc[summary["kept"] > 0, "parameters_saved"].eq(0).all()


def levels(*values: float) -> Callable[[], nn.Module]:
    """Convolutions of ten channels in a row, the gammas of each around one value."""

    def make() -> nn.Module:
        net = nn.Sequential()
        for value in values:
            net.extend([nn.Conv2d(3 if len(net) == 0 else 10, 10, 1), nn.BatchNorm2d(10)])
            net[-1].weight.data = value + torch.arange(10) / 1000
        return net.append(nn.Conv2d(10, 2, 1))

    return make


@pytest.mark.parametrize(
    ("make", "options", "notes"),
    [
        (levels(1, 2), {"ratio": 0.4}, []),
        (
            levels(1, 2),
            {"ratio": 0.5},
            ["the request would remove every channel of 0; min_keep_ratio keeps some in each"],
        ),
        (
            levels(1, 1.0005),
            {"ratio": 0.7, "min_keep_ratio": 0.4},
            ["remove 14 of 20 channels; min_keep_ratio allows removing at most 12"],
        ),
        (
            levels(1, 2, 3, 4, 5),
            {"ratio": 0.9, "min_keep_ratio": 0.2},
            [
                "would remove every channel of 4 layers (0, 2, 4, ...)",
                "remove 45 of 50 channels; min_keep_ratio allows removing at most 40",
            ],
        ),
        (levels(1, 2), {"size_mb": 0.0003}, ["would remove every channel of 0"]),
    ],
)
def test_a_plan_says_what_the_floor_kept_from_it(make: Callable, options: dict, notes: list[str]) -> None:
    plan = plan_pruning(make(), image_size=4, **options)
    assert len(plan.notes) == len(notes)
    for found, expected in zip(plan.notes, notes, strict=True):
        assert expected in found
        assert f"\n  note: {found}" in repr(plan)
