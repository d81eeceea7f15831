"""Networks drawn at random: whatever they are made of, the pruned one computes what the masked one does."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_networks import largest_gap, randomise
from torch import Tensor, nn

from paperlib.costs import cost
from paperlib.pruning import apply_plan, mask_plan, plan_pruning
from paperlib.structure import describe_structure, reshape_

W, SIDE = 12, 8


def unit(inputs: int, outputs: int, kernel: int = 3, *, act: bool = True, **options: int) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU() if act else nn.Identity())


class Part(nn.Module):
    """One step of a random network, from W channels to W channels."""

    def __init__(self, compute: Callable[["Part", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.compute, self.width = compute, W // 3
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def gate(part: Part, x: Tensor) -> Tensor:
    return x * part.up(F.relu(part.down(x.mean((2, 3), keepdim=True)))).sigmoid()


def attend(part: Part, x: Tensor) -> Tensor:
    return x * part.one(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


def shuffle(part: Part, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 3, channels // 3, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def swap(part: Part, x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([second, first], 1)


def cross(part: Part, x: Tensor) -> Tensor:
    first, second, third = torch.split(x, part.width, 1)
    return torch.cat([third, part.a(first), second], 1)


def halves(part: Part, x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return torch.cat([x[:, half:], part.a(x)[:, :half]], 1)


def functional_norm(part: Part, x: Tensor) -> Tensor:
    norm = part.norm
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def two_norms(part: Part, x: Tensor) -> Tensor:
    x = part.conv(x)
    return F.relu(part.first(x)) + F.relu(part.second(x))


def dense(part: Part, x: Tensor) -> Tensor:
    return part.b(torch.cat([x, part.a(x), F.max_pool2d(x, 3, 1, 1)], 1))


PARTS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: unit(W, W),
    "grouped": lambda: unit(W, W, groups=3),
    "depthwise": lambda: nn.Sequential(unit(W, W, groups=W), unit(W, W, 1)),
    "multiplier": lambda: nn.Sequential(unit(W, 2 * W, groups=W), unit(2 * W, W, 1)),
    "dilated": lambda: nn.Sequential(nn.Conv2d(W, W, 3, padding=2, dilation=2), nn.BatchNorm2d(W)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(W, W, 3, padding=1, groups=2), nn.BatchNorm2d(W)),
    "residual": lambda: Part(lambda p, x: F.relu(x + p.a(x)), a=unit(W, W, act=False)),
    "called twice": lambda: Part(lambda p, x: p.a(p.a(x)), a=unit(W, W)),
    "dense": lambda: Part(dense, a=unit(W, W), b=unit(3 * W, W, 1)),
    "gate": lambda: Part(gate, down=nn.Conv2d(W, 4, 1), up=nn.Conv2d(4, W, 1)),
    "spatial attention": lambda: Part(attend, one=nn.Conv2d(2, 1, 3, padding=1)),
    "shuffle": lambda: Part(shuffle),
    "swap": lambda: Part(swap),
    "cross": lambda: Part(cross, a=unit(W // 3, W // 3)),
    "halves": lambda: Part(halves, a=unit(W, W)),
    "slice": lambda: Part(lambda p, x: p.a(x[:, 2:-1]), a=unit(W - 3, W)),
    "strided": lambda: Part(lambda p, x: p.a(x[:, 1::3]), a=unit(4, W)),
    "group norm": lambda: nn.Sequential(nn.Conv2d(W, W, 3, padding=1), nn.GroupNorm(6, W), nn.ReLU()),
    "instance norm": lambda: nn.Sequential(nn.InstanceNorm2d(W, affine=True), nn.ReLU()),
    "channels last": lambda: Part(lambda p, x: p.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(W)),
    "functional norm": lambda: Part(functional_norm, norm=nn.BatchNorm2d(W)),
    "two norms": lambda: Part(
        two_norms, conv=nn.Conv2d(W, W, 1), first=nn.BatchNorm2d(W), second=nn.BatchNorm2d(W)
    ),
    "norm first": lambda: Part(
        lambda p, x: x + p.conv(F.relu(p.norm(x))), conv=nn.Conv2d(W, W, 3, padding=1), norm=nn.BatchNorm2d(W)
    ),
    "dense, norm first": lambda: Part(
        lambda p, x: p.b(p.norm(torch.cat([p.a(x), x], 1)).relu()),
        a=nn.Conv2d(W, W, 1), b=nn.Conv2d(2 * W, W, 1), norm=nn.BatchNorm2d(2 * W),
    ),
    "detached": lambda: Part(lambda p, x: x + p.a(x.detach()), a=unit(W, W)),
    "slopes": lambda: nn.PReLU(W),
    "pool": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}  # fmt: skip


def build(names: list[str]) -> nn.Module:
    return nn.Sequential(unit(3, W), *(PARTS[name]() for name in names), unit(W, W), nn.Conv2d(W, 3, 3))


def check(names: list[str], ratio: float) -> None:
    torch.manual_seed(0)
    net = randomise(build(names))
    inputs = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64)
    plan = plan_pruning(net, ratio, image_size=SIDE)
    small = apply_plan(net, plan, compensate="off")
    assert largest_gap(small, mask_plan(net, plan), inputs) < 1e-10
    assert plan.cost_after == cost(small, SIDE)
    try:
        exact = apply_plan(net, plan, compensate="exact")
    except ValueError as error:
        assert "does not reach it as a constant" in str(error)
        assert {"gate", "spatial attention"} & set(names)
    else:
        assert largest_gap(exact, mask_plan(net, plan, keep_beta=True), inputs) < 1e-8
    fresh = build(names).double().eval()
    reshape_(fresh, describe_structure(small))
    fresh.load_state_dict(small.state_dict())
    assert largest_gap(fresh, small, inputs) == 0
    small.train()(inputs).sum().backward()


@pytest.mark.parametrize("name", PARTS)
def test_each_part_is_cut_exactly(name: str) -> None:
    check([name], 0.6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(names=st.lists(st.sampled_from(sorted(PARTS)), min_size=2, max_size=5), ratio=st.sampled_from([0.3, 0.6, 0.9]))
def test_parts_in_any_order_are_cut_exactly(names: list[str], ratio: float) -> None:
    check(names, ratio)
