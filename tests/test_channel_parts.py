"""Groups, slices and parts of channels: cut exactly, with sizes that travel with the weights."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_networks import SIDE, Net, check_exact, conv, largest_gap, randomise
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from paperlib.costs import cost
from paperlib.pruning import apply_plan, plan_pruning
from paperlib.structure import describe_structure, reshape_


def block(inputs: int, outputs: int, kernel: int = 3, kind: type[nn.Module] = nn.Conv2d, **options: int) -> nn.Module:
    return nn.Sequential(
        kind(inputs, outputs, kernel, padding=kernel // 2, **options), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def chain(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(block(3, 12), *parts)


TRANSPOSED = {"kind": nn.ConvTranspose2d, "stride": 2}
GROUPED: dict[str, Callable[[], nn.Module]] = {
    "equal counts in each group": lambda: chain(block(12, 18, groups=3), nn.Conv2d(18, 3, 3, padding=1)),
    "groups without batch norm": lambda: chain(nn.Conv2d(12, 8, 3, padding=1, groups=2), nn.Conv2d(8, 3, 1)),
    "groups at the end": lambda: chain(block(12, 8, groups=4), nn.Conv2d(8, 6, 3, padding=1, groups=2)),
    "transposed groups": lambda: chain(block(12, 18, groups=2, **TRANSPOSED), nn.Conv2d(18, 3, 3, padding=1)),
    "a channel multiplier": lambda: chain(block(12, 24, groups=12), nn.Conv2d(24, 3, 3, padding=1)),
    "a transposed multiplier": lambda: chain(block(12, 24, groups=12, **TRANSPOSED), nn.Conv2d(24, 3, 1)),
    "groups of several inputs and one output": lambda: chain(block(12, 6, groups=6), nn.Conv2d(6, 3, 3, padding=1)),
    "shuffled groups": lambda: chain(
        block(12, 12, 1, groups=3), nn.ChannelShuffle(3), block(12, 24, 1, groups=3), nn.Conv2d(24, 3, 1)
    ),
    "group norm": lambda: chain(nn.Conv2d(12, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 1)),
    "group norm after batch norm": lambda: chain(nn.GroupNorm(6, 12), nn.Conv2d(12, 3, 3, padding=1)),
    "instance norm": lambda: chain(
        nn.Conv2d(12, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)
    ),
}  # fmt: skip


def count_norms(net: nn.Module) -> int:
    """Count the norms that follow a convolution."""
    pairs = itertools.pairwise(part for part in net.modules() if not isinstance(part, nn.Sequential))
    norms = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
    return sum(isinstance(conv, _ConvNd) and isinstance(norm, norms) for conv, norm in pairs)


@pytest.mark.parametrize("name", GROUPED)
def test_a_grouped_convolution_is_cut_exactly_and_its_structure_travels(name: str) -> None:
    net = GROUPED[name]()
    small = check_exact(net, count_norms(net), ratio=0.7)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    fresh = GROUPED[name]().double().eval()
    reshape_(fresh, describe_structure(small))
    fresh.load_state_dict(small.state_dict())
    inputs = torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)
    assert largest_gap(fresh, small.eval(), inputs) == 0


@pytest.mark.parametrize("name", GROUPED)
def test_the_cost_of_a_plan_with_groups_is_that_of_the_pruned_network(name: str) -> None:
    net = randomise(GROUPED[name]())
    plan = plan_pruning(net, 0.7, image_size=SIDE)
    assert plan.cost_after == cost(apply_plan(net, plan, compensate="off"), SIDE)


def swap_halves(net: Net, x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return torch.cat([x[:, half:], x[:, :half]], 1)


def swap_by_narrow(net: Net, x: Tensor) -> Tensor:
    return torch.cat([x.narrow(1, 0, x.size(1) // 2), x[:, x.size(1) // 2 :]], 1)


def cropped(net: Net, x: Tensor) -> Tensor:
    return torch.cat([x, net.c(x)[:, :, : x.shape[2], : x.shape[3]]], 1)


PARTS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    # How the network is made, and which channels of b must be kept.
    "half": (lambda: Net(lambda n, x: x[:, : x.shape[1] // 2], nn.Conv2d(4, 3, 1)), []),
    "both halves": (lambda: Net(swap_halves), []),
    "narrow by half": (lambda: Net(swap_by_narrow), []),
    "the first": (lambda: Net(lambda n, x: x[:, :3], nn.Conv2d(3, 3, 1)), [0, 1, 2]),
    "the last": (lambda: Net(lambda n, x: x[:, -2:], nn.Conv2d(2, 3, 1)), [6, 7]),
    "from the third on": (lambda: Net(lambda n, x: x[:, 2:], nn.Conv2d(6, 3, 1)), [0, 1]),
    "narrow": (lambda: Net(lambda n, x: torch.narrow(x, 1, 1, 2), nn.Conv2d(2, 3, 1)), [0, 1, 2]),
    "every second": (lambda: Net(lambda n, x: x[:, ::2], nn.Conv2d(4, 3, 1)), []),
    "every second from the second on": (lambda: Net(lambda n, x: x[:, 1::2], nn.Conv2d(4, 3, 1)), [0, 7]),
    "one as a mask": (lambda: Net(lambda n, x: x * x[:, 1:2].sigmoid()), [0, 1]),
    "crop": (lambda: Net(cropped, nn.Conv2d(16, 3, 1), c=conv(8, 8)), []),
    "focus": (lambda: Net(lambda n, x: torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1), nn.Conv2d(16, 3, 1)), []),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_a_slice_holds_only_what_its_numbers_count(name: str) -> None:
    make, held = PARTS[name]
    net = make()
    check_exact(net, count_norms(net), exact=name != "one as a mask", ratio=0.8)
    with torch.no_grad():
        for norm in (net.b[1], net.a[1]):
            norm.weight.fill_(0.1)
        net.b[1].weight[-1 if 0 in held else 0] = 9.0
    kept = plan_pruning(net, 0.9, image_size=SIDE, min_keep_ratio=0).kept["b.0"]
    assert set(held) <= set(kept)
    assert len(kept) < 8


UNKNOWN: dict[str, Callable[[], nn.Module]] = {
    "computed bound": lambda: Net(lambda n, x: x[:, : x.shape[1] - 2], nn.Conv2d(6, 3, 1)),
    "sizes in the code": lambda: Net(lambda n, x: torch.cat(torch.split(x, [2, 6], 1)[::-1], 1)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_part_of_unknown_size_holds_all(name: str) -> None:
    check_exact(UNKNOWN[name](), 1)


class Counted(nn.Module):
    """Convolutions whose channels the code counts by numbers in attributes; `body` says how."""

    def __init__(self, body: Callable[["Counted", Tensor], Tensor], last: int = 12) -> None:
        super().__init__()
        self.body, self.width, self.parts = body, 4, (4, 8)
        self.a, self.b, self.c = conv(3, 12), conv(12, 12), conv(4, 4)
        self.out = nn.Conv2d(last, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self, self.b(self.a(x))))


def in_steps(net: Counted, x: Tensor) -> Tensor:
    parts = torch.split(x, net.width, 1)
    second = net.c(parts[1])
    return torch.cat([parts[0], second, parts[2] + second], 1)


def in_half_steps(net: Counted, x: Tensor) -> Tensor:
    parts = x.split(net.width // 2, 1)
    return torch.cat([parts[i] for i in range(5, -1, -1)], 1)


def in_parts(net: Counted, x: Tensor) -> Tensor:
    first, second = x.split(net.parts, 1)[0], x.split(net.parts, 1)[1]
    return torch.cat([second, net.c(first)], 1)


COUNTED: dict[str, Callable[[], Counted]] = {
    "equal parts": lambda: Counted(in_steps),
    "a tuple of sizes": lambda: Counted(in_parts),
    "the first of them": lambda: Counted(lambda n, x: n.c(x[:, : n.width]), 4),
    "the rest": lambda: Counted(lambda n, x: x[:, n.width :], 8),
    "half of a number": lambda: Counted(in_half_steps),
}
COMPUTED: dict[str, Callable[[], Counted]] = {
    "in arithmetic": lambda: Counted(lambda n, x: x[:, : n.width] * (n.width + 1), 4),
    "as another size": lambda: Counted(lambda n, x: x[:, : n.width, : n.width], 4),
}


@pytest.mark.parametrize("name", COUNTED)
def test_sizes_in_attributes_change_with_the_channels_and_travel(name: str) -> None:
    net = COUNTED[name]()
    small = check_exact(net, len(plan_pruning(net, 0.5, image_size=SIDE).kept), ratio=0.5)
    assert (net.width, net.parts) == (4, (4, 8)), "the original is untouched"
    assert (small.width, small.parts) != (4, (4, 8))
    assert type(small.parts) is tuple
    fresh = COUNTED[name]().double()
    reshape_(fresh, describe_structure(small))
    fresh.load_state_dict(small.state_dict())
    inputs = torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)
    assert largest_gap(fresh.eval(), small.eval(), inputs) == 0
    check_exact(small, len(plan_pruning(small, 0.5, image_size=SIDE).kept), ratio=0.5)
    with pytest.raises(ValueError, match="the module has no such sizes"):
        reshape_(fresh, describe_structure(small) | {"a": {"attributes": {"width": 3}}})


@pytest.mark.parametrize("name", COMPUTED)
def test_a_number_that_counts_something_else_too_stays(name: str) -> None:
    net = COMPUTED[name]()
    small = check_exact(net, 2, ratio=0.5)
    assert small.width == 4
    assert small.b[0].out_channels < 12


def chosen_layers() -> nn.Module:
    return randomise(Net(lambda n, x: n.c(x), c=conv(8, 8)))


def test_single_layers_have_ratios_of_their_own() -> None:
    net = chosen_layers()
    plan = plan_pruning(net, {"a": 0.5, "b.*": 0.25}, image_size=SIDE)
    assert {name: len(kept) for name, kept in plan.kept.items()} == {"a.0": 4, "b.0": 6, "c.0": 8}
    assert plan.ratio == pytest.approx(6 / 24)
    mixed = plan_pruning(net, 0.5, ratios={"*": 0.25, "c": 0.0}, image_size=SIDE)
    assert {name: len(kept) for name, kept in mixed.kept.items()} == {"a.0": 6, "b.0": 6, "c.0": 8}
    gammas = net.a[1].weight.detach().abs()
    assert set(plan.kept["a.0"]) == set(gammas.argsort()[4:].tolist())
    rest = plan_pruning(net, 0.5, ratios={"a": 0.0}, image_size=SIDE)
    assert len(rest.kept["a.0"]) == 8
    assert len(rest.kept["b.0"]) + len(rest.kept["c.0"]) == 8, "the ratio counts only the other layers"


def test_layers_may_be_given_as_modules() -> None:
    net = chosen_layers()
    modules = plan_pruning(net, {net.a: 0.5}, ignore=[net.b], min_keep={net.c: 3}, image_size=SIDE)
    names = plan_pruning(net, {"a": 0.5}, ignore=["b"], min_keep={"c": 3}, image_size=SIDE)
    assert modules == names and "b.0" not in names.kept


def test_single_layers_keep_as_many_channels_as_asked() -> None:
    net = chosen_layers()
    plan = plan_pruning(net, 0.95, min_keep={"b": 5, "c.0": 99}, image_size=SIDE)
    assert len(plan.kept["b.0"]) == 5
    assert len(plan.kept["c.0"]) == 8
    assert len(plan.kept["a.0"]) < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": {"bb": 0.5}}, r"ratios: bb is no layer .*the nearest is b"),
        ({"ratio": {"a": 1.0}}, r"ratios: 1.0 of a is not in \[0, 1\)"),
        ({"ratio": {"out": 0.5}}, "ratios: out has no convolution that can be pruned"),
        ({"ratio": 0.5, "min_keep": {"a": 0}}, "min_keep: 0 of a is not a whole number ≥ 1"),
        ({"ratio": 0.5, "ignore": ["c.9"]}, r"ignore: c.9 is no layer .*the nearest is c"),
        ({"ratio": 0.5, "ignore": ["*"]}, "ignore: names every convolution that could be pruned"),
        ({"ratio": 0.5, "ignore": [nn.ReLU()]}, "ignore: ReLU is neither a name nor a module of Net"),
        ({"ratio": 0.5, "min_keep": 4}, "min_keep: 4 is not a collection of names of layers"),
        ({"ratio": {"a": "0.3"}}, r"ratios: 0.3 of a is not in \[0, 1\)"),
        ({"ratio": "0.3"}, "ratio '0.3' is not a number"),
    ],
)
def test_names_and_values_of_single_layers_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_pruning(chosen_layers(), **options, image_size=SIDE)


def test_the_examples_of_the_page_run() -> None:
    page = Path(__file__).parent.parent / "docs" / "pruning_networks.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    exec("\n".join(blocks), {"__name__": "page"})
