"""Networks whose code asks for sizes are traced with an example on the meta device, and pruned exactly."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_networks import Body, Net, check_exact, conv, randomise
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from paperlib.pruning import apply_plan, mask_plan, plan_pruning, trace_channels


def branch_on_size(net: nn.Module, x: Tensor) -> Tensor:
    assert x.ndim == 4
    return F.max_pool2d(x, 2) if min(x.shape[2:]) > 7 else x


def unpack_parts(net: nn.Module, x: Tensor) -> Tensor:
    first, *others = x.chunk(4, 1)
    return torch.cat([*others, first], 1) if len(others) == 3 else first


def upsample_to(net: nn.Module, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    small = F.avg_pool2d(x, 2) if height % 2 == 0 else x
    return x + F.interpolate(small, size=(height, width))


def view_by_channels(net: nn.Module, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, channels, height * width).mean(2) if height == width else x.flatten(1)


FOLLOWED: dict[str, tuple[Body, nn.Module | None]] = {
    "branch on a size": (branch_on_size, None),
    "unpacked parts": (unpack_parts, None),
    "sizes of another": (upsample_to, None),
    "view by channels": (view_by_channels, nn.Linear(8, 3)),
}
HELD: dict[str, Body] = {
    "square root of a channel count": lambda net, x: x / math.sqrt(x.shape[1]) if x.shape[2] > 1 else x,
    "power of a channel count": lambda net, x: x.shape[1] ** -0.5 * x if x.shape[2] > 1 else x,
    "product with a channel count": lambda net, x: x.shape[1] * x if x.shape[2] > 1 else x,
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_code_that_asks_for_sizes_is_pruned_through_exactly(name: str) -> None:
    body, out = FOLLOWED[name]
    check_exact(Net(body, out), 2)


@pytest.mark.parametrize("name", HELD)
def test_what_counts_channels_holds_them(name: str) -> None:
    check_exact(Net(HELD[name]), prunable=1)


class TwoImages(nn.Module):
    """Takes two inputs, of which the second is smaller, and an option."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, 8), conv(1, 8), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0, *others: Tensor) -> Tensor:
        left, right = self.a(x), self.b(y)
        if left.shape != right.shape:
            right = F.interpolate(right, size=left.shape[2:])
        return self.out(torch.cat([left, right], 1)) * scale


def test_example_inputs_trace_what_no_image_does() -> None:
    net = randomise(TwoImages())
    inputs = torch.rand(1, 3, 8, 10, dtype=torch.float64), torch.rand(1, 1, 4, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="cannot trace TwoImages: .*; give example_inputs"):
        plan_pruning(net, 0.5)
    plan = plan_pruning(net, 0.5, example_inputs=inputs)
    assert set(plan.kept) == {"a.0", "b.0"}
    small = apply_plan(net, plan, compensate="off", example_inputs=inputs)
    masked = mask_plan(net, plan, example_inputs=inputs)
    with torch.no_grad():
        assert float((small(*inputs) - masked(*inputs)).abs().max()) < 1e-12


def by_type(net: Net, x: Tensor) -> Tensor:
    return net.c(x) if isinstance(x, Tensor) else net.d(x)


def test_code_that_asks_whether_its_input_is_a_tensor_is_followed_both_ways() -> None:
    net = Net(by_type, c=conv(8, 8), d=conv(8, 8))
    check_exact(net, prunable=4)


def test_compiled_code_that_takes_only_tensors_is_refused() -> None:
    net = Net(lambda net, x: torch.vmap(torch.relu)(x) if x.shape[2] > 1 else x)
    with pytest.raises(ValueError, match="cannot trace Net"):
        plan_pruning(net, 0.5)


def test_tracing_with_values_leaves_the_network_as_it_was() -> None:
    net = randomise(Net(branch_on_size)).train()
    seen: list[Tensor] = []
    net.a.register_forward_hook(lambda module, args, out: seen.append(out))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    calls = nn.Module.__call__, nn.Module.__getattr__
    trace_channels(net)
    assert not seen
    assert (nn.Module.__call__, nn.Module.__getattr__) == calls
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(part.training for part in net.modules())


class SameDepthwise(nn.Conv2d):
    """Pads its input itself, by its size."""

    def forward(self, input: Tensor) -> Tensor:
        missing = -input.shape[-1] % self.stride[0]
        return F.conv2d(
            F.pad(input, (1, 1 + missing, 1, 1 + missing)), self.weight, None, self.stride, 0, 1, self.groups
        )


def test_a_depthwise_convolution_with_a_forward_of_its_own_is_cut_like_any_other() -> None:
    depthwise = SameDepthwise(8, 8, 3, groups=8, bias=False)
    check_exact(Net(lambda n, x: n.norm(n.wise(x)), wise=depthwise, norm=nn.BatchNorm2d(8)), 3)


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolov5n"])
def test_a_detector_of_ultralytics_is_pruned_exactly(name: str) -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="ultralytics (AGPL) is not installed")
    torch.manual_seed(0)
    net = randomise(tasks.DetectionModel(f"{name}.yaml", ch=3, nc=3, verbose=False))
    plan = plan_pruning(net, 0.3, image_size=64)
    small, masked = apply_plan(net, plan, compensate="off"), mask_plan(net, plan)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(small(images)[0], masked(images)[0], rtol=1e-10)
    sum(each.square().mean() for each in tree_leaves(small.train()(images))).backward()
