"""Imitation of features: GD and its rivals in closed form, in float64, and the adapters of pruned students."""

import math

import pytest
import torch
from conftest import make_tiny_batch, make_tiny_detector
from torch import Tensor, nn

from paperlib.distillation.adapters import ChannelAdapter, ChannelCut, pair_levels, select_teacher_channels
from paperlib.distillation.imitation import FeatureLevel, choose_valuable, imitation_loss
from paperlib.distillation.imitation_methods import METHODS, choose_method
from paperlib.pruning import PruningPlan, apply_plan, mask_plan, plan_pruning

GD = METHODS["gd"]
PLAIN = choose_method("gd", fraction=1, temperature=1e9)
"""GD with all cells and without attention."""
NONE = torch.zeros(0, 4)
# A level of 2 x 2 cells of 8 pixels with the difference of DKD's example, and a box over its upper row.
ROOTS = torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64)
TOP_ROW = torch.tensor([[1.0, 1.0, 15.0, 7.0]])
EVERYTHING = torch.tensor([[0.0, 0.0, 16.0, 16.0]])


def close(found: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=tolerance, atol=tolerance)


def example() -> FeatureLevel:
    """A teacher of variance 1, and a student that differs from it by `ROOTS` in both channels."""
    teacher = torch.tensor([1.0, -1.0], dtype=torch.float64)[None, :, None, None].expand(1, 2, 2, 2)
    return FeatureLevel(teacher + ROOTS, teacher, 8)


def random_level(seed: int = 0, size: int = 4, images: int = 2, stride: int = 8) -> FeatureLevel:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, images, 3, size, size, generator=generator, dtype=torch.float64)
    return FeatureLevel(student.requires_grad_(), teacher, stride)


BOXES = [torch.tensor([[2.0, 3.0, 14.0, 15.0], [20.0, 9.0, 30.0, 30.0]]), torch.tensor([[0.0, 0.0, 9.0, 30.0]])]


def test_gd_1_equal_features_give_zero_and_no_gradient() -> None:
    level = random_level()
    equal = FeatureLevel(level.teacher.clone().requires_grad_(), level.teacher, 8)
    loss = imitation_loss([equal], BOXES)
    loss.backward()
    assert loss == 0 and not equal.student.grad.any()


def test_gd_2_the_scale_of_the_features_does_not_matter() -> None:
    level = random_level()
    for scale in (1e-3, 50.0):
        scaled = FeatureLevel(scale * level.student, scale * level.teacher, 8)
        close(imitation_loss([scaled], BOXES), imitation_loss([level], BOXES))


def test_gd_3_without_selection_it_is_the_sum_of_the_regions_means() -> None:
    close(imitation_loss([example()], [TOP_ROW], options=PLAIN), 0.5 + 6.5, 1e-8)
    close(imitation_loss([example()], [TOP_ROW], options=choose_method(fraction=1, temperature=None)), 7.0)


def test_gd_4_half_of_the_cells_are_the_more_valuable_cell_of_each_row() -> None:
    halved = choose_method(temperature=1e9)
    close(imitation_loss([example()], [TOP_ROW], options=halved), 1.0 + 9.0, 1e-8)
    foreground, background = choose_valuable([example()], [TOP_ROW], options=halved)[0]
    assert foreground.tolist() == [[[False, True], [False, False]]]
    assert background.tolist() == [[[False, False], [False, True]]]


