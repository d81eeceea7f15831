"""Surgery: a pruned network computes what the masked one computes, to float64 rounding."""

import dataclasses
import hashlib
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paperlib.detectors import build_detector
from paperlib.pruning import PruningPlan, apply_plan, mask_plan, plan_pruning, trace_channels
from paperlib.structure import ChannelSplit, describe_structure, reshape_

TOLERANCE = 1e-10
SIDE = 64
ratios = st.floats(0.2, 0.9)
seeds = st.integers(0, 2**31)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options}, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class Shortcuts(nn.Module):
    """A shortcut over padded convolutions and a gate that multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.gate = conv(3, 12), conv(12, 6), conv(6, 12), conv(12, 12, 1)
        self.out = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.two(self.one(x))
        return self.out(self.last(x * self.gate(x)))

    def last(self, x: Tensor) -> Tensor:
        return x


class PreActivation(Shortcuts):
    """The same with a batch norm that no convolution precedes, as pre-activation networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(12)

    def last(self, x: Tensor) -> Tensor:
        return self.norm(x).relu()


class Branches(nn.Module):
    """A channel split, spatial pyramid pooling, upsampling and concatenations, with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.split = conv(3, 16, stride=2), ChannelSplit([6, 10])
        self.detour, self.merge = conv(10, 8), conv(24, 8, 1)
        self.pools = nn.ModuleList([nn.MaxPool2d(k, 1, k // 2) for k in (3, 5)])
        self.neck = conv(24, 10)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.coarse, self.fine = nn.Conv2d(10, 4, 1), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        stem = self.stem(x)
        first, second = self.split(stem)
        merged = self.merge(torch.cat([stem, self.detour(second)], 1))
        neck = self.neck(torch.cat([merged, *(pool(merged) for pool in self.pools)], 1))
        return [self.coarse(neck), self.fine(torch.cat([self.up(neck), self.up(first)], 1))]


class Depthwise(nn.Module):
    """Depthwise and transposed convolutions, and a linear layer after flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = conv(3, 12), conv(12, 12, groups=12)
        up = nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1, bias=False)
        self.up = nn.Sequential(up, nn.BatchNorm2d(8), nn.LeakyReLU(0.1))
        self.pool, self.linear = nn.AdaptiveAvgPool2d(2), nn.Linear(8 * 4, 3)
        self.out = nn.Conv2d(8, 3, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.up(self.middle(self.stem(x)))
        return [self.linear(torch.flatten(self.pool(x), 1)), self.out(x)]


class SharedHead(nn.Module):
    """A pyramid of three levels, all read by one head: removed channels emit other constants on each level."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.levels = conv(3, 8), nn.ModuleList([conv(8, 12, stride=s) for s in (1, 2, 4)])
        self.head = nn.Sequential(conv(12, 6), nn.Conv2d(6, 4, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [self.head(level(x)) for level in self.levels]


def tiny() -> nn.Module:
    return build_detector("yolov4-tiny", num_classes=10, width=0.25)


def yolov3_spp() -> nn.Module:
    return build_detector("yolov3-spp", num_classes=3, width=0.0625, depth=0.25)


def yolov4() -> nn.Module:
    return build_detector("yolov4", num_classes=3, width=0.0625, depth=0.25)


def centernet() -> nn.Module:
    return build_detector("centernet-resnet50", num_classes=3, width=0.1, depth=0.3)


TOYS = [Shortcuts, Branches, Depthwise, SharedHead]
DETECTORS = [tiny, yolov3_spp, yolov4, centernet]
"""One network of each kind; tracing takes long enough that each is tried with few plans."""


def randomise(net: nn.Module, seed: int) -> nn.Module:
    """Float64, evaluation mode, and nothing at the values of a fresh start."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.double().eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.uniform_(-1, 1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            scale = (module.weight.numel() / module.weight.shape[0]) ** -0.5
            module.weight.data.normal_(0, 2 * scale, generator=generator)
    return net


@torch.no_grad()
def outputs_of(net: nn.Module, seed: int = 0, side: int = SIDE) -> Tensor:
    images = torch.rand(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    out = getattr(net, getattr(net, "traced_method", "forward"))(images)
    return torch.cat([part.flatten() for part in (out if isinstance(out, list) else [out])])


def gap(left: nn.Module, right: nn.Module) -> float:
    return float((outputs_of(left) - outputs_of(right)).abs().max())


def random_plan(net: nn.Module, seed: int) -> PruningPlan:
    """Any plan that respects the coupling: each free channel number goes or stays by the toss of a coin."""
    graph, rng = trace_channels(net), np.random.default_rng(seed)
    stays = graph.fixed | (rng.random(len(graph.fixed)) < rng.random())
    for segment in graph.segments:
        stays[rng.choice(segment.channels)] = True
    kept = {name: np.flatnonzero(stays[graph.layers[name].outputs]).tolist() for name in graph.prunable}
    return PruningPlan(kept, threshold=0.0, ratio=0.0, importance="by hand")


@pytest.mark.parametrize("make", [*TOYS, tiny])
@given(ratio=ratios, seed=seeds)
@settings(max_examples=5, deadline=None)
def test_without_compensation_it_equals_the_network_with_gamma_and_beta_zero(
    make: Callable[[], nn.Module], ratio: float, seed: int
) -> None:
    net = randomise(make(), seed)
    plan = plan_pruning(net, ratio)
    assert gap(apply_plan(net, plan, compensate="off"), mask_plan(net, plan)) < TOLERANCE


@pytest.mark.parametrize("make", [*TOYS, PreActivation, tiny])
@given(ratio=ratios, seed=seeds)
@settings(max_examples=5, deadline=None)
def test_exact_compensation_equals_the_network_with_gamma_zero_alone(
    make: Callable[[], nn.Module], ratio: float, seed: int
) -> None:
    net = randomise(make(), seed)
    plan = plan_pruning(net, ratio)
    assert gap(apply_plan(net, plan, compensate="exact"), mask_plan(net, plan, keep_beta=True)) < TOLERANCE


@pytest.mark.parametrize("make", TOYS)
@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_any_plan_that_respects_the_coupling_is_carried_out_exactly(make: Callable[[], nn.Module], seed: int) -> None:
    check_any_plan(make, seed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("make", DETECTORS)
def test_any_plan_of_a_detector_is_carried_out_exactly(make: Callable[[], nn.Module], seed: int) -> None:
    check_any_plan(make, seed)


def check_any_plan(make: Callable[[], nn.Module], seed: int) -> None:
    net = randomise(make(), seed)
    plan = random_plan(net, seed)
    pruned = apply_plan(net, plan, compensate="off")
    assert gap(pruned, mask_plan(net, plan)) < TOLERANCE
    assert gap(apply_plan(net, plan, compensate="exact"), mask_plan(net, plan, keep_beta=True)) < TOLERANCE
    for name, kept in plan.kept.items():
        assert pruned.get_submodule(name).out_channels == len(kept)


def couplings(net: nn.Module) -> dict[str, list[str]]:
    """For each convolution with a tied channel that may go, all that are tied to the first such channel."""
    graph = trace_channels(net)
    outputs = {name: graph.layers[name].outputs for name in graph.prunable}
    found = {}
    for name, ids in outputs.items():
        free = ids[~graph.fixed[ids]]
        members = sorted(other for other, numbers in outputs.items() if len(free) and free[0] in numbers)
        if len(members) > 1:
            found[name] = members
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("make", [Shortcuts, Depthwise, SharedHead, yolov3_spp, centernet])
def test_a_plan_that_breaks_a_coupling_is_refused_with_the_names(make: Callable[[], nn.Module], seed: int) -> None:
    net = make()
    plan, tied = random_plan(net, seed), couplings(net)
    name = sorted(tied)[seed % len(tied)]
    graph = trace_channels(net)
    first = int(np.flatnonzero(~graph.fixed[graph.layers[name].outputs])[0])
    broken = sorted(set(plan.kept[name]) ^ {first}) or [first + 1]
    with pytest.raises(ValueError, match=f"tied channels of {', '.join(tied[name])}$"):
        apply_plan(net, dataclasses.replace(plan, kept={**plan.kept, name: broken}))


def test_split_sizes_follow_the_plan() -> None:
    net = randomise(Branches(), 0)
    plan = dataclasses.replace(plan_pruning(net, 0.0), kept={"stem.0": [0, 3, 6, 7, 15]})
    pruned = apply_plan(net, plan, compensate="off")
    assert pruned.split.sizes == (2, 3)
    assert (pruned.detour[0].in_channels, pruned.merge[0].in_channels) == (3, 13)


def test_bias_compensation_is_exact_where_nothing_is_padded() -> None:
    net = randomise(nn.Sequential(conv(3, 16, 1), conv(16, 16, 3, padding=0), nn.Conv2d(16, 5, 1)), 1)
    plan = plan_pruning(net, 0.5)
    reference = mask_plan(net, plan, keep_beta=True)
    assert gap(apply_plan(net, plan, compensate="bias"), reference) < TOLERANCE
    assert gap(apply_plan(net, plan, compensate="off"), reference) > 1e-3
    exact = apply_plan(net, plan, compensate="exact")
    assert describe_structure(exact) == describe_structure(apply_plan(net, plan)), (
        "no carrier is spent where a bias will do"
    )


def test_bias_compensation_is_wrong_on_a_padded_border_and_right_inside() -> None:
    net = randomise(nn.Sequential(conv(3, 16), nn.Conv2d(16, 5, 3, padding=1)), 2)
    plan = plan_pruning(net, 0.5)
    reference, *others = (
        outputs_of(n).reshape(5, 64, 64)
        for n in (
            mask_plan(net, plan, keep_beta=True),
            apply_plan(net, plan),
            apply_plan(net, plan, compensate="off"),
        )
    )
    bias, off = ((other - reference).abs() for other in others)
    assert bias[:, 1:-1, 1:-1].max() < TOLERANCE < 1e-3 < off[:, 1:-1, 1:-1].max()
    assert bias.max() > 1e-6


def test_exact_compensation_costs_one_channel_a_consumer_at_most() -> None:
    net = randomise(nn.Sequential(conv(3, 16), nn.Conv2d(16, 5, 3, padding=1)), 2)
    plan = plan_pruning(net, 0.5)
    assert apply_plan(net, plan, compensate="exact")[0][0].out_channels == 9
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.zero_()
    assert apply_plan(net, plan, compensate="exact")[0][0].out_channels == 8, "nothing lost, nothing carried"


def test_a_head_that_three_levels_share_costs_three_carriers_and_a_bias_is_their_average() -> None:
    net = randomise(SharedHead(), 1)
    plan = dataclasses.replace(plan_pruning(net, 0.0), kept={f"levels.{level}.0": [0, 1, 2] for level in range(3)})
    reference = mask_plan(net, plan, keep_beta=True)
    exact = apply_plan(net, plan, compensate="exact")
    assert gap(exact, reference) < TOLERANCE
    assert exact.head[0][0].in_channels == 3 + 3
    constants = torch.stack([level[1].bias[3:].sigmoid() * level[1].bias[3:] for level in net.levels])
    lost = torch.einsum("vi,oihw->o", constants, net.head[0][0].weight[:, 3:]) / 3
    shift = net.head[0][1].running_mean - apply_plan(net, plan).head[0][1].running_mean
    torch.testing.assert_close(shift, lost)


def inside(net: nn.Module, reference: nn.Module) -> float:
    """Compare two networks away from the border of the image."""
    x = torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        return float((net(x) - reference(x))[..., 6:-6, 6:-6].abs().max())


def test_a_border_that_each_channel_bends_in_its_own_way_is_refused_and_a_bias_is_right_inside() -> None:
    net = randomise(nn.Sequential(conv(3, 8), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1)), 3)
    plan = plan_pruning(net, 0.5)
    with pytest.raises(ValueError, match="2: a removed channel does not reach it as a constant"):
        apply_plan(net, plan, compensate="exact")
    assert inside(apply_plan(net, plan, compensate="bias"), mask_plan(net, plan, keep_beta=True)) < TOLERANCE
    assert apply_plan(net, plan, compensate="off")[2].in_channels == 4


@pytest.mark.parametrize(
    "between",
    [
        nn.AvgPool2d(3, 1, padding=1),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AvgPool2d(3, 2, padding=1, divisor_override=5),
        nn.AvgPool2d(4, 3, ceil_mode=True),
        nn.Sequential(nn.ZeroPad2d(2), nn.Sigmoid(), nn.ConstantPad2d(1, 0.3)),
        nn.Sequential(nn.ZeroPad2d(1), conv(8, 8), nn.AvgPool2d(3, 1, 1)),
    ],
)
def test_a_border_that_is_the_same_in_all_channels_is_compensated_exactly(between: nn.Module) -> None:
    net = randomise(nn.Sequential(conv(3, 8), between, nn.Conv2d(8, 4, 3, padding=1)), 3)
    plan = plan_pruning(net, 0.5)
    reference = mask_plan(net, plan, keep_beta=True)
    assert gap(apply_plan(net, plan, compensate="exact"), reference) < TOLERANCE
    assert inside(apply_plan(net, plan, compensate="bias"), reference) < TOLERANCE


def test_a_consumer_without_a_bias_to_shift_is_named() -> None:
    net = randomise(nn.Sequential(conv(3, 8), nn.Conv2d(8, 4, 1, bias=False)), 4)
    plan = plan_pruning(net, 0.5)
    with pytest.raises(ValueError, match=r"1 has neither batch norm nor bias to shift; use .*'off' or 'exact'"):
        apply_plan(net, plan)
    assert gap(apply_plan(net, plan, compensate="exact"), mask_plan(net, plan, keep_beta=True)) < TOLERANCE
    with pytest.raises(ValueError, match="compensate 'some' is not known; choose one of: off, bias, exact"):
        apply_plan(net, plan, compensate="some")


def digest(net: nn.Module) -> str:
    state = hashlib.sha256(json.dumps(describe_structure(net)).encode())
    for name, tensor in net.state_dict().items():
        state.update(name.encode() + tensor.numpy().tobytes())
    return state.hexdigest()


def test_the_original_is_untouched_and_modes_are_kept() -> None:
    net = randomise(tiny(), 5).train()
    net.stem1.conv.weight.requires_grad_(False)
    before = digest(net)
    plan = plan_pruning(net, 0.6)
    for compensate in ("off", "bias", "exact"):
        pruned = apply_plan(net, plan, compensate=compensate)
        assert type(pruned) is type(net)
        assert pruned.training
        assert all(m.training for m in pruned.modules())
        frozen = [name for name, p in pruned.named_parameters() if not p.requires_grad]
        assert frozen == ["stem1.conv.weight"]
    assert digest(net) == before


def test_a_pruned_network_can_be_pruned_again() -> None:
    net = randomise(tiny(), 6)
    for _ in range(3):
        plan = plan_pruning(net, 0.4)
        reference = mask_plan(net, plan, keep_beta=True)
        net = apply_plan(net, plan, compensate="exact")
        assert gap(net, reference) < TOLERANCE


@pytest.mark.parametrize("make", [*TOYS, *DETECTORS])
def test_structure_and_weights_rebuild_a_pruned_network(make: Callable[[], nn.Module]) -> None:
    net = randomise(make(), 7)
    pruned = apply_plan(net, plan_pruning(net, 0.5), compensate="exact")
    structure = json.loads(json.dumps(describe_structure(pruned)))
    rebuilt = randomise(make(), 8)
    reshape_(rebuilt, structure)
    assert describe_structure(rebuilt) == structure
    rebuilt.load_state_dict(pruned.state_dict())
    assert torch.equal(outputs_of(rebuilt), outputs_of(pruned))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(ghost={"channels": 3}), "structure names layers that do not exist: ghost"),
        (lambda s: s.pop("split"), "structure does not name these layers: split"),
        (lambda s: s.update(split={"channels": 3}), "structure of split: expected .'sizes'., found"),
        (lambda s: s.update(split={"sizes": [3]}), "structure of split: 1 split sizes, the layer has 2"),
        (lambda s: s["coarse"].update({"in": 0}), "structure of coarse: .* not all positive whole numbers"),
        (lambda s: s["coarse"].update(groups=3), "structure of coarse: 3 groups do not divide"),
    ],
)
def test_a_structure_of_another_network_is_refused_and_changes_nothing(
    change: Callable[[dict], None], message: str
) -> None:
    net = Branches()
    structure = describe_structure(net)
    structure["stem.0"]["out"] = 5
    change(structure)
    before = digest(net)
    with pytest.raises(ValueError, match=message):
        reshape_(net, structure)
    assert digest(net) == before
