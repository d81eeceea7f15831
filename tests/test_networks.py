"""Anyone's network: what is not known is held, all else is pruned exactly, and the network stays as it was."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations, prune
from torchvision.ops import FrozenBatchNorm2d

from paperlib.costs import cost
from paperlib.network_files import load_network, save_network
from paperlib.pruning import (
    absolute_gammas,
    apply_plan,
    mask_plan,
    plan_pruning,
    register_importance,
    rescale_gamma_,
    trace_channels,
)
from paperlib.structure import describe_structure, reshape_

SIDE = 12
Body = Callable[["Net", Tensor], Tensor]


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    """Two convolutions with batch norm, `body` on the second, and an output layer."""

    def __init__(self, body: Body, out: nn.Module | None = None, **parts: nn.Module) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 8)
        self.body, self.out = body, out or nn.Conv2d(8, 3, 1)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self, self.b(self.a(x))))


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for module in net.double().eval().modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.uniform_(-1, 1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(module, nn.GroupNorm | nn.InstanceNorm2d) and module.weight is not None:
            for tensor in (module.weight, module.bias):
                tensor.data.uniform_(-1, 1, generator=generator)
        elif isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-1, 1, generator=generator)
    return net


def largest_gap(left: nn.Module, right: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float((left(inputs) - right(inputs)).abs().max())


def check_exact(
    net: nn.Module, prunable: int, inputs: Tensor | None = None, exact: bool = True, ratio: float = 0.4
) -> nn.Module:
    """Prune `net` and compare; `exact` tells whether constants pass, too, or are refused."""
    randomise(net)
    if inputs is None:
        inputs = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plan = plan_pruning(net, ratio, image_size=SIDE)
    assert len(plan.kept) == prunable
    assert plan.channels_kept < plan.channels_total
    small = apply_plan(net, plan, compensate="off")
    assert largest_gap(small, mask_plan(net, plan), inputs) < 1e-10
    if exact:
        assert (
            largest_gap(apply_plan(net, plan, compensate="exact"), mask_plan(net, plan, keep_beta=True), inputs) < 1e-9
        )
    else:
        with pytest.raises(ValueError, match="does not reach it as a constant"):
            apply_plan(net, plan, compensate="exact")
    small.train()(inputs).sum().backward()
    return small


def pixels(net: Net, x: Tensor) -> Tensor:
    return x.view(x.size(0), -1)


def squeeze_and_excite(net: Net, x: Tensor) -> Tensor:
    batch, channels, _, _ = x.size()
    gate = net.up(F.relu(net.down(F.adaptive_avg_pool2d(x, 1).view(batch, channels))))
    return x * torch.sigmoid(gate).view(batch, channels, 1, 1)


def gate_by_convolution(net: Net, x: Tensor) -> Tensor:
    return x * net.gate(F.relu(net.squeeze(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


def shuffle(net: Net, x: Tensor) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, 2, channels // 2, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


def chunked(net: Net, x: Tensor) -> Tensor:
    parts = list(x.chunk(2, 1))
    return torch.cat([parts[1], net.extra(parts[0]), parts[0]], 1)


def halves(net: Net, x: Tensor) -> Tensor:
    first, second = torch.split(x, x.shape[1] // 2, dim=1)
    return torch.cat([second, first], 1)


CONV: Callable[[], nn.Module] = lambda: nn.Conv2d(8, 8, 3, padding=1)  # noqa: E731
NORM: Callable[[], nn.Module] = lambda: nn.BatchNorm2d(8)  # noqa: E731


def conv1(inputs: int) -> nn.Module:
    return nn.Conv2d(inputs, 8, 1)


def wide(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


def two_norms(net: Net, x: Tensor) -> Tensor:
    x = net.c(x)
    return net.f(x).relu() + net.g(x)


def functional_layers(net: Net, x: Tensor) -> Tensor:
    norm = net.norm
    x = F.conv2d(x, net.c.weight, None, (2, 2), padding=1)
    x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, eps=norm.eps)
    return F.linear(x.relu().mean((2, 3)), net.e.weight, net.e.bias)


def norms_of_halves(net: Net, x: Tensor) -> Tensor:
    first, second = net.c(x).chunk(2, 1)
    return torch.cat([net.f(first), net.g(second).relu()], 1)


class Scale(nn.Module):
    """A layer scale and an offset: parameters of one value per channel that the code reads."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma, self.offset = nn.Parameter(torch.rand(shape)), nn.Parameter(torch.rand(8))
        self.register_buffer("mean", torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.gamma + self.offset.view(1, -1, 1, 1)


def dense(net: Net, x: Tensor) -> Tensor:
    x = torch.cat([x, net.c(x)], 1)
    return net.last(torch.cat([net.d(F.relu(net.first(x))), x], 1))


def before_activation(net: Net, x: Tensor) -> Tensor:
    x = net.c(x)
    x = x + net.e(F.relu(net.second(net.d(F.relu(net.first(x))))))
    return F.relu(net.last(F.avg_pool2d(x, 3, 1, 1)))


def shared_by_levels(net: Net, x: Tensor) -> Tensor:
    large = net.first(net.c(x))
    return large + F.interpolate(net.second(net.c(F.max_pool2d(x, 2))), scale_factor=2)


def coordinates(net: Net, x: Tensor) -> Tensor:
    _, _, height, width = x.shape
    rows, columns = F.adaptive_avg_pool2d(x, (None, 1)), F.adaptive_avg_pool2d(x, (1, None)).permute(0, 1, 3, 2)
    rows, columns = torch.split(net.mix(torch.cat([rows, columns], 2)), [height, width], 2)
    return x * net.up(rows).sigmoid() * net.across(columns.permute(0, 1, 3, 2)).sigmoid()


def selective(net: Net, x: Tensor) -> Tensor:
    branches = torch.stack([x, net.c(x)], 1)
    mean = branches.sum(1).mean((2, 3), keepdim=True)
    return (branches * torch.stack([gate(mean) for gate in net.gates], 1).softmax(1)).sum(1)


def selective_views(net: Net, x: Tensor) -> Tensor:
    branches = torch.stack([x, net.c(x)], 1)
    gates = net.gates(branches.sum(1).mean((2, 3), keepdim=True))
    gates = gates.view(gates.shape[0], 2, gates.shape[1] // 2, 1, 1)
    return (branches * torch.softmax(gates, dim=1)).sum(1)


def split_attention(net: Net, x: Tensor) -> Tensor:
    channels = x.shape[1]
    parts = torch.split(x, channels // 2, 1)
    gates = torch.split(net.gate(sum(parts).mean((2, 3), keepdim=True)).sigmoid(), channels // 2, 1)
    return gates[0] * parts[0] + gates[1] * parts[1]


def sigmoid_gate(net: Net, x: Tensor) -> Tensor:
    return net.loud(x) * net.norm(net.gate(x)).sigmoid()


class Numbers(nn.Module):
    """Single numbers that the code computes from parameters: an exponent, and the weights of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.w = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        weights = F.relu(self.w)
        x = (weights[0] * x + weights[1] * x.tanh()) / (weights.sum() + 1e-4)
        return F.avg_pool2d(x.clamp(min=0.1).pow(self.p), 2).pow(1 / self.p) * torch.tensor(0.5)


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


with warnings.catch_warnings(action="ignore"):  # it is deprecated, and in use
    compiled = torch.jit.script(swish)


def selected(net: Net, x: Tensor) -> Tensor:
    x = torch.where(x > 0.1, x, 0.1 * x).masked_fill(x.gt(0.9), 0.9)
    return x.where(x <= 0.5, x.abs() + 1) * (x > 0.2).float()


def new_activations(net: Net, x: Tensor) -> Tensor:
    return torch.maximum(torch.nan_to_num(x).type_as(x) - 0.3, torch.zeros_like(x)).clone().mul_(2).exp_()


def in_statements(net: Net, x: Tensor) -> Tensor:
    x = x * 1
    x.add_(1)
    F.hardtanh_(x, 0.0, 1.5)
    return x


LINEAR = nn.Linear(8 * SIDE * SIDE, 3)
PASSING: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "view": (lambda: Net(pixels, nn.Linear(8 * SIDE * SIDE, 3)), 2),
    "reshape": (lambda: Net(lambda n, x: x.reshape(x.shape[0], -1), nn.Linear(8 * SIDE * SIDE, 3)), 2),
    "mean": (lambda: Net(lambda n, x: x.mean([2, 3]), nn.Linear(8, 3)), 2),
    "amax": (lambda: Net(lambda n, x: torch.amax(x, (-1, -2), keepdim=True)), 2),
    "max of one dimension": (lambda: Net(lambda n, x: x.max(3)[0].mean(2), nn.Linear(8, 3)), 2),
    "squeeze": (lambda: Net(lambda n, x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1), nn.Linear(8, 3)), 2),
    "unsqueeze": (lambda: Net(lambda n, x: x.unsqueeze(2).squeeze(2)), 2),
    "clamp": (lambda: Net(lambda n, x: x.clamp(0, 6)), 2),
    "numbers": (lambda: Net(lambda n, x: (x / 2).abs() * 3), 2),
    "hard swish by hand": (lambda: Net(lambda n, x: x * F.relu6(x + 3) / 6), 2),
    "reflection": (lambda: Net(lambda n, x: F.pad(x, (1, 1, 1, 1), mode="reflect")), 2),
    "replication": (lambda: Net(lambda n, x: n.pad(x), pad=nn.ReplicationPad2d(2)), 2),
    "permuted": (lambda: Net(lambda n, x: x.permute(0, 2, 3, 1), nn.Linear(8, 3)), 2),
    "permuted and back": (lambda: Net(lambda n, x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)), 2),
    "functional pools": (lambda: Net(lambda n, x: F.avg_pool2d(F.max_pool2d(x, 2), 2)), 2),
    "PReLU per channel": (lambda: Net(lambda n, x: n.slope(x), slope=nn.PReLU(8)), 2),
    "instance norm": (lambda: Net(lambda n, x: n.norm(x), nn.Conv2d(8, 3, 1), norm=nn.InstanceNorm2d(8)), 2),
    "channel shuffle": (lambda: Net(shuffle), 2),
    "channel shuffle module": (lambda: Net(lambda n, x: n.mix(x), mix=nn.ChannelShuffle(4)), 2),
    "pixel unshuffle": (lambda: Net(lambda n, x: F.pixel_unshuffle(x, 2), nn.Conv2d(32, 3, 1)), 2),
    "pixel shuffle": (lambda: Net(lambda n, x: F.pixel_shuffle(x, 2), nn.Conv2d(2, 3, 1)), 2),
    "chunk": (lambda: Net(chunked, nn.Conv2d(12, 3, 1), extra=conv(4, 4)), 3),
    "split by half": (lambda: Net(halves), 2),
    "spatial slice": (lambda: Net(lambda n, x: x[:, :, 1:-1, ::2]), 2),
    "zero padding": (lambda: Net(lambda n, x: n.pad(x), pad=nn.ZeroPad2d(1)), 2),
    "functional padding": (lambda: Net(lambda n, x: F.pad(x, (1, 1))), 2),
    "sum pooling": (lambda: Net(lambda n, x: n.pool(x), pool=nn.AvgPool2d(2, divisor_override=1)), 2),
    "layer scale": (lambda: Net(lambda n, x: n.scale(x), scale=Scale(1, 8, 1, 1)), 2),
    "activation before the norm": (lambda: Net(lambda n, x: n.norm(F.gelu(n.c(x))), c=CONV(), norm=NORM()), 3),
    "pooling before the norm": (lambda: Net(lambda n, x: n.norm(F.max_pool2d(n.c(x), 2)), c=CONV(), norm=NORM()), 3),
    "constant gate of what has no norm": (lambda: Net(sigmoid_gate, loud=CONV(), gate=CONV(), norm=NORM()), 2),
    "elementwise": (lambda: Net(lambda n, x: torch.log1p(x).sin() * torch.rsub(torch.rsqrt(x.square() + 1), 3)), 2),
    "numbers by name": (lambda: Net(lambda n, x: torch.divide(x.multiply(3), 2).subtract(x)), 2),
    "device and type": (lambda: Net(lambda n, x: x.to(x.device).to(torch.float64).type(torch.float64)), 2),
    "flipped and rolled": (lambda: Net(lambda n, x: torch.roll(x.flip([2, 3]), 1, 3) + torch.flip(x, (-1,))), 2),
    "moved": (lambda: Net(lambda n, x: x.movedim(1, -1).relu().movedim(-1, 1)), 2),
    "repeated pixels": (lambda: Net(lambda n, x: x.repeat(1, 1, 2, 2)), 2),
    "values of a maximum": (lambda: Net(lambda n, x: x.max(dim=3, keepdim=True).values), 2),
    "functional PReLU": (lambda: Net(lambda n, x: F.prelu(x, n.slope.weight), slope=nn.PReLU(8)), 2),
    "circular padding": (lambda: Net(lambda n, x: n.pad(x), pad=nn.CircularPad2d(1)), 2),
    "split attention": (lambda: Net(split_attention, nn.Conv2d(4, 3, 1), gate=nn.Conv2d(4, 8, 1)), 2),
    "gated half": (lambda: Net(lambda n, x: F.glu(x, 1) + n.gate(x), nn.Conv2d(4, 3, 1), gate=nn.GLU(1)), 2),
    "spread of pixels": (lambda: Net(lambda n, x: x.flatten(2).std(2) + x.var((2, 3)), nn.Linear(8, 3)), 2),
    "transposed": (lambda: Net(lambda n, x: x.mean((2, 3)).t().T + x.flatten(2).mT.mean(1), nn.Linear(8, 3)), 2),
    "parts of another name": (lambda: Net(lambda n, x: torch.hstack([*torch.tensor_split(x, 2, 1)][::-1])), 2),
    "concatenate": (lambda: Net(lambda n, x: torch.concatenate([x, n.c(x)], 1), nn.Conv2d(16, 3, 1), c=conv(8, 8)), 3),
    "norm after a concatenation": (
        lambda: Net(dense, nn.Conv2d(24, 3, 1), c=CONV(), d=conv1(16), first=wide(16), last=wide(24)),
        4,
    ),
    "norm before the convolution": (
        lambda: Net(before_activation, c=CONV(), d=CONV(), e=CONV(), first=NORM(), second=NORM(), last=NORM()),
        5,
    ),
    "two norms": (lambda: Net(lambda n, x: n.f(n.c(x)).relu() * n.g(n.c(x)), c=CONV(), f=NORM(), g=NORM()), 3),
    "two norms of one output": (lambda: Net(two_norms, c=CONV(), f=NORM(), g=NORM()), 3),
    "a norm for each level": (lambda: Net(shared_by_levels, c=CONV(), first=NORM(), second=NORM()), 3),
    "norm behind a depthwise convolution": (
        lambda: Net(lambda n, x: n.norm(n.d(n.c(x))), c=CONV(), d=nn.Conv2d(8, 8, 3, groups=8), norm=NORM()),
        4,
    ),
    "functional layers": (
        lambda: Net(
            functional_layers, nn.Linear(8, 3), c=nn.Conv2d(8, 8, 3, 2, 1, bias=False), norm=NORM(), e=nn.Linear(8, 8)
        ),
        3,
    ),
    "norms of halves": (lambda: Net(norms_of_halves, c=CONV(), f=wide(4), g=wide(4)), 3),
    "linear batch norm": (lambda: Net(pixels, nn.Sequential(LINEAR, nn.BatchNorm1d(3), nn.Linear(3, 2))), 3),
}
ONLY_OFF: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "sum": (lambda: Net(lambda n, x: x.sum((2, 3)), nn.Linear(8, 3)), 2),
    "stack": (lambda: Net(lambda n, x: torch.stack([x, n.c(x)], 1).amax(1), c=conv(8, 8)), 3),
    "mean of a stack": (lambda: Net(lambda n, x: torch.stack([x, n.c(x)]).mean(0), c=conv(8, 8)), 3),
    "joined pixels": (lambda: Net(lambda n, x: torch.cat([x, n.c(x)], 2), c=conv(8, 8)), 3),
    "layer scale of a branch without norm": (
        lambda: Net(lambda n, x: x + n.scale(n.c(x)), c=CONV(), scale=Scale(8, 1, 1)),
        2,
    ),
    "viewed as another": (lambda: Net(lambda n, x: F.softmax(x.flatten(2), -1).view_as(x) * x), 2),
    "unbound rows": (lambda: Net(lambda n, x: sum(torch.unbind(x, 2)).mean(2), nn.Linear(8, 3)), 2),
    "squeeze and excitation": (lambda: Net(squeeze_and_excite, down=nn.Linear(8, 4), up=nn.Linear(4, 8)), 2),
    "attention over stacked branches": (
        lambda: Net(lambda n, x: x * torch.stack([n.c(x), x]).softmax(0)[1], c=CONV()),
        2,
    ),
    "coordinate attention": (
        lambda: Net(coordinates, mix=conv(8, 4, 1), up=nn.Conv2d(4, 8, 1), across=nn.Conv2d(4, 8, 1)),
        3,
    ),
    "selective kernels": (lambda: Net(selective, c=conv(8, 8), gates=nn.ModuleList([nn.Conv2d(8, 8, 1)] * 2)), 3),
    "selective kernels by views": (lambda: Net(selective_views, c=conv(8, 8), gates=nn.Conv2d(8, 16, 1)), 3),
    "convolutional gate": (lambda: Net(gate_by_convolution, squeeze=nn.Conv2d(8, 2, 1), gate=nn.Conv2d(2, 8, 1)), 2),
}
# What emits something else than zero where its input is zero, so that only `exact` keeps the function.
LIFTED: dict[str, Callable[[], nn.Module]] = {
    "single numbers": lambda: Net(lambda n, x: n.numbers(x), numbers=Numbers()),
    "compiled function": lambda: Net(lambda n, x: compiled(x) + 1),
    "selection": lambda: Net(selected),
    "new names": lambda: Net(new_activations),
    "in statements": lambda: Net(in_statements),
}


def assigned(net: Net, x: Tensor) -> Tensor:
    x = x * 1
    x[:, :, 0] = 0.5
    return x


HELD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "hard number": (lambda: Net(lambda n, x: x.view(-1, 8 * SIDE * SIDE), nn.Linear(8 * SIDE * SIDE, 3)), "view"),
    "layer norm": (lambda: Net(lambda n, x: n.norm(x), norm=nn.LayerNorm([8, SIDE, SIDE])), "LayerNorm"),
    "channel mean": (lambda: Net(lambda n, x: x * x.mean(1, keepdim=True)), "mean"),
    "constant split": (lambda: Net(lambda n, x: torch.cat(torch.split(x, [2, 6], 1)[::-1], 1)), "split"),
    "functional convolution": (lambda: Net(lambda n, x: F.conv2d(x, n.held.weight), held=nn.Conv2d(8, 8, 1)), "conv2d"),
    "positions of a maximum": (lambda: Net(lambda n, x: x.max(3)[1].to(x.dtype).mean(2), nn.Linear(8, 3)), "no batch"),
    "flipped channels": (lambda: Net(lambda n, x: torch.flip(x, [1])), "flip"),
    "repeated channels": (lambda: Net(lambda n, x: x.repeat(1, 2, 1, 1), nn.Conv2d(16, 3, 1)), "repeat"),
    "padded channels": (lambda: Net(lambda n, x: F.pad(x, (0, 0, 0, 0, 2, 2)), nn.Conv2d(12, 3, 1)), "pad"),
    "gate that is added": (lambda: Net(lambda n, x: x + n.gate(x), gate=nn.Conv2d(8, 8, 1)), "no batch norm"),
    "weight of a layer read by the code": (
        lambda: Net(lambda n, x: F.linear(n.e(x.mean((2, 3))), n.e.weight.t()), nn.Linear(8, 3), e=nn.Linear(8, 4)),
        "e.weight",
    ),
    "assignment to a part": (lambda: Net(assigned), "setitem"),
    "scale by channel count": (lambda: Net(lambda n, x: x / x.size(1)), "truediv"),
}


@pytest.mark.parametrize("name", PASSING)
def test_an_operation_that_keeps_channels_is_pruned_through_exactly(name: str) -> None:
    make, prunable = PASSING[name]
    check_exact(make(), prunable)


@pytest.mark.parametrize("name", LIFTED)
def test_what_lifts_zero_is_compensated_exactly(name: str) -> None:
    net = randomise(LIFTED[name]())
    plan = plan_pruning(net, 0.4, image_size=SIDE)
    assert len(plan.kept) == 2 and not plan.notes
    inputs = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    small = apply_plan(net, plan, compensate="exact")
    assert largest_gap(small, mask_plan(net, plan, keep_beta=True), inputs) < 1e-9
    small.train()(inputs).sum().backward()


@pytest.mark.parametrize("name", ONLY_OFF)
def test_where_a_constant_would_not_stay_constant_exact_compensation_is_refused(name: str) -> None:
    make, prunable = ONLY_OFF[name]
    check_exact(make(), prunable, exact=False)


@pytest.mark.parametrize("name", HELD)
def test_an_operation_of_unknown_effect_holds_its_channels_and_is_named(name: str) -> None:
    make, operation = HELD[name]
    net = make()
    check_exact(net, prunable=1)
    assert [note for note in plan_pruning(net, 0.3, image_size=SIDE).notes if "b.0" in note and operation in note]


class ActivatedNorm(nn.BatchNorm2d):
    """Batch norm and activation in one module."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, self.training))


class SamePadding(nn.Conv2d):
    """A convolution that pads its input itself."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias)


class Standardised(nn.Conv2d):
    """A convolution that standardises its weights over all inputs: none of these can be removed."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias)


def chain(first: nn.Module, norm: nn.Module, second: nn.Module) -> nn.Module:
    return nn.Sequential(first, norm, second, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))


def test_batch_norms_and_convolutions_of_other_classes_are_pruned() -> None:
    check_exact(chain(nn.Conv2d(3, 8, 3), ActivatedNorm(8), nn.Conv2d(8, 6, 3, padding=1)), 2)
    check_exact(chain(nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8), nn.Conv2d(8, 6, 3)), 2)
    check_exact(chain(nn.Conv2d(3, 8, 3), ActivatedNorm(8), SamePadding(8, 6, 3)), 2)
    with pytest.raises(ValueError, match="no prunable channel: 0 cannot be pruned for conv2d"):
        plan_pruning(chain(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Standardised(8, 6, 3)), 0.3, image_size=SIDE)


def test_one_dimensional_networks_are_pruned() -> None:
    net = nn.Sequential(nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3), nn.BatchNorm1d(4))
    net = nn.Sequential(*net, nn.Flatten(), nn.Linear(4 * 16, 2))
    inputs = torch.rand(2, 1, 20, dtype=torch.float64)
    check_exact(net, 2, inputs)
    assert plan_pruning(net, 0.3, example_inputs=inputs).cost_after is not None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(12)), "1 Conv2d, 1 LayerNorm"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4)), "FrozenBatchNorm2d has no gamma to learn"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), "BatchNorm2d with affine=False"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.LazyBatchNorm2d()), "1 has no weights yet; run the network once"),
        (lambda: nn.Sequential(torch.jit.ScriptModule()), "0 is a TorchScript module"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "for being an output of the network"),
    ],
)
def test_a_network_without_prunable_channels_hears_what_it_has(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_pruning(make(), 0.3, image_size=SIDE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: parametrizations.weight_norm(layer), "a.0 has parametrised weights .*remove_parametrizations"),
        (lambda layer: parametrizations.spectral_norm(layer), "a.0 has parametrised weights .*remove_parametrizations"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "a.0 has parametrised weights .*prune.remove"),
    ],
)
def test_parametrised_weights_are_refused_by_name(change: Callable[[nn.Module], object], message: str) -> None:
    net = Net(lambda n, x: x)
    change(net.a[0])
    with pytest.raises(ValueError, match=message):
        plan_pruning(net, 0.3, image_size=SIDE)