def test_gd_5_the_regions_have_their_own_weights() -> None:
    for foreground, background, expected in ((1, 0, 1.0), (0, 1, 9.0), (2, 0.5, 6.5)):
        options = choose_method(temperature=None, foreground_weight=foreground, background_weight=background)
        close(imitation_loss([example()], [TOP_ROW], options=options), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("boxes", [NONE, EVERYTHING * 2], ids=["no box", "boxes everywhere"])
def test_gd_6_an_empty_region_is_an_empty_sum(method: str, boxes: Tensor) -> None:
    level = random_level()
    with_anchors = FeatureLevel(level.student, level.teacher, 8, anchors=torch.tensor([[16.0, 16.0]]))
    loss = imitation_loss([with_anchors], [boxes, boxes], options=METHODS[method])
    loss.backward()
    assert loss.isfinite() and level.student.grad.isfinite().all()


def test_gd_6_only_the_region_that_there_is_counts() -> None:
    close(imitation_loss([example()], [NONE], options=PLAIN), 3.5, 1e-8)
    close(imitation_loss([example()], [EVERYTHING], options=PLAIN), 3.5, 1e-8)
    for boxes, name in ((NONE, "foreground_weight"), (EVERYTHING, "background_weight")):
        without = choose_method(temperature=None, **{name: 0})
        every = choose_method(temperature=None)
        assert imitation_loss([example()], [boxes], options=without) == imitation_loss(
            [example()], [boxes], options=every
        )


@pytest.mark.parametrize("method", METHODS)
def test_gd_7_masks_carry_no_gradient(method: str) -> None:
    level = random_level()
    options, anchors = METHODS[method], torch.tensor([[8.0, 8.0], [16.0, 9.0]])
    fixed = choose_valuable([FeatureLevel(level.student, level.teacher, 8, anchors=anchors)], BOXES, options=options)

    def loss(student: Tensor, *, frozen: bool = True) -> Tensor:
        given = FeatureLevel(student, level.teacher, 8, anchors=anchors)
        return imitation_loss([given], BOXES, options=options, cells=fixed if frozen else None)

    assert torch.autograd.gradcheck(loss, [level.student], eps=1e-6, atol=1e-8, rtol=1e-6)
    (frozen,) = torch.autograd.grad(loss(level.student), level.student)
    (chosen,) = torch.autograd.grad(loss(level.student, frozen=False), level.student)
    assert torch.equal(frozen, chosen)


def test_the_teacher_gets_no_gradient() -> None:
    level = random_level()
    teacher = level.teacher.requires_grad_()
    imitation_loss([FeatureLevel(level.student, teacher, 8)], BOXES).backward()
    assert teacher.grad is None and level.student.grad.any()


def test_gd_8_attention_has_the_mean_one_in_every_image() -> None:
    level = random_level()
    teacher = level.teacher
    # FGD without boxes averages attention times difference over an image; here the difference is the same everywhere.
    shifted = FeatureLevel(teacher + 2, teacher, 8)
    options = choose_method("fgd", channel_attention=False, foreground_weight=0, background_weight=1)
    close(imitation_loss([shifted], [NONE, NONE], options=options), 3 * 2.0**2)
    options = choose_method("fgd", foreground_weight=0, background_weight=1)
    close(imitation_loss([shifted], [NONE, NONE], options=options), 3 * 2.0**2)


def test_attention_weighs_the_cells_by_the_strength_of_the_teacher() -> None:
    teacher = torch.tensor([[0.0, 0.0], [0.0, math.log(5)]], dtype=torch.float64)[None, None]
    options = choose_method(fraction=1, temperature=1, normalisation="mean")
    # The attention of the four cells is 1/2, 1/2, 1/2 and 5/2.
    close(imitation_loss([FeatureLevel(teacher + ROOTS, teacher, 8)], [TOP_ROW], options=options), 0.5 + 49 / 6)
    close(imitation_loss([FeatureLevel(teacher + ROOTS, teacher, 8)], [NONE], options=options), 50 / 8)


@pytest.mark.parametrize("method", METHODS)
def test_gd_9_padding_changes_nothing(method: str) -> None:
    level, options = random_level(), METHODS[method]
    # The large anchors fit a box from many cells, those in the padding included.
    anchors = torch.tensor([[8.0, 8.0], [40.0, 30.0]])
    outside = random_level(seed=1, size=7)
    padded = []
    for inner, outer in ((level.student, outside.student), (level.teacher, outside.teacher)):
        wide = 100 * outer.detach().clone()
        wide[:, :, :4, :4] = inner.detach()
        padded.append(wide.requires_grad_(inner.requires_grad))
    area = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    # The last box ends in the padding, where it means nothing.
    boxes = [BOXES[0], torch.tensor([[0.0, 0.0, 9.0, 50.0]])]
    inner_boxes = [BOXES[0], torch.tensor([[0.0, 0.0, 9.0, 32.0]])]
    if method == "fgfi":
        boxes = inner_boxes  # there the extent of a box is compared with anchors
    wide_level = FeatureLevel(*padded, 8, anchors=anchors)
    found = imitation_loss([wide_level], boxes, options=options, areas=[area, area])
    expected = imitation_loss(
        [FeatureLevel(level.student, level.teacher, 8, anchors=anchors)], inner_boxes, options=options
    )
    close(found, expected)
    found.backward()
    assert not padded[0].grad[:, :, 4:].any() and not padded[0].grad[:, :, :, 4:].any()
    for chosen in choose_valuable([wide_level], boxes, options=options, areas=[area, area])[0]:
        assert not chosen[:, 4:].any() and not chosen[:, :, 4:].any()


def test_an_image_may_lie_anywhere_in_the_square() -> None:
    level, rolled = random_level(), []
    area = torch.tensor([[0.0, 0.0, 24.0, 16.0]])
    boxes = [torch.tensor([[2.0, 3.0, 14.0, 15.0]]), NONE]
    for features in (level.student, level.teacher):
        rolled.append(features.roll((2, 1), (2, 3)))
    shift = torch.tensor([8.0, 16.0, 8.0, 16.0])
    moved = imitation_loss(
        [FeatureLevel(*rolled, 8)], [each + shift for each in boxes], areas=[area + shift, area + shift]
    )
    close(moved, imitation_loss([level], boxes, areas=[area, area]))
    empty = imitation_loss([level], boxes, areas=[NONE, NONE])
    empty.backward()
    assert empty == 0 and not level.student.grad.any()


def test_gd_10_the_order_of_the_images_does_not_matter() -> None:
    level = random_level()
    flipped = FeatureLevel(level.student.flip(0), level.teacher.flip(0), 8)
    close(imitation_loss([flipped], BOXES[::-1]), imitation_loss([level], BOXES))
    (chosen,) = choose_valuable([level], BOXES)
    (flipped_chosen,) = choose_valuable([flipped], BOXES[::-1])
    assert all(torch.equal(one, other.flip(0)) for one, other in zip(chosen, flipped_chosen, strict=True))


def test_levels_are_averaged() -> None:
    coarse, fine = random_level(size=2, stride=16), random_level(1)
    apart = [imitation_loss([level], BOXES) for level in (coarse, fine)]
    close(imitation_loss([coarse, fine], BOXES), sum(apart) / 2)


def with_carriers(plan: PruningPlan, student: nn.Module, name: str) -> ChannelCut:
    """The cut of a layer: surgery gives carriers, and in these plans only them, a gamma of zero."""
    gamma = student.get_parameter(f"{name}.bn.weight")
    return ChannelCut(plan.kept[f"{name}.conv"], (gamma == 0).nonzero().flatten().tolist())


def read_features(detector: nn.Module, names: list[str], images: Tensor) -> list[Tensor]:
    features = {}
    hooks = [
        detector.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: features.update({name: output})
        )
        for name in names
    ]
    with torch.no_grad():
        detector.head_outputs(images)
    for hook in hooks:
        hook.remove()
    return [features[name] for name in names]


