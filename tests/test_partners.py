"""Partners: extension changes nothing, fusion is exact, and the diversity losses have the minima that they should."""

import subprocess
import sys
import warnings
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
import tiny
import torch
from conftest import make_tiny_detector, same, snapshot
from torch import Tensor, nn

from paperlib.classifiers import FAMILY as CLASSIFIER_FAMILY
from paperlib.costs import cost
from paperlib.deploy.onnx import export_onnx
from paperlib.detectors import build_detector
from paperlib.detectors.files import load_detector, save_detector
from paperlib.network_files import family_of
from paperlib.pairs import PartneredConv, find_partners
from paperlib.partners.diversity import diversity
from paperlib.partners.extend import PartnerShape, extend, partner_gmacs, skipped_convolutions
from paperlib.partners.fuse import fuse
from paperlib.partners.partnership import Partnership
from paperlib.partners.published_flops import count_resnet_macs
from paperlib.pruning import Sparsity, apply_plan, mask_plan, plan_pruning, trace_channels
from paperlib.pruning.criteria import score_channels
from paperlib.pruning.layers import removable_blocks
from paperlib.structure import describe_structure
from paperlib.training.folder import LAST
from paperlib.training.loop import fit

EXACT = 1e-12
SURGERY = 1e-10
SIDE = 64


def block(inputs: int, outputs: int, kernel: int = 3, *, transposed: bool = False, **options: object) -> nn.Sequential:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(inputs, outputs, kernel, **{"bias": False, **options})
    return nn.Sequential(layer, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU(inplace=True))