class Auxiliary(nn.Module):
    """A second head that only training calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = conv(3, 8), conv(8, 8), nn.Sequential(conv(8, 6), nn.Conv2d(6, 2, 1))
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x)
        out = self.out(self.b(x))
        return (out, self.aux(x)) if self.training else out


def test_what_only_training_calls_is_cut_with_the_rest() -> None:
    net = randomise(Auxiliary())
    plan = plan_pruning(net, 0.4, image_size=SIDE)
    assert set(plan.kept) == {"a.0", "b.0", "aux.0.0"}
    small, masked = apply_plan(net, plan, compensate="off"), mask_plan(net, plan)
    x = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64)
    assert largest_gap(small, masked, x) < 1e-10
    for module in (small, masked):  # batch norms as in evaluation, so that masked channels stay silent
        module.training = True
    assert float((small(x)[1] - masked(x)[1]).detach().abs().max()) < 1e-10


class Stage(nn.Module):
    """Leaves the output of a side head behind, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = conv(8, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.main(x)
        if self.training:
            self.seen = self.side(x)
        return x


class SideHeads(nn.Module):
    """Side heads in a list of stages."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.stages, self.out = conv(3, 8), nn.ModuleList([Stage(), Stage()]), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.a(x)
        for stage in self.stages:
            x = stage(x)
        out = self.out(x)
        return (out, *(stage.seen for stage in self.stages)) if self.training else out


class Supervised(nn.Module):
    """Computes its losses itself, and needs targets for them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux, self.out = conv(3, 8), conv(8, 6), nn.Conv2d(8, 2, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        x = self.a(x)
        out = self.out(self.b(x))
        if not self.training:
            return out
        if targets is None:
            raise ValueError("targets are needed")
        return {"main": self.distance(out, targets), "aux": self.aux(x).abs().mean()}

    def distance(self, out: Tensor, targets: Tensor) -> Tensor:
        return (out - targets).square().mean()


class SupervisedByList(Supervised):
    """Counts its targets, which no tracer can follow: what `aux` may read is held."""

    def distance(self, out: Tensor, targets: Tensor) -> Tensor:
        return sum(((each - target).square().mean() for each, target in zip(out, list(targets), strict=True)), out[0])


@pytest.mark.parametrize(
    ("make", "kept", "arguments"),
    [(SideHeads, 3, ()), (Supervised, 2, (torch.rand(2, 3, SIDE, SIDE),)), (SupervisedByList, 1, ([0.0, 1.0],))],
)
def test_a_pruned_network_trains_with_all_that_only_training_calls(
    make: Callable[[], nn.Module], kept: int, arguments: tuple[object, ...]
) -> None:
    net = randomise(make())
    plan = plan_pruning(net, 0.4, image_size=SIDE)
    assert len(plan.kept) == kept
    assert plan.channels_kept < plan.channels_total
    out = apply_plan(net, plan).train()(torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64), *arguments)
    for each in out.values() if isinstance(out, dict) else out:
        each.sum().backward(retain_graph=True)


class Remembers(nn.Module):
    """Keeps what it has seen, and takes an option."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out, self.seen = conv(3, 8), nn.Conv2d(8, 3, 1), []
        self.counters = [torch.zeros(())]
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, profile: bool = False) -> Tensor:
        self.last = self.a(x)
        self.calls += 1
        for counter in self.counters:
            counter.add_(1)
        self.seen.append(self.last.shape)
        if profile:
            raise RuntimeError("not asked for")
        return self.out(self.last)


def test_planning_leaves_the_network_as_it_was() -> None:
    net = randomise(Remembers()).train()
    seen_by_hook: list[object] = []
    net.a.register_forward_hook(lambda module, args, out: seen_by_hook.append(out))
    net(torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64))
    before, last = vars(net).copy(), net.last
    plan = plan_pruning(net, 0.4, image_size=SIDE)
    small = apply_plan(net, plan, compensate="off")
    assert len(seen_by_hook) == 1
    assert net.last is last
    assert (vars(net), net.seen) == (before, [last.shape])
    assert (float(net.calls), float(net.counters[0])) == (1, 1)
    assert all(part.training for part in (*net.modules(), *small.modules()))
    small(torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64))
    assert len(seen_by_hook) == 2, "hooks go with the pruned network"


def test_shared_weights_and_the_memory_format_survive() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.out = conv(3, 8), conv(8, 8), conv(8, 8), nn.Conv2d(16, 3, 1)
            self.b[0].weight = self.a[0].weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.out(torch.cat([self.a(x), self.b(x)], 1))

    small = check_exact(Shared().to(memory_format=torch.channels_last), 3)
    assert small.a[0].weight is small.b[0].weight
    assert small.a[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_is_traced_again_only_when_something_in_it_has_changed() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out, self.options = conv(3, 8), nn.Conv2d(8, 3, 1), {"norms": [False]}

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.out(x * x.mean(1, keepdim=True) if self.options["norms"][0] else x)

    net = Optional()
    graph = trace_channels(net)
    net.a[0].weight.data.zero_()
    assert trace_channels(net.train()) is graph
    net.options["norms"][0] = True
    assert trace_channels(net).held
    net.options["norms"][0], net.a[0] = False, nn.Conv2d(3, 6, 3)
    net.a[1], net.out = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)
    assert len(trace_channels(net).layers["a.0"].outputs) == 6


def test_wrappers_are_unwrapped() -> None:
    net = randomise(Net(lambda n, x: x))
    plan = plan_pruning(nn.DataParallel(net), 0.4, image_size=SIDE)
    assert plan == plan_pruning(net, 0.4, image_size=SIDE)
    assert type(apply_plan(nn.DataParallel(net), plan)) is Net


def test_a_network_that_cannot_be_traced_is_refused_with_the_module_and_the_way_out() -> None:
    class Depends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="cannot trace inner .Depends.: .*traced_method"):
        trace_channels(Net(lambda n, x: n.inner(x), inner=Depends()))


class HeadFirst(nn.Module):
    """Registers its head before its trunk, and turns pixels into channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.a = nn.Conv2d(8, 3, 1), conv(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.out(self.a(torch.cat(parts, 1)))


def test_the_convolution_that_is_executed_first_decides_the_channels_of_the_image() -> None:
    check_exact(HeadFirst(), 1)
    assert cost(HeadFirst(), SIDE).gmacs == pytest.approx((12 * 8 * 9 + 8 * 3) * (SIDE // 2) ** 2 / 1e9)


def test_a_ratio_needs_no_input_and_costs_take_the_given_one() -> None:
    class Strip(Net):
        def __init__(self) -> None:
            super().__init__(lambda n, x: torch.flatten(x, 1), nn.Linear(8 * 4 * 9, 3))

    net = randomise(Strip())
    inputs = torch.rand(1, 3, 4, 9, dtype=torch.float64)
    blind, seeing = plan_pruning(net, 0.4), plan_pruning(net, 0.4, example_inputs=inputs)
    assert blind.kept == seeing.kept
    assert blind.cost_after is None
    assert "give example_inputs" in blind.notes[-1]
    assert seeing.cost_after == cost(apply_plan(net, seeing, compensate="off"), example_inputs=inputs)
    with pytest.raises(ValueError, match="image_size 800: Strip does not accept this image size"):
        plan_pruning(net, gmacs=0.001)


def test_the_structure_of_pruned_slopes_travels() -> None:
    net = Net(lambda n, x: n.slope(x), slope=nn.PReLU(8))
    small = check_exact(net, 2)
    fresh = Net(lambda n, x: n.slope(x), slope=nn.PReLU(8)).double()
    reshape_(fresh, describe_structure(small))
    fresh.load_state_dict(small.state_dict())
    assert fresh.slope.num_parameters == small.slope.num_parameters < 8


def test_the_structure_and_the_cost_of_a_pruned_layer_scale_travel(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return Net(lambda n, x: n.scale(x), scale=Scale(8, 1, 1)).double()

    net = randomise(build())
    plan = plan_pruning(net, 0.4, image_size=SIDE)
    small = apply_plan(net, plan, compensate="off")
    assert small.scale.gamma.shape == small.scale.mean.shape == (len(plan.kept["b.0"]), 1, 1)
    assert cost(small, SIDE) == plan.cost_after
    save_network(small, tmp_path / "small.safetensors")
    again = load_network(tmp_path / "small.safetensors", build=build)
    assert largest_gap(again, small.eval(), torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)) == 0
    assert describe_structure(again) == describe_structure(small)
    with pytest.raises(ValueError, match="structure of scale: the module has no such tensors"):
        reshape_(build(), {**describe_structure(small), "scale": {"tensors": {"gamma": [4, 1]}}})


def test_a_criterion_of_ones_own_ranks_and_is_recorded() -> None:
    def by_position(module: nn.Module, prunable: dict[str, str]) -> dict[str, Tensor]:
        return {name: torch.arange(8.0) for name in prunable}

    net = randomise(Net(lambda n, x: x))
    plan = plan_pruning(net, 0.5, importance=by_position, image_size=SIDE)
    assert (plan.kept, plan.importance) == ({"a.0": [4, 5, 6, 7], "b.0": [4, 5, 6, 7]}, "by_position")
    register_importance("position", by_position)
    assert plan_pruning(net, 0.5, importance="position", image_size=SIDE).kept == plan.kept


CRITERIA: dict[str, tuple[Any, str]] = {
    "no scores": (lambda module, prunable: {}, "'<lambda>' gives no 8 scores for a.0"),
    "texts": (lambda module, prunable: dict.fromkeys(prunable, "high"), "'<lambda>' gives no 8 scores for a.0"),
    "nothing": (lambda module, prunable: None, "'<lambda>' returns NoneType, not scores"),
    "one argument": (lambda module: {}, r"'<lambda>' cannot be called with \(module, prunable\)"),
    "a number": (5, "5 is neither a name nor a function"),
    "another function": ("math:sin", r"'math:sin' cannot be called with \(module, prunable\)|'sin'"),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_of_ones_own_that_cannot_rank_is_refused_by_name(name: str) -> None:
    criterion, message = CRITERIA[name]
    with pytest.raises(ValueError, match=f"importance {message}"):
        plan_pruning(Net(lambda n, x: x), 0.5, importance=criterion, image_size=SIDE)


def test_a_channel_is_as_important_as_the_norm_that_scales_it_most() -> None:
    net = randomise(PASSING["norm after a concatenation"][0]())
    graph = trace_channels(net)
    # `c` is read by the second half of `first`, and by the last third of `last`.
    assert {(read.norm, int(read.channels[0])) for read in graph.norms["c"]} == {("first", 8), ("last", 16)}
    largest = torch.maximum(net.first.weight[8:].abs(), net.last.weight[16:].abs())
    torch.testing.assert_close(absolute_gammas(net)["c"], largest.detach())
    batches = [(torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64), None)]
    for importance in ("gamma", "l1", "fused", "fpgm", "hrank"):
        data = {"calibration": batches} if importance == "hrank" else {}
        plan = plan_pruning(net, 0.4, importance=importance, image_size=SIDE, **data)
        assert largest_gap(apply_plan(net, plan, compensate="off"), mask_plan(net, plan), batches[0][0]) < 1e-10

    def by_bias(module: nn.Module, prunable: dict[str, str]) -> dict[str, Tensor]:
        return {name: module.get_parameter(f"{norm}.bias").abs() for name, norm in prunable.items()}

    kept = plan_pruning(net, {"c": 0.5}, importance=by_bias, image_size=SIDE).kept["c"]
    assert kept == sorted(net.first.bias[8:].abs().argsort()[4:].tolist())
    with pytest.raises(ValueError, match="cannot rescale gamma: c is not followed by one batch norm of its own"):
        rescale_gamma_(net)


def test_a_plan_from_which_nothing_goes_says_so() -> None:
    net = randomise(Net(lambda n, x: x + n.c(x), c=conv(8, 8)))
    plan = plan_pruning(net, 0.1, ignore=["a"], image_size=SIDE)
    assert plan.channels_kept == plan.channels_total
    assert [note[:15] for note in plan.notes] == ["no channel goes"]


def test_ignored_layers_keep_all_their_channels() -> None:
    net = randomise(Net(lambda n, x: x))
    plan = plan_pruning(net, 0.5, ignore=["a"], image_size=SIDE)
    assert (list(plan.kept), plan.channels_total, plan.channels_kept) == (["b.0"], 8, 4)
    assert apply_plan(net, plan, compensate="exact").a[0].out_channels == 8
    with pytest.raises(ValueError, match=r"ignore: nowhere is no layer with channels.*the nearest is"):
        plan_pruning(net, 0.5, ignore=["nowhere"], image_size=SIDE)


def test_a_pruned_network_of_ones_own_is_saved_and_loaded_without_pickle(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return Net(lambda n, x: x).double()

    net = randomise(build())
    small = apply_plan(net, plan_pruning(net, 0.5, image_size=SIDE), compensate="exact")
    save_network(small, tmp_path / "small.safetensors")
    loaded = load_network(tmp_path / "small.safetensors", build=build)
    assert largest_gap(loaded, small, torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)) == 0
    with pytest.raises(ValueError, match="build=..."):
        load_network(tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match="build makes another network"):
        load_network(tmp_path / "small.safetensors", build=lambda: nn.Conv2d(3, 4, 1))