STRIDES = {"coarse": 32, "middle": 16, "fine": 8}


@pytest.mark.parametrize("name", ["yolov4-tiny", "yolov3", "yolov4"])
def test_gd_11_a_pruned_student_has_the_features_of_its_masked_teacher(name: str) -> None:
    detector = make_tiny_detector(name=name, dtype=torch.float64).eval()
    images, targets = make_tiny_batch(dtype=torch.float64)
    boxes = [target["boxes"] for target in targets]
    names = ["coarse", "fine"] if name == "yolov4-tiny" else ["coarse", "middle", "fine"]
    student, cuts = detector, {head: [] for head in names}
    # The second cut is one of the student of the first, so that its lists have to be composed.
    for ratio in (0.4, 0.3):
        plan = plan_pruning(student, ratio)
        pruned = apply_plan(student, plan, compensate="exact")
        for head in names:
            cuts[head].append(with_carriers(plan, pruned, head))
        last = {head: cuts[head][-1:] for head in names}
        check_zero_loss(pruned, mask_plan(student, plan, keep_beta=True), last, images, boxes)
        student = pruned
    # Composed through both cuts, the channels are still those of the first teacher.
    for head in names:
        before = detector.get_parameter(f"{head}.bn.bias")[None, :, None, None]
        after = student.get_parameter(f"{head}.bn.bias")[None, :, None, None]
        mine, theirs = select_teacher_channels(after, before, cuts[head])
        assert torch.equal(mine, theirs) and 0 < mine.shape[1] < before.shape[1]