def liven(net: nn.Module, seed: int = 0) -> nn.Module:
    """Float64 and evaluation mode, with batch norms as unlike as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.double().eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.uniform_(-1, 1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net


@torch.no_grad()
def outputs_of(net: nn.Module, seed: int = 0) -> Tensor:
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, first.in_channels, SIDE, SIDE, generator=generator, dtype=first.weight.dtype)
    out = getattr(net, getattr(net, "traced_method", "forward"))(images)
    return torch.cat([part.flatten() for part in (out if isinstance(out, list) else [out])])


def difference(net: nn.Module, other: nn.Module) -> float:
    """The largest difference of the outputs, relative to the largest output."""
    expected = outputs_of(net)
    return float((outputs_of(other) - expected).abs().max() / expected.abs().max())


SHAPES = [
    *({"kernel": k, "stride": s, "padding": p} for k, s, p in product((1, 3, 5, 7), (1, 2), (0, 1, 3))),
    {"kernel": 3, "dilation": 2},
    {"kernel": 3, "groups": 3, "padding": 1},
    {"kernel": 3, "groups": 6, "padding": 1},
    {"kernel": 3, "bias": True},
    {"kernel": 5, "padding": 2, "padding_mode": "reflect"},
    {"kernel": 4, "stride": 2, "padding": 1, "transposed": True},
    {"kernel": 3, "stride": 2, "groups": 3, "dilation": 2, "output_padding": 1, "transposed": True, "bias": True},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fusion_is_exact_for_every_kind_of_convolution(shape: dict[str, object]) -> None:
    net = liven(extend(nn.Sequential(block(6, 12, **shape)), kernels=(1, 3, 4, 5, 7)), seed=1)
    for norms in (True, False):
        assert difference(net, fuse(net, norms=norms)) < EXACT


WIDE = [
    *({"kernel": k, "stride": s, "padding": p} for k, s, p in ((3, 1, 1), (3, 2, 1), (5, 2, 2), (3, 1, 3), (7, 1, 3))),
    {"kernel": 3, "dilation": 2, "padding": 2},
    {"kernel": 5, "groups": 3, "padding": "same", "bias": True},
    {"kernel": 3, "groups": 6, "dilation": 3, "padding": 4, "padding_mode": "reflect"},
    {"kernel": 3, "stride": 2, "groups": 3, "dilation": 2, "padding": 2, "output_padding": 1, "transposed": True},
]


@pytest.mark.parametrize("shape", WIDE, ids=str)
def test_rows_and_columns_are_fused_into_the_middle_of_the_kernel(shape: dict[str, object]) -> None:
    """The branches of ACNet: on the same pixels as the middle row and column of the square kernel."""
    net = liven(nn.Sequential(block(6, 12, **shape)))
    fresh = extend(net, kernels=(3, 5, 7), shape="asymmetric")
    assert torch.equal(outputs_of(fresh), outputs_of(net))
    extended, side = liven(fresh, seed=1), shape["kernel"]
    pair = find_partners(extended)["0.0"]
    assert [conv.kernel_size for conv, _ in pair.branches()] == [(side, side), (1, side), (side, 1)]
    for norms in (True, False):
        assert difference(extended, fuse(extended, norms=norms)) < EXACT
    with torch.no_grad():  # by definition: the square kernel plus, in its middle, the row and the column
        for norm in (pair.norm, pair.row_norm, pair.column_norm):
            norm.reset_parameters()
        added = fuse(extended, norms=False)[0][0].weight - pair.conv.weight / (1 + pair.norm.eps) ** 0.5
    cross = torch.zeros(side, side, dtype=torch.bool)
    cross[side // 2], cross[:, side // 2] = True, True
    assert ((added.abs().sum((0, 1)) > 1e-12) == cross).all()


def test_where_rows_and_columns_do_not_fit_there_are_none_and_the_reason_is_given() -> None:
    net = nn.Sequential(
        block(3, 4, 3, padding=1), block(4, 4, 3), block(4, 4, 4, padding=2), block(4, 4, padding="valid")
    )
    reason = "its padding is less than half its kernel, or its kernel has no centre"
    assert skipped_convolutions(net, (3, 4), "asymmetric") == {"1.0": reason, "2.0": reason, "3.0": reason}
    assert not skipped_convolutions(net, (3, 4))


DETECTORS = {"yolov4-tiny": {}, "centernet-resnet50": {"depth": 0.3}}


@pytest.mark.parametrize(("name", "options"), DETECTORS.items(), ids=DETECTORS)
def test_an_extended_detector_computes_the_same_and_fuses_to_what_it_was(name: str, options: dict[str, float]) -> None:
    net = liven(build_detector(name, num_classes=3, width=0.125, **options))
    before = snapshot(net)
    extended = extend(net, kernels=(3, 4, 5))
    assert torch.equal(outputs_of(extended), outputs_of(net)), "to the last bit"
    fused = fuse(liven(extended, seed=2))
    assert difference(extended, fused) < EXACT
    assert type(fused) is type(net)
    assert fused.state_dict().keys() == before.keys()
    assert describe_structure(fused) == describe_structure(net)
    assert cost(fused, SIDE) == cost(net, SIDE) == cost(extended, SIDE), "training alone pays for partners"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), (
        "the original is untouched"
    )


def test_a_fresh_extension_fuses_to_the_same_scale_factors_and_the_same_training() -> None:
    net = liven(nn.Sequential(block(3, 8), block(8, 8)))
    fused = fuse(extend(net))
    assert difference(net, fused) < EXACT
    for at in (0, 1):
        torch.testing.assert_close(fused[at][1].weight, net[at][1].weight.abs(), rtol=0, atol=0)
    # In training mode batches have their own statistics, and these follow a filter's sign and scale.
    assert difference(net.train(), fused.train()) < 1e-2


def test_the_public_start_draws_both_kernels_by_the_seed_alone() -> None:
    net = make_tiny_detector()
    first, second, other = (extend(net, preserve=False, seed=seed) for seed in (5, 5, 6))
    as_double = extend(net.double(), preserve=False, seed=5)
    for name, pair in find_partners(first).items():
        assert all((norm.weight == 0.5).all() and (norm.bias == 0).all() for norm in (pair.norm, pair.partner_norm))
        assert all((norm.running_var == 1).all() for norm in (pair.norm, pair.partner_norm))
        for conv in ("conv", "partner"):
            drawn = first.get_parameter(f"{name}.{conv}.weight")
            assert torch.equal(drawn, second.get_parameter(f"{name}.{conv}.weight"))
            assert torch.equal(drawn.double(), as_double.get_parameter(f"{name}.{conv}.weight"))
            assert not torch.equal(drawn, other.get_parameter(f"{name}.{conv}.weight"))
        assert not torch.equal(pair.conv.weight, pair.partner.weight)


def test_a_start_from_noisy_copies_halves_gamma_and_is_the_network_itself_without_noise() -> None:
    net = liven(nn.Sequential(block(3, 8, bias=True), block(8, 8)))
    silent, noisy, again = (extend(net, copy_noise=noise, seed=3) for noise in (0.0, 0.1, 0.1))
    assert difference(net, silent) < EXACT and 1e-3 < difference(net, noisy) < 0.5
    for name, pair in find_partners(noisy).items():
        before = net.get_submodule(pair.norm_name)
        for _, norm in pair.branches():
            assert torch.equal(2 * norm.weight, before.weight) and torch.equal(2 * norm.bias, before.bias)
        moved = (pair.partner.weight - pair.conv.weight).detach()
        assert 0.05 < float(moved.std() / pair.conv.weight.detach().std()) < 0.2
        assert torch.equal(pair.partner.weight, find_partners(again)[name].partner.weight), "the seed decides"
    assert difference(noisy, fuse(noisy)) < EXACT


def test_a_refolded_gamma_is_in_closed_form_that_of_both_by_what_does_not_cancel() -> None:
    net = extend(nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3, eps=0.0)).double().eval())
    pair = find_partners(net)["0"]
    with torch.no_grad():
        pair.conv.weight.zero_()[:, 0, 0, 0] = 1.0
        pair.partner.weight.zero_()[:, 0, 0] = torch.eye(3, dtype=torch.float64)  # the same, and two orthogonal ones
        pair.partner.weight[2] = -pair.conv.weight[2]
        pair.norm.weight.fill_(3.0), pair.partner_norm.weight.fill_(4.0)
    fused = fuse(net)
    # |a W + b P| is 3 + 4, hypot(3, 4) and 4 - 3; without cancelling it would be hypot(3, 4) = hypot(gamma, gamma').
    torch.testing.assert_close(fused[1].weight, torch.tensor([7.0, 5.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(fused[0].weight.square().sum((1, 2, 3)), torch.ones(3, dtype=torch.float64))
    assert (fused[1].running_var == 1).all() and difference(net, fused) < EXACT


PAIRS = {"resnet50": 16, "resnet101": 33, "vgg16-bn": 13, "yolov4-tiny-trunk": 12, "yolov4-tiny": 14}


@pytest.mark.parametrize(("name", "count"), PAIRS.items(), ids=PAIRS)
def test_how_many_convolutions_get_a_partner(name: str, count: int) -> None:
    net = family_of(name).build(name, 3, width=0.125)
    assert len(find_partners(extend(net))) == count
    assert not skipped_convolutions(net)


def test_partners_cost_one_more_pass_through_the_3x3_convolutions_of_resnet50() -> None:
    net = CLASSIFIER_FAMILY.build_without_weights(name="resnet50", num_classes=1000)
    plain = cost(net, 256).gmacs
    assert plain == pytest.approx(5.34, abs=0.005)
    assert partner_gmacs(net, 256) / plain == pytest.approx(0.45, abs=0.005)


def test_the_papers_73_97_percent_of_resnet50() -> None:
    net = CLASSIFIER_FAMILY.build_without_weights(name="resnet50", num_classes=1000)

    def count(keep: Fraction, **convention: bool) -> int:
        return count_resnet_macs(net, keep, **convention)

    saved = {}
    for third_inputs, norms in product((False, True), repeat=2):
        convention = {"third_inputs": third_inputs, "norms": norms}
        saved[third_inputs, norms] = 100 * (1 - count(Fraction(3, 10), **convention) / count(Fraction(1), **convention))
    assert saved[False, True] == pytest.approx(73.97, abs=0.005), "by the paper's convention"
    assert saved[False, False] == pytest.approx(74.04, abs=0.005), "multiply-accumulates alone"
    assert saved[True, False] == pytest.approx(78.25, abs=0.005), "with the inputs cut as well"
    with pytest.raises(ValueError, match=r"^keep 0 is not in \(0, 1\]$"):
        count(Fraction(0))


def test_batch_norms_that_serve_several_calls_are_left_alone_with_a_note() -> None:
    net = build_detector("faster-rcnn-resnet101", num_classes=2, width=0.125, depth=0.1)
    with pytest.warns(UserWarning, match=r"without a partner: .*rpn.head.conv.0 \(its batch norm serves several calls"):
        extended = extend(net)
    assert "trunk.layer1.0.conv2" in find_partners(extended)
    assert "rpn.head.conv.0" in skipped_convolutions(net)
    bare = nn.Sequential(block(3, 4), nn.Conv2d(4, 4, 3))
    assert skipped_convolutions(bare) == {"1": "no batch norm of its own follows it"}


def test_misuse_is_refused_in_one_line() -> None:
    net = nn.Sequential(block(3, 4))
    extended = extend(net)
    with pytest.raises(ValueError, match=r"^0.0 already has a partner; fuse the network before extending it again$"):
        extend(extended)
    with pytest.raises(ValueError, match="^Sequential has no partners to fuse; it was never extended$"):
        fuse(net)
    with pytest.raises(
        ValueError, match="^Sequential has no 5 x 5 convolution with a batch norm of its own to extend$"
    ):
        extend(net, kernels=(5,))
    with pytest.raises(ValueError, match="^0: its batch norm 0.1 is missing; fuse the network that was extended$"):
        fuse(extended[0])
    with pytest.raises(ValueError, match="^0.0 is torch.bfloat16; fuse a network in float32 or float64$"):
        fuse(extended.to(torch.bfloat16))
    with pytest.raises(ValueError, match="^diversity 'some' is not known; choose one of: orthogonal, public,"):
        Partnership(0.01, "some")
    with pytest.raises(ValueError, match="^diversity strength -1 must be >= 0$"):
        Partnership(-1)
    with pytest.raises(ValueError, match="^Sequential has no partners; extend it before training with Partnership$"):
        Partnership().before_step(net, 0.1)
    with pytest.raises(ValueError, match="^0.0 has seen no training batch yet"):
        diversity(extend(net), "output")
    with pytest.raises(ValueError, match="^partners of shape 'round' are not known; choose one of: twin, asymmetric$"):
        extend(net, shape="round")
    with pytest.raises(ValueError, match="^copy_noise -1 must be >= 0 and finite$"):
        extend(net, copy_noise=-1)
    with pytest.raises(ValueError, match="^copy_noise is a start of twins that preserves the network"):
        Partnership(copy_noise=0.1, preserve=False)
    message = "^diversity 'orthogonal' compares kernels of one shape; asymmetric partners need kind 'none'$"
    with pytest.raises(ValueError, match=message):
        Partnership(shape="asymmetric")
    branched = extend(nn.Sequential(block(3, 4, padding=1)), shape="asymmetric")
    message = "^the partners of 0.0 are not of its shape, which diversity 'public' compares; choose none$"
    with pytest.raises(ValueError, match=message):
        Partnership(kind="public").before_step(branched, 0.1)


def prunable(net: nn.Module) -> int:
    graph = trace_channels(net)
    return sum(int((~graph.fixed[graph.layers[name].outputs]).sum()) for name in graph.prunable)


def test_a_fused_network_can_be_pruned_as_before() -> None:
    net = liven(make_tiny_detector())
    fused = fuse(extend(net))
    assert prunable(fused) == prunable(net)
    assert plan_pruning(fused, 0.5, image_size=SIDE).kept == plan_pruning(net, 0.5, image_size=SIDE).kept


@pytest.mark.parametrize("name", tiny.QUICK)
def test_each_fused_detector_has_as_many_prunable_channels_as_before(name: str) -> None:
    net = tiny.quick(name, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the norms that several calls share
        extended = liven(extend(net, kernels=(3, 4, 5)), seed=2)
    assert prunable(fuse(extended)) == prunable(net) > 0


BLOCKS = [("yolov4", "asymmetric"), ("centernet-resnet50", "twin")]


@pytest.mark.parametrize(("name", "shape"), BLOCKS)
def test_blocks_are_removed_from_an_extended_network_as_from_the_fused_one(name: str, shape: PartnerShape) -> None:
    net = liven(extend(tiny.quick(name, 3), shape=shape), seed=4)
    for norm in net.get_submodule(next(iter(removable_blocks(net)))).modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data *= 0.1
    assert list(removable_blocks(net)) == list(removable_blocks(fuse(net)))
    plan = plan_pruning(net, 0.3, layers=1, image_size=SIDE)
    assert plan.blocks == [next(iter(removable_blocks(net)))]
    pruned = apply_plan(net, plan, compensate="exact")
    assert difference(mask_plan(net, plan, keep_beta=True), pruned) < SURGERY
    fused = fuse(pruned)
    assert difference(pruned, fused) < SURGERY
    assert plan.cost_before == cost(fuse(net), SIDE)


@pytest.mark.parametrize("shape", ["twin", "asymmetric"])
def test_the_criterion_fused_ranks_by_the_norm_of_the_fused_filter(shape: PartnerShape) -> None:
    blocks = block(3, 4, padding=1), block(4, 4, padding=1)
    net = liven(extend(nn.Sequential(*blocks, nn.Conv2d(4, 2, 1)), shape=shape), seed=5)
    pair = net[0][0]
    with torch.no_grad():  # the first channel cancels
        for conv, norm in pair.branches():
            conv.weight[0] = 0.0
            norm.weight[0], norm.running_var[0] = 1.0, 1.0
        pair.conv.weight[0, :, 1] = 0.5
        pair.branches()[1][0].weight[0, :, 1 if shape == "twin" else 0] = -0.5
    folded = fuse(net, norms=False)
    expected = [folded[index][0].weight.flatten(1).norm(dim=1) for index in (0, 1)]
    scores = score_channels("fused", net, trace_channels(net).prunable)
    for index, norms in enumerate(expected):
        for part in ("conv", *pair.partner_names):
            torch.testing.assert_close(torch.from_numpy(scores[f"{index}.0.{part}"]), norms)
    assert scores["0.0.conv"][0] == 0
    assert 0 not in plan_pruning(net, 0.13, importance="fused", image_size=SIDE).kept["0.0.conv"]
    # Refolded, each filter times its gamma has that norm again.
    again = score_channels("fused", fuse(net), trace_channels(fuse(net)).prunable)
    torch.testing.assert_close(torch.from_numpy(again["1.0"]), expected[1])


@pytest.mark.parametrize("importance", ["gamma", "l1"])
def test_a_partner_that_has_not_learnt_changes_no_plan(importance: str) -> None:
    """One plan for a convolution and its partner, which count as one layer; gamma' = 0 makes no channel worse."""
    net = liven(make_tiny_detector())
    extended = extend(net)
    if importance == "l1":
        for pair in find_partners(extended).values():
            pair.partner.weight.data *= 0.1
    for target in ({"ratio": 0.5}, {"channels": 100}):
        settings = {**target, "importance": importance, "image_size": SIDE}
        expected, plan = plan_pruning(net, **settings), plan_pruning(extended, **settings)
        assert (plan.channels_kept, plan.channels_total) == (expected.channels_kept, expected.channels_total)
        assert plan.threshold == expected.threshold
        for name in find_partners(extended):
            assert plan.kept[f"{name}.conv"] == plan.kept[f"{name}.partner"] == expected.kept[name]


