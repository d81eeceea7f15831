"""The diversity losses of partners have the minima and slopes that closed forms say, in float64."""

import pytest
import torch
from conftest import make_tiny_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from test_partners import EXACT, block, difference, liven
from torch import Tensor, nn
from torchvision.models import resnet50

from paperlib.pairs import find_partners
from paperlib.partners.diversity import diversity, filter_cosines
from paperlib.partners.extend import extend
from paperlib.partners.filters import from_filters, to_filters
from paperlib.partners.fuse import fuse
from paperlib.partners.partnership import Partnership


def pair_of(own: list[list[float]], partner: list[list[float]]) -> nn.Sequential:
    """An extended 3 x 3 block with these filters; what is left of the nine weights is 0."""
    net = extend(nn.Sequential(block(1, len(own))).double(), preserve=False)
    pair = net[0][0]
    for conv, rows in ((pair.conv, own), (pair.partner, partner)):
        conv.weight.data.zero_()
        conv.weight.data.view(len(rows), 9)[:, : len(rows[0])] = torch.tensor(rows, dtype=torch.float64)
    return net


def level(net: nn.Module, kind: str = "orthogonal") -> float:
    return diversity(net, kind).item()


def slopes(net: nn.Module, kind: str) -> list[Tensor]:
    pair = net[0][0]
    return list(torch.autograd.grad(diversity(net, kind), [pair.conv.weight, pair.partner.weight]))


def test_identical_partners() -> None:
    net = pair_of([[1, 2], [3, -1]], [[1, 2], [3, -1]])
    pair = net[0][0]
    assert level(net) == pytest.approx(1)
    assert level(net, "absolute") == pytest.approx(1)
    assert level(net, "public") == pytest.approx(2), "the worst of the public code"
    fused = fuse(net.eval(), norms=False)
    scale = 0.5 / (1 + pair.norm.eps) ** 0.5
    torch.testing.assert_close(fused[0][0].weight, 2 * scale * pair.conv.weight)


def test_opposite_partners_cancel_and_are_the_optimum_of_the_public_code_alone() -> None:
    net = pair_of([[1.0, 2.0], [3.0, -1.0]], [[-3.7, -7.4], [-11.1, 3.7]])
    assert level(net, "public") == pytest.approx(0, abs=1e-12)
    assert level(net) == pytest.approx(1)
    images = torch.rand(8, 1, 9, 9, dtype=torch.float64)
    net[0][0].norm.bias.data.fill_(0.25)
    net[0][0].partner_norm.bias.data.fill_(0.5)
    # What epsilon leaves is no more than its share of the variances.
    assert (net.train()(images) - 0.75).abs().max() < 1e-2
    net[0][0].norm.eps = net[0][0].partner_norm.eps = 1e-30
    torch.testing.assert_close(net(images), torch.full((8, 2, 7, 7), 0.75, dtype=torch.float64))
    # Fused, such channels are known to be constant.
    net[0][0].norm.running_var.copy_(net[0][0].partner_norm.running_var / 3.7**2)
    fused = fuse(net.eval())
    assert (fused[0][1].weight == 0).all()
    assert difference(net, fused) < EXACT


def test_orthogonal_partners_are_the_optimum_of_the_default_and_not_of_the_public_code() -> None:
    net = pair_of([[1.0, 0.0], [0.0, 2.0]], [[0.0, 3.0], [-1.0, 0.0]])
    assert level(net) == 0
    assert level(net, "public") == pytest.approx(1)
    assert all((slope == 0).all() for slope in slopes(net, "orthogonal"))
    assert all((slope != 0).any() for slope in slopes(net, "public"))


def test_the_public_code_is_blind_within_a_stage() -> None:
    """Filters at cosine +1 and -1 are to it as good as orthogonal ones."""
    mixed = pair_of([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]])
    orthogonal = pair_of([[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]])
    assert level(mixed, "public") == level(orthogonal, "public") == 1
    assert (level(mixed), level(orthogonal)) == (1, 0)


@pytest.mark.parametrize("shape", [{"groups": 3}, {"transposed": True}, {"groups": 3, "transposed": True}], ids=str)
def test_each_output_channel_is_compared_whatever_the_kind_of_convolution(shape: dict[str, object]) -> None:
    net = extend(nn.Sequential(block(6, 12, **shape)).double(), preserve=False)
    pair = net[0][0]
    mixed = torch.where(torch.arange(12) < 4, -2.0, 0.0).double()  # the first four are opposite, the others 0
    rows = to_filters(pair.conv, pair.conv.weight) * mixed.view(-1, 1, 1, 1)
    pair.partner.weight.data = from_filters(pair.partner, rows.detach())
    torch.testing.assert_close(filter_cosines(pair), mixed / 2)
    assert level(net) == pytest.approx(4 / 12)


@given(angle=st.floats(-3, 3))
@settings(max_examples=20)
def test_the_gradient_of_squared_cosine(angle: float) -> None:
    t = torch.tensor(angle, dtype=torch.float64)
    slope = slopes(pair_of([[1.0, 0.0]], [[t.cos().item(), t.sin().item()]]), "orthogonal")[1].flatten()[:2]
    assert float(slope @ torch.stack([-t.sin(), t.cos()])) == pytest.approx(-(2 * t).sin().item(), abs=1e-12)