def check_zero_loss(
    student: nn.Module, teacher: nn.Module, cuts: dict[str, list[ChannelCut]], images: Tensor, boxes: list[Tensor]
) -> None:
    names = list(cuts)
    strides = [16 if head == "fine" and len(names) == 2 else STRIDES[head] for head in names]
    pairs = zip(read_features(student, names, images), read_features(teacher, names, images), strict=True)
    for (mine, theirs), head, stride in zip(pairs, names, strides, strict=True):
        level = FeatureLevel(*select_teacher_channels(mine, theirs, cuts[head]), stride)
        close(level.student, level.teacher, 1e-11)
        for options in METHODS.values():
            if options.foreground != "anchors":
                assert imitation_loss([level], boxes, options=options) < 1e-24


def test_carriers_of_an_exact_compensation_are_left_out() -> None:
    def make_net() -> nn.Sequential:
        first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        return nn.Sequential(first, nn.Conv2d(8, 2, 3, padding=1)).double().eval()

    torch.manual_seed(0)
    net, plan = make_net(), PruningPlan({"0.0": [1, 4, 6]}, threshold=0.0, ratio=0.0, importance="by hand")
    nn.init.uniform_(net[0][1].bias, 0.1, 1.0)
    nn.init.uniform_(net[0][1].weight, 0.5, 1.0)
    pruned = apply_plan(net, plan, compensate="exact")
    carriers = (pruned[0][1].weight == 0).nonzero().flatten().tolist()
    assert len(carriers) == 1 and pruned[0][0].out_channels == 4
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    masked = mask_plan(net, plan, keep_beta=True)
    mine, theirs = select_teacher_channels(pruned[0](images), masked[0](images), [ChannelCut([1, 4, 6], carriers)])
    assert mine.shape == theirs.shape == (2, 3, 16, 16)
    close(imitation_loss([FeatureLevel(mine, theirs, 1)], [TOP_ROW, NONE]), 0.0)


def test_channel_lists_are_composed_through_several_cuts() -> None:
    teacher = torch.arange(8.0)[None, :, None, None]
    cuts = [ChannelCut([1, 2, 5, 7], carriers=[0, 3]), ChannelCut([0, 1, 4, 5], carriers=[2])]
    # After the first cut the channels are carrier, 1, 2, carrier, 5, 7; the second keeps a carrier, 1, 5 and 7.
    student = torch.tensor([-1.0, 1.0, -1.0, 5.0, 7.0])[None, :, None, None]
    mine, theirs = select_teacher_channels(student, teacher, cuts)
    assert mine.flatten().tolist() == theirs.flatten().tolist() == [1.0, 5.0, 7.0]
    mine, theirs = select_teacher_channels(teacher, teacher, [])
    assert torch.equal(mine, theirs)


def test_a_learned_adapter_gets_a_gradient_and_can_reach_the_teacher() -> None:
    torch.manual_seed(0)
    adapter = ChannelAdapter([2, 3], [3, 3]).double()
    level = random_level()
    student = [torch.randn(2, 2, 2, 2, dtype=torch.float64), level.student.detach()]
    coarse, fine = adapter(student)
    assert coarse.shape == (2, 3, 2, 2)
    imitation_loss([FeatureLevel(fine, level.teacher, 8)], BOXES).backward()
    assert adapter.layers[1].weight.grad.any() and adapter.layers[0].weight.grad is None
    with torch.no_grad():
        adapter.layers[1].weight.copy_(torch.eye(3)[:, :, None, None])
        adapter.layers[1].bias.zero_()
    close(imitation_loss([FeatureLevel(adapter(student)[1], student[1], 8)], BOXES), 0.0)


def test_levels_of_equal_stride_are_paired() -> None:
    assert pair_levels((32, 16), (32, 16, 8)) == [(0, 0), (1, 1)]
    assert pair_levels((16, 8), (32, 16)) == [(0, 1)]


def squares(level: FeatureLevel) -> Tensor:
    return (level.student - level.teacher).square()


def touched(images: int = 2) -> Tensor:
    """The cells of 8 pixels that `BOXES` touch, by hand."""
    mask = torch.zeros(images, 4, 4, dtype=torch.bool)
    mask[0, :2, :2] = True
    mask[0, 1:, 2:] = True
    mask[1, :, :2] = True
    return mask


def test_fitnets_is_half_the_mean_squared_error() -> None:
    level = random_level()
    close(imitation_loss([level], BOXES, options=METHODS["fitnets"]), squares(level).mean() / 2)