def test_a_channel_is_as_important_as_the_better_of_its_two_scale_factors() -> None:
    net = extend(nn.Sequential(block(3, 4, padding=1), nn.Conv2d(4, 2, 1)))
    net[0][0].norm.weight.data = torch.tensor([0.9, 0.1, 0.2, 0.0])
    net[0][0].partner_norm.weight.data = torch.tensor([0.0, 0.8, -0.3, 0.1])
    plan = plan_pruning(net, 0.5, image_size=SIDE)
    assert plan.kept == {"0.0.conv": [0, 1], "0.0.partner": [0, 1]}


KINDS = {
    "grouped": [block(8, 8, groups=4, padding=1)],
    "depthwise": [block(8, 8, groups=8, padding=1)],
    "dilated": [block(8, 8, dilation=2, padding=2)],
    "strided": [block(8, 8, 5, stride=2, padding=2)],
    "transposed": [block(8, 8, 4, stride=2, padding=1, transposed=True)],
}


@pytest.mark.parametrize(("kind", "shape"), [*product(KINDS, ["twin"]), *product(list(KINDS)[:4], ["asymmetric"])])
def test_every_kind_of_convolution_is_extended_and_pruned_with_its_partners(kind: str, shape: PartnerShape) -> None:
    torch.manual_seed(0)
    net = liven(nn.Sequential(block(3, 8, padding=1), *KINDS[kind], block(8, 8, 1), nn.Conv2d(8, 2, 1)))
    fresh = extend(net, kernels=(3, 4, 5), shape=shape)
    assert len(find_partners(fresh)) == 2 and torch.equal(outputs_of(fresh), outputs_of(net))
    extended = liven(fresh, seed=6)
    plan = plan_pruning(extended, 0.4, image_size=SIDE)
    pruned = apply_plan(extended, plan, compensate="exact")
    assert 0 < plan.channels_kept < plan.channels_total
    assert difference(mask_plan(extended, plan, keep_beta=True), pruned) < SURGERY
    assert difference(pruned, fuse(pruned)) < EXACT
    for name, pair in find_partners(extended).items():  # a plan names no layer of which all channels stay
        kept = [plan.kept.get(f"{name}.{part}") for part in ("conv", *pair.partner_names)]
        assert kept == kept[:1] * len(kept), "partners lose the channels of their original"