@pytest.mark.parametrize("kind", ["orthogonal", "public", "absolute", "output"])
def test_the_scale_of_a_kernel_does_not_matter(kind: str) -> None:
    net = liven(extend(nn.Sequential(block(3, 4)), preserve=False)).train()
    net(torch.rand(4, 3, 9, 9, dtype=torch.float64))
    pair, before = net[0][0], diversity(net, kind)
    for slope, conv in zip(slopes(net, kind), (pair.conv, pair.partner), strict=True):
        assert (slope * conv.weight).sum().abs() < 1e-14, "no pull along the kernel itself"
    pair.conv.weight.data *= 0.2
    pair.partner.weight.data *= 7
    torch.testing.assert_close(diversity(net, kind), before)


def test_the_public_code_has_one_term_for_each_stage_and_ours_is_a_mean() -> None:
    with torch.device("meta"):
        net = extend(resnet50())
    net = net.to_empty(device="cpu")
    for pair in find_partners(net).values():
        nn.init.ones_(pair.conv.weight)
        nn.init.ones_(pair.partner.weight)
    assert level(net, "public") == pytest.approx(4 * 2)
    assert level(net) == pytest.approx(1)
    assert diversity(nn.Sequential(block(3, 4))) == diversity(net, "none") == 0


def test_feature_maps_are_compared_as_their_batch_norms_centre_them() -> None:
    net = extend(nn.Sequential(block(1, 2, 3)).double(), preserve=False).train()
    pair = net[0][0]
    pair.conv.weight.data.zero_()[:, 0, 1, 1] = 1.0
    # The second partner sees the same map through another weight, plus nothing: fully correlated though scaled.
    pair.partner.weight.data.zero_()[0, 0, 1, 2] = 1.0
    pair.partner.weight.data[1, 0, 1, 1] = -3.0
    noise = torch.randn(8, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net(5 + noise)
    assert level(net, "output") == pytest.approx(0.5, abs=1e-3)
    assert level(net) == pytest.approx(0.5, abs=1e-12)
    smooth = (noise + noise.roll(1, 3)) / 2  # neighbours correlate by a half
    net(smooth)
    assert level(net, "output") == pytest.approx((1 + 0.25) / 2, abs=0.03), "kernels alone cannot tell"


def test_the_regulariser_adds_the_gradient_of_its_penalty() -> None:
    net = extend(make_tiny_detector(dtype=torch.float64), preserve=False)
    regulariser = Partnership(0.1, "orthogonal")
    pairs = find_partners(net).values()
    kernels = [conv.weight for pair in pairs for conv in (pair.conv, pair.partner)]
    kernels[0].grad = torch.ones_like(kernels[0])
    with torch.no_grad():  # as far as it matters to the caller
        regulariser.before_step(net, 0.1)
    expected = torch.autograd.grad(0.1 * diversity(net), kernels)
    torch.testing.assert_close(kernels[0].grad - 1, expected[0])
    torch.testing.assert_close([kernel.grad for kernel in kernels[1:]], list(expected[1:]))
    assert all(p.grad is None for p in net.parameters() if p.ndim == 1)
    assert float(regulariser.penalty(net)) == pytest.approx(0.1 * level(net))
    assert regulariser.describe() == {
        "strength": 0.1,
        "kind": "orthogonal",
        "preserve": True,
        "shape": "twin",
        "sparsity": None,
    }


def test_feature_maps_of_several_processes_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    net = pair_of([[1.0, 0.0]], [[0.0, 3.0]])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    Partnership(0.1, "orthogonal").before_step(net, 0.1)
    with pytest.raises(ValueError, match="^diversity 'output' works in one process only; choose another kind$"):
        Partnership(0.1, "output").before_step(net, 0.1)


def test_descending_the_public_loss_cancels_pairs_and_descending_ours_makes_them_orthogonal() -> None:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    spread = {}
    for kind in ("public", "orthogonal"):
        net = extend(nn.Sequential(block(3, 16)), preserve=False).train()
        optimiser = torch.optim.SGD([net[0][0].conv.weight, net[0][0].partner.weight], lr=3.0)
        for _ in range(200):
            Partnership(1.0, kind).before_step(net, 3.0)
            optimiser.step()
            optimiser.zero_grad()
        spread[kind] = float(net(images).detach().std())
        assert level(net, kind) < 0.02
    assert spread["public"] < 0.2 * spread["orthogonal"]


@pytest.mark.parametrize(
    ("partner", "cosine", "lost"),
    [([2.0, 0.0], 1, -1), ([-2.0, 0.0], -1, 1), ([0.0, 3.0], 0, 0)],
    ids=["identical", "opposite", "orthogonal"],
)
def test_each_epoch_tells_the_cosine_of_every_pair_and_what_cancels_in_fusion(
    partner: list[float], cosine: float, lost: float
) -> None:
    net = pair_of([[2.0, 0.0]], [partner])
    # Equal norms of both terms; where they are unequal, as much as possible cancels of the smaller one.
    net[0][0].partner.weight.data /= net[0][0].partner.weight.norm() / 2
    values = Partnership().epoch_values(net)
    assert values == {"cosine 0.0": pytest.approx(cosine), "lost energy 0.0": pytest.approx(lost)}