def test_defeat_is_the_error_inside_and_outside_of_the_boxes() -> None:
    level = random_level()
    mask = touched()[:, None].expand(-1, 3, -1, -1)
    inside, outside = squares(level)[mask], squares(level)[~mask]
    expected = 3 * inside.sum() / (2 * len(inside)) + 12 * outside.sum() / (2 * len(outside))
    close(imitation_loss([level], BOXES, options=METHODS["defeat"]), expected)


@pytest.mark.parametrize(
    ("anchors", "columns"),
    [
        # Only the wide anchor in the box's own cell: IoU 1/2; beside it 32 / 160, less than half of that.
        ([[16.0, 8.0]], slice(1, 2)),
        # IoU 64 / 160 in the box's cell, and 48 / 176 beside it.
        ([[20.0, 8.0]], slice(0, 3)),
        # The square anchor has IoU 1, so that 48 / 176 is no longer enough.
        ([[20.0, 8.0], [8.0, 8.0]], slice(1, 2)),
    ],
)
def test_fgfi_imitates_where_an_anchor_fits_half_as_well_as_the_best(
    anchors: list[list[float]], columns: slice
) -> None:
    level = random_level(images=1)
    with_anchors = FeatureLevel(level.student, level.teacher, 8, anchors=torch.tensor(anchors))
    box = torch.tensor([[8.0, 16.0, 16.0, 24.0]])
    error = squares(level)[0, :, 2, columns]
    close(imitation_loss([with_anchors], [box], options=METHODS["fgfi"]), error.sum() / (2 * error.shape[1]))


def test_fgd_weighs_cells_and_channels_by_attention_and_each_box_as_one() -> None:
    level = random_level()
    strength = level.teacher.abs()
    by_cell = 16 * (strength.mean(1) / 0.5).flatten(1).softmax(1).view(2, 1, 4, 4)
    by_channel = 3 * (strength.mean((2, 3)) / 0.5).softmax(1).view(2, 3, 1, 1)
    scale = torch.zeros(2, 4, 4, dtype=torch.float64)
    scale[0, 1:, 2:] = 1 / 6
    scale[0, :2, :2] = 1 / 4
    scale[1, :, :2] = 1 / 8
    # The smaller of two boxes prevails where both touch a cell.
    boxes = [torch.cat([BOXES[0], torch.tensor([[9.0, 9.0, 10.0, 31.0]])]), BOXES[1]]
    mask = touched()
    mask[0, 1:, 1] = True
    scale[0, 1:, 1] = 1 / 3
    background = ~mask / (~mask).sum((1, 2), keepdim=True).double()
    terms = (by_cell * by_channel * squares(level)).sum(1)
    expected = (1e-3 * (terms * scale).sum() + 5e-4 * (terms * background).sum()) / 2
    close(imitation_loss([level], boxes, options=METHODS["fgd"]), expected)


@pytest.mark.parametrize("fraction", [0.125, 0.1, 0.25, 0.5, 0.55, 0.9, 1.0])
@pytest.mark.parametrize("value", ["attention-difference", "attention", "difference", "response"])
def test_the_chosen_cells_are_the_most_valuable_ones(fraction: float, value: str) -> None:
    level = random_level(size=10)
    response = torch.rand(2, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    boxes = [torch.tensor([[0.0, 0.0, 80.0, 24.0]]), NONE]
    options = choose_method(fraction=fraction, value=value)
    given = FeatureLevel(level.student, level.teacher, 8, response=response)
    foreground, background = choose_valuable([given], boxes, options=options)[0]
    assert foreground.sum((1, 2)).tolist() == [math.ceil(round(30 * fraction, 9)), 0]
    assert background.sum((1, 2)).tolist() == [math.ceil(round(n * fraction, 9)) for n in (70, 100)]
    attention = (level.teacher.abs().mean(1) / (0.5 * level.teacher.std(correction=0))).exp()
    difference = squares(level).sum(1)
    scores = {"attention": attention, "difference": difference, "response": response}
    score = scores.get(value, attention * difference)
    assert score[1][background[1]].min() >= score[1][~background[1]].max() if fraction < 1 else background[1].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype: torch.dtype) -> None:
    level = random_level(size=8, stride=4)
    student = level.student.detach().to(dtype).requires_grad_()
    half = FeatureLevel(student, level.teacher.to(dtype), 4)
    loss = imitation_loss([half], BOXES)
    loss.backward()
    exact = imitation_loss([FeatureLevel(student.detach().double(), half.teacher.double(), 4)], BOXES)
    assert loss.dtype == torch.float32 and student.grad.dtype == dtype and student.grad.isfinite().all()
    close(loss, exact, 1e-5)
    # In half precision these squares would overflow.
    large = FeatureLevel(student * 300, half.teacher * 300, 4)
    assert imitation_loss([large], BOXES, options=METHODS["fitnets"]).isfinite()


