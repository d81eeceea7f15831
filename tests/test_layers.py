"""Layer pruning: blocks are found, ranked and removed, alone and with channels, and nothing else changes."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_surgery import TOLERANCE, conv, digest, gap, outputs_of, randomise
from torch import Tensor, nn

from paperlib.detectors import build_detector
from paperlib.detectors.resnet import ResNetTrunk
from paperlib.pruning import (
    PruningPlan,
    apply_plan,
    mask_plan,
    plan_pruning,
    removable_blocks,
    rescale_gamma_,
    trace_channels,
)
from paperlib.structure import Bypass, describe_structure, reshape_

seeds = st.integers(0, 2**31)


class Residual(nn.Module):
    """Darknet's: x + f(x), with an activation at the end of f."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first, self.second = conv(channels, inner, 1), conv(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Darknet(nn.Module):
    """Two stages of residual blocks; a concatenation reads the end of both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage1 = conv(3, 8), nn.Sequential(Residual(8, 4), Residual(8, 6))
        self.down, self.stage2 = conv(8, 12, stride=2), nn.Sequential(*(Residual(12, 6) for _ in range(3)))
        self.up = nn.Upsample(scale_factor=2)
        self.out = nn.Conv2d(20, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stage1(self.stem(x))
        coarse = self.stage2(self.down(fine))
        return self.out(torch.cat([self.up(coarse), fine], 1))


class ResNet(nn.Module):
    """torchvision's bottlenecks, relu(x + f(x)), under a head that reads two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = ResNetTrunk((2, 3, 1, 2), width=0.05)
        self.neck = conv(self.trunk.channels[1], 10)
        self.fine, self.coarse = nn.Conv2d(10, 4, 1), nn.Conv2d(self.trunk.channels[3], 4, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        _, fine, _, coarse = self.trunk(x)
        return [self.fine(self.neck(fine)), self.coarse(coarse)]


BLOCKS = {
    Darknet: ["stage1.0", "stage1.1", "stage2.0", "stage2.1", "stage2.2"],
    ResNet: ["trunk.layer1.1", "trunk.layer2.1", "trunk.layer2.2", "trunk.layer4.1"],
}
networks = pytest.mark.parametrize("make", BLOCKS)


def random_plan(net: nn.Module, seed: int) -> PruningPlan:
    """Any blocks, and any channels of what is left that respect the coupling."""
    rng = np.random.default_rng(seed)
    blocks = [name for name in removable_blocks(net) if rng.random() < 0.5]
    whole = apply_plan(net, PruningPlan({}, 0.0, 0.0, "by hand", blocks), compensate="off")
    graph = trace_channels(whole)
    stays = graph.fixed | (rng.random(len(graph.fixed)) < rng.random())
    for segment in graph.segments:
        stays[rng.choice(segment.channels)] = True
    kept = {name: np.flatnonzero(stays[graph.layers[name].outputs]).tolist() for name in graph.prunable}
    return PruningPlan(kept, 0.0, 0.0, "by hand", blocks)


@networks
def test_identity_blocks_are_found_and_those_that_change_the_shape_are_not(make: type[nn.Module]) -> None:
    assert list(removable_blocks(make())) == BLOCKS[make]


@networks
def test_the_blocks_of_lowest_mean_gamma_go_first(make: type[nn.Module]) -> None:
    net = make()
    names = BLOCKS[make]
    order = np.random.default_rng(0).permutation(len(names))
    for level, block in zip(order.tolist(), removable_blocks(net).values(), strict=True):
        nn.init.uniform_(net.get_submodule(block.norms[0]).weight, -0.1 - level, -level)
    for count in range(len(names) + 1):
        expected = [name for name, level in zip(names, order, strict=True) if level < count]
        assert plan_pruning(net, 0.0, layers=count).blocks == expected


@networks
@given(seed=seeds)
@settings(max_examples=4)
def test_any_plan_of_blocks_and_channels_is_carried_out_exactly(make: type[nn.Module], seed: int) -> None:
    net = randomise(make(), seed)
    plan = random_plan(net, seed)
    assert gap(apply_plan(net, plan, compensate="off"), mask_plan(net, plan)) < TOLERANCE
    assert gap(apply_plan(net, plan, compensate="exact"), mask_plan(net, plan, keep_beta=True)) < TOLERANCE


@networks
@given(ratio=st.floats(0, 0.9), layers=st.integers(1, 4), seed=seeds)
@settings(max_examples=4)
def test_one_plan_removes_blocks_and_the_ratio_of_what_is_left(
    make: type[nn.Module], ratio: float, layers: int, seed: int
) -> None:
    net = randomise(make(), seed)
    plan = plan_pruning(net, ratio, layers=layers, image_size=64)
    pruned = apply_plan(net, plan, compensate="off")
    assert [type(pruned.get_submodule(name)) for name in plan.blocks] == [Bypass] * layers
    assert not any(name.startswith(f"{block}.") for name in plan.kept for block in plan.blocks)
    assert gap(pruned, mask_plan(net, plan)) < TOLERANCE
    assert gap(apply_plan(net, plan, compensate="exact"), mask_plan(net, plan, keep_beta=True)) < TOLERANCE


def test_the_coupling_through_a_removed_block_is_gone() -> None:
    net = randomise(Darknet(), 0)
    plan = PruningPlan({"stem.0": [1, 5]}, 0.0, 0.0, "by hand", ["stage1.0", "stage1.1"])
    pruned = apply_plan(net, plan, compensate="off")
    assert (pruned.stem[0].out_channels, pruned.down[0].in_channels) == (2, 2)
    assert gap(pruned, mask_plan(net, plan)) < TOLERANCE
    with pytest.raises(ValueError, match=r"tied channels of stage1.1.second.0, stem.0"):
        apply_plan(net, dataclasses.replace(plan, blocks=["stage1.0"]))


def test_a_block_leaves_nothing_behind_but_a_shift_and_the_activation_it_needs() -> None:
    darknet, resnet = (randomise(make(), 1) for make in (Darknet, ResNet))
    nothing = {"threshold": 0.0, "ratio": 0.0, "importance": "by hand"}
    for net, name in ((darknet, "stage2.1"), (resnet, "trunk.layer2.1")):
        plan = PruningPlan({}, **nothing, blocks=[name])
        off, shifted = (apply_plan(net, plan, compensate=how).get_submodule(name) for how in ("off", "bias"))
        assert (off.shift, off.after) == (None, None), "a ReLU after a ReLU does nothing"
        assert shifted.shift.shape == (len(net.get_submodule(removable_blocks(net)[name].norms[0]).weight),)
        assert (shifted.after is None) == (net is darknet)
        removable_norm = net.get_submodule(removable_blocks(net)[name].norms[0])
        nn.init.zeros_(removable_norm.bias)
        assert apply_plan(net, plan, compensate="bias").get_submodule(name).shift is None


@networks
def test_a_network_that_lost_blocks_can_be_pruned_again(make: type[nn.Module]) -> None:
    net = randomise(make(), 2)
    for layers in (2, 1, 1):
        plan = plan_pruning(net, 0.3, layers=layers, image_size=64)
        reference = mask_plan(net, plan, keep_beta=True)
        net = apply_plan(net, plan, compensate="exact")
        assert gap(net, reference) < TOLERANCE


class Unusual(nn.Module):
    """Blocks that look alike and are not: f that ends in a pooling, is read elsewhere, or x that is scaled."""

    class Pooled(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return x + F.max_pool2d(self.second(x), 3, 1, 1)

    class Leaking(Residual):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            branch = self.second(x)
            return x + branch, branch

    class Scaled(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return torch.add(x, self.second(x), alpha=2)

    class Functional(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return F.silu(x + self.second(x))

    def __init__(self) -> None:
        super().__init__()
        self.pooled, self.leaking, self.scaled = (kind(3, 3) for kind in (self.Pooled, self.Leaking, self.Scaled))
        self.functional, self.twice, self.plain = self.Functional(3, 3), Residual(3, 2), Residual(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, branch = self.leaking(self.pooled(x))
        x = self.functional(self.scaled(x)) + branch
        return self.plain(self.twice(self.twice(x)))


def test_only_blocks_that_become_an_identity_are_offered() -> None:
    assert list(removable_blocks(Unusual())) == ["plain"]


@pytest.mark.parametrize(
    ("make", "layers", "message"),
    [
        (
            lambda: build_detector("yolov4-tiny", 2, width=0.1),
            1,
            "YoloV4Tiny has no residual block that can be removed",
        ),
        (Darknet, 6, "layers 6: Darknet has only 5 removable residual blocks"),
        (Darknet, -1, "layers -1 is not a whole number ≥ 0"),
        (Darknet, 1.5, "layers 1.5 is not a whole number ≥ 0"),
    ],
)
def test_blocks_that_are_not_there_cannot_be_asked_for(make: Callable, layers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_pruning(make(), 0.2, layers=layers)


@pytest.mark.parametrize(
    ("blocks", "kept", "message"),
    [
        (["stage1"], {}, "the plan removes stage1, which is not a removable residual block"),
        (["stage3.0"], {}, "the plan removes stage3.0, which is not a removable residual block"),
        (
            ["stage2.1"],
            {"stage2.1.first.0": [0]},
            "stage2.1.first.0, but removes the block stage2.1 that contains it",
        ),
    ],
)
def test_a_plan_whose_blocks_do_not_fit_is_refused_by_name(blocks: list[str], kept: dict, message: str) -> None:
    for carry_out in (apply_plan, mask_plan):
        with pytest.raises(ValueError, match=message):
            carry_out(Darknet(), PruningPlan(kept, 0.0, 0.0, "by hand", blocks))


@networks
def test_structure_and_weights_rebuild_a_network_without_its_blocks(make: type[nn.Module]) -> None:
    net = randomise(make(), 3)
    before = digest(net)
    pruned = apply_plan(net, plan_pruning(net, 0.4, layers=2, image_size=64), compensate="exact")
    assert digest(net) == before
    assert not any(module.training for module in pruned.modules())
    structure = json.loads(json.dumps(describe_structure(pruned)))
    rebuilt = randomise(make(), 4)
    reshape_(rebuilt, structure)
    assert describe_structure(rebuilt) == structure
    rebuilt.load_state_dict(pruned.state_dict())
    assert torch.equal(outputs_of(rebuilt), outputs_of(pruned))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("trunk.layer2.1"), "structure does not name these layers: trunk.layer2.1.bn1"),
        (lambda s: s["trunk.layer2.1"].update(shift=-1), "structure of trunk.layer2.1: expected .'after', 'shift'."),
        (lambda s: s["trunk.layer2.1"].update(after="bn1"), "structure of trunk.layer2.1: 'bn1' is not an activation"),
        (
            lambda s: s["trunk.layer2.1"].update(after="gelu"),
            "structure of trunk.layer2.1: 'gelu' is not an activation",
        ),
        (lambda s: s.update({"trunk.layer9": s["trunk.layer2.1"]}), "layers that do not exist: trunk.layer9"),
        (lambda s: s.update({"neck.0": s["trunk.layer2.1"]}), "structure of neck.0: expected .'groups', 'in', 'out'."),
        (lambda s: s.update({"trunk.layer2.1.bn1": {"channels": 2}}), "do not exist: trunk.layer2.1.bn1"),
    ],
)
def test_an_edited_bypass_is_refused_by_name_and_changes_nothing(change: Callable, message: str) -> None:
    net = ResNet()
    plan = PruningPlan({}, 0.0, 0.0, "by hand", ["trunk.layer2.1"])
    structure = describe_structure(apply_plan(net, plan))
    change(structure)
    before = digest(net)
    with pytest.raises(ValueError, match=message):
        reshape_(net, structure)
    assert digest(net) == before


def test_levelling_passes_a_bypass_that_scales_and_refuses_a_shift() -> None:
    net = randomise(ResNet(), 5)
    plan = PruningPlan({}, 0.0, 0.0, "by hand", ["trunk.layer2.1"])
    plain, shifted = (apply_plan(net, plan, compensate=how) for how in ("off", "bias"))
    for module in (*plain.modules(), *shifted.modules()):
        if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.SiLU):
            module[-1] = nn.ReLU()
    before = outputs_of(plain)
    rescale_gamma_(plain)
    torch.testing.assert_close(outputs_of(plain), before, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="Bypass at trunk_layer2_1 does not scale"):
        rescale_gamma_(shifted)