@pytest.mark.parametrize(("name", "options"), DETECTORS.items(), ids=DETECTORS)
def test_pruned_while_extended_then_fused_then_pruned_again(name: str, options: dict[str, float]) -> None:
    net = build_detector(name, num_classes=3, width=0.125, **options)
    extended = liven(extend(net, kernels=(3, 4, 5)), seed=3)
    plan = plan_pruning(extended, 0.4, image_size=SIDE)
    pruned = apply_plan(extended, plan, compensate="exact")
    assert difference(mask_plan(extended, plan, keep_beta=True), pruned) < SURGERY
    assert difference(mask_plan(extended, plan), apply_plan(extended, plan, compensate="off")) < SURGERY

    fused = fuse(pruned)
    assert difference(pruned, fused) < SURGERY
    rebuilt = build_detector(name, num_classes=3, width=0.125, **options, structure=describe_structure(fused))
    rebuilt.double().load_state_dict(fused.state_dict())
    assert difference(fused, rebuilt.eval()) == 0, "an ordinary pruned detector"
    again = plan_pruning(fused, 0.4, image_size=SIDE)
    assert difference(mask_plan(fused, again, keep_beta=True), apply_plan(fused, again, compensate="exact")) < SURGERY
    assert prunable(fuse(extended)) == prunable(net)