def test_a_constant_teacher_divides_by_nothing() -> None:
    level = random_level()
    constant = FeatureLevel(level.student, torch.full_like(level.teacher, 0.1), 8)
    close(imitation_loss([constant], [NONE, NONE], options=PLAIN), squares(constant).mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0}, "imitation gd: fraction: Input should be greater than 0"),
        ({"fraction": 1.5}, "imitation gd: fraction: Input should be less than or equal to 1"),
        ({"foreground_weight": -1}, "imitation gd: foreground_weight: Input should be greater than or equal to 0"),
        ({"background_weight": -0.1}, "imitation gd: background_weight: Input should be greater than or equal to 0"),
        ({"temperature": 0}, "imitation gd: temperature: Input should be greater than 0"),
        ({"value": "size"}, "imitation gd: value: Input should be 'attention-difference'"),
        ({"share": 0.5}, "imitation gd: unknown key 'share'"),
        ({"temperature": None, "channel_attention": True}, "imitation gd: channel_attention needs a temperature"),
        ({"foreground": "anchors", "balance": "box"}, "balance 'box' needs the foreground 'boxes', not 'anchors'"),
        ({"name": "kd"}, "imitation 'kd' is not known; choose one of: gd, fitnets, fgfi, defeat, fgd"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        choose_method(**settings)
    assert "\n" not in str(caught.value)


def test_features_that_do_not_fit_are_refused_in_one_line() -> None:
    level = random_level()
    with pytest.raises(
        ValueError, match=r"^level of stride 8: the student's features \[2, 3, 4, 4\] and the teacher's"
    ):
        FeatureLevel(level.student, level.teacher[:, :2], 8)
    with pytest.raises(ValueError, match=r"^level of stride 0: a stride must be ≥ 1$"):
        FeatureLevel(level.student, level.teacher, 0)
    with pytest.raises(ValueError, match=r"^level of stride 8: responses \[2, 4\] do not match features"):
        FeatureLevel(level.student, level.teacher, 8, response=torch.rand(2, 4))
    with pytest.raises(ValueError, match=r"^the strides do not fit the features: their rows span \[32, 64\] pixels$"):
        imitation_loss([level, random_level(stride=16)], BOXES)
    with pytest.raises(ValueError, match=r"^boxes of 1 images for features of 2$"):
        imitation_loss([level], BOXES[:1])
    with pytest.raises(ValueError, match=r"^areas of 1 images for features of 2$"):
        imitation_loss([level], BOXES, areas=[EVERYTHING])
    with pytest.raises(ValueError, match="there is no level of features"):
        imitation_loss([], BOXES)
    with pytest.raises(ValueError, match=r"^level of stride 8: the foreground 'anchors' needs anchors$"):
        imitation_loss([level], BOXES, options=METHODS["fgfi"])
    with pytest.raises(ValueError, match=r"^level of stride 8: the value 'response' needs responses$"):
        imitation_loss([level], BOXES, options=choose_method(value="response"))


def test_adapters_that_do_not_fit_are_refused_in_one_line() -> None:
    features = torch.rand(1, 4, 2, 2)
    with pytest.raises(ValueError, match=r"^the cuts leave 2 channels, but the student has 4$"):
        select_teacher_channels(features, features, [ChannelCut([0, 1])])
    with pytest.raises(ValueError, match=r"^cut 2 keeps a channel outside of 0\.\.1$"):
        select_teacher_channels(features, features, [ChannelCut([0, 1]), ChannelCut([2])])
    with pytest.raises(ValueError, match=r"^cut 1 has a carrier outside of 0\.\.2$"):
        select_teacher_channels(features, features, [ChannelCut([0, 1], carriers=[3])])
    with pytest.raises(ValueError, match="no stride in common"):
        pair_levels((32,), (16, 8))
    with pytest.raises(ValueError, match=r"^the student has 1 levels, the teacher 2$"):
        ChannelAdapter([1], [1, 2])
    with pytest.raises(ValueError, match=r"^features of 1 levels for an adapter of 2$"):
        ChannelAdapter([4, 4], [1, 2])([features])