def test_extension_warns_of_nothing_in_a_yolo() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(extend(make_tiny_detector()).get_submodule("stem1.conv"), PartneredConv)


def test_a_training_with_partners_saves_what_loads_elsewhere(tmp_path: Path) -> None:
    net = extend(tiny.detector())
    before = net.get_parameter("neck.conv.partner.weight").clone()
    train = {"validation": tiny.dataset("val", 4), "regulariser": Partnership(0.1), "folder": tmp_path}
    history = fit(net, tiny.dataset(), tiny.recipe(epochs=2), **train)
    assert not torch.equal(net.get_parameter("neck.conv.partner.weight"), before), "partners learn"
    assert (history.epochs["penalty"] > 0).all()
    fused = fuse(net)
    assert same(snapshot(load_detector(tmp_path / LAST)), snapshot(fused))
    assert difference(net.double(), fuse(net)) < EXACT

    code = (
        "import sys, torch; from paperlib.detectors.files import load_detector\n"
        "torch.save(list(load_detector(sys.argv[1]).head_outputs(torch.ones(1, 3, 64, 64))), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / LAST), str(tmp_path / "outputs.pt")], check=True)
    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(found, list(fused.head_outputs(torch.ones(1, 3, SIDE, SIDE))))


def test_what_still_has_partners_is_not_saved_exported_or_trained_by_mistake(tmp_path: Path) -> None:
    net = extend(make_tiny_detector())
    remedy = r"^stem1.conv still has a partner, which only training can use; fuse it first: pl.fuse\(detector\)$"
    with pytest.raises(ValueError, match=remedy):
        save_detector(net, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=remedy):
        export_onnx(net, tmp_path / "net.onnx", SIDE)
    with pytest.raises(ValueError, match=r"^stem1.conv has a partner; train .* with regulariser=pl.Partnership\(\)$"):
        fit(net, tiny.dataset(), tiny.recipe(), regulariser=Sparsity(0.01), folder=tmp_path)
    with pytest.raises(ValueError, match=r"^stem1.bn was fused into its convolution, and no file holds that; save pl"):
        save_detector(fuse(net, norms=False), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_network_without_the_fused_norms_is_exported(tmp_path: Path) -> None:
    assert export_onnx(fuse(extend(make_tiny_detector()), norms=False), tmp_path / "net.onnx", SIDE) < 1e-4
