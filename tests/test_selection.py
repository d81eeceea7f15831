"""Instance selection (ISD) and the loss of hard boxes (TSA) in closed form, in float64."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_batch
from hypothesis import given
from hypothesis import strategies as st
from test_objectives import make, seeded
from torch import Tensor

from paperlib.detectors import DETECTORS
from paperlib.detectors.base import InstanceLogits, Instances
from paperlib.distillation.answers import ask_both
from paperlib.distillation.dynamic_options import DynamicOptions
from paperlib.distillation.hardness import (
    box_hardness,
    box_losses,
    box_weights,
    find_bins,
    start_status,
    update_status,
    weighted_mean,
)
from paperlib.distillation.losses import soft_losses
from paperlib.distillation.selection import instance_losses, select_instances
from paperlib.typed_options import check_values

USUAL = DynamicOptions()
HUGE = 1e6


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def judged(classes: Tensor, truth: Tensor, box: Tensor | None = None) -> Instances:
    """Instances with logits `[n, C]` under the plain binary cross entropy."""
    losses = F.binary_cross_entropy_with_logits(classes, truth, reduction="none").sum(1)
    logits = {"classes": InstanceLogits(classes, torch.arange(len(classes)), torch.ones_like(classes))}
    return Instances(logits, losses, torch.zeros_like(losses) if box is None else box, classes.argmax(1) == 0)


def select(student: Instances, teacher: Instances, **settings: object) -> tuple[list[float], list[float]]:
    classes, boxes = select_instances(student, teacher, check_values(DynamicOptions, "test", **settings))
    return classes.tolist(), boxes.tolist()


def learn(student: Instances, teacher: Instances, options: DynamicOptions = USUAL) -> Tensor:
    return weighted_mean(
        [(select_instances(student, teacher, options)[0], instance_losses(student, teacher, "sigmoid"))]
    )


TRUTH = tensor([1, 0], [1, 0], [0, 1])
LOGITS = tensor([2, -1], [0.5, 0.1], [-1, 0.3])

# --- instances ----------------------------------------------------------------------------------------


def test_isd_1_a_teacher_like_the_student_is_never_better() -> None:
    student = judged(LOGITS.clone().requires_grad_(), TRUTH)
    loss = learn(student, judged(LOGITS, TRUTH))
    loss.backward()
    assert loss == 0 and not student.logits["classes"].values.grad.any()


def test_isd_2_a_perfect_teacher_teaches_every_instance() -> None:
    perfect = judged(HUGE * (2 * TRUTH - 1), TRUTH)
    assert select(judged(LOGITS, TRUTH), perfect)[0] == [1, 1, 1]
    assert select(perfect, perfect)[0] == [0, 0, 0]


def test_isd_3_the_loss_is_that_of_the_instances_on_which_the_teacher_is_better() -> None:
    student, teacher = judged(LOGITS[:2], TRUTH[:2]), judged(tensor([1, -0.5], [3, -2]), TRUTH[:2])
    assert select(student, teacher)[0] == [0, 1]
    p, q = teacher.logits["classes"].values[1].sigmoid(), LOGITS[1].sigmoid()
    expected = -(p * q.log() + (1 - p) * (1 - q).log()).sum()
    torch.testing.assert_close(learn(student, teacher), expected)


def test_isd_4_what_a_rejected_teacher_says_changes_nothing() -> None:
    values = [
        learn(judged(LOGITS, TRUTH), judged(tensor([1, -0.5], [3, -2], last), TRUTH)) for last in ([9, 2], [8, -7])
    ]
    assert values[0] == values[1]


def test_isd_5_an_outlier_of_the_teacher_is_dropped_and_that_of_the_student_is_pulled_down() -> None:
    convinced, doubtful = (tensor([math.log(p / (1 - p))]) for p in (0.9, 0.1))
    background = tensor([0])
    assert select(judged(doubtful, background), judged(convinced, background))[0] == [0]
    logits = convinced.clone().requires_grad_()
    learn(judged(logits, background), judged(doubtful, background)).backward()
    assert logits.grad > 0


def test_margin_softness_and_split_masks() -> None:
    student, teacher = judged(LOGITS, TRUTH, tensor(1, 1, 3)), judged(HUGE * (2 * TRUTH - 1), TRUTH, tensor(2, 0, 2.5))
    lead = student.losses - teacher.losses
    assert select(student, teacher, margin=float(lead[1]))[0] == (lead > lead[1]).double().tolist()
    soft = select(student, teacher, softness=0.3, margin=0.1)[0]
    torch.testing.assert_close(tensor(*soft), ((lead - 0.1) / 0.3).sigmoid())
    assert select(student, teacher, split_masks=True) == ([1, 1, 1], [0, 1, 1])
    assert select(student, teacher, selection="all") == ([1, 1, 1], [1, 1, 1])
    assert select(teacher, student, selection="correct")[0] == [1, 1, 0]


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_the_gradient_of_the_instances_agrees_with_finite_differences(kind) -> None:
    teacher, mask = judged(tensor([1, -0.5], [3, -2], [0, 1]), TRUTH), tensor(1, 0, 0.6)

    def loss(logits: Tensor) -> Tensor:
        weights = torch.ones_like(logits if kind == "sigmoid" else logits[:, 0]) * 1.7
        student = replace(judged(logits, TRUTH), logits={"classes": InstanceLogits(logits, torch.arange(3), weights)})
        return weighted_mean([(mask, instance_losses(student, teacher, kind, temperature=2.0))])

    assert torch.autograd.gradcheck(loss, [LOGITS.clone().requires_grad_()], eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.fixture(scope="module", params=DETECTORS)
def answers(request):
    return seeded(
        lambda: ask_both(
            make(request.param).eval(), make(request.param, 1).eval(), *make_tiny_batch(dtype=torch.float64)
        )
    )


def test_isd_6_inheriting_all_is_the_soft_loss_restricted_to_positives(answers) -> None:
    student, teacher = answers.responses
    soft = soft_losses(student, teacher, 1.0)
    for name, mine in student.instances.logits.items():
        one = Instances({name: mine}, *([student.instances.class_losses] * 2), student.instances.correct)
        total = instance_losses(one, teacher.instances, student.kind).sum()
        divisor = len(student.logits[name]) if student.kind == "softmax" else answers.assignment.count
        if name == "classes" and student.kind == "sigmoid":
            torch.testing.assert_close(total / divisor, soft[name])
            continue
        # Of an objectness or a heat map, the other rows have no weight then. A row counts once for each of its boxes.
        if name == "objectness":
            times = torch.zeros_like(student.weights[name])
            ones = torch.ones_like(mine.values)
            times.index_put_((answers.assignment.image, answers.assignment.row), ones, accumulate=True)
        else:
            truth = student.hard_targets[name]
            times = truth[:, 1:].any(1) if student.kind == "softmax" else truth == 1
        masked = {**student.weights, name: student.weights[name] * times}
        torch.testing.assert_close(total / divisor, soft_losses(replace(student, weights=masked), teacher, 1.0)[name])


def test_isd_7_both_are_judged_on_one_assignment_by_the_detectors_own_loss(answers) -> None:
    student, teacher = answers.responses
    assert torch.equal(student.regression_target, teacher.regression_target)
    assert torch.equal(student.true_boxes, teacher.true_boxes) and len(student.true_boxes)
    parts, losses = student.instances, answers.losses
    assert torch.equal(student.instance_losses, parts.class_losses + parts.box_losses)
    if student.kind == "softmax":
        first = int(answers.assignment.objects.sum())
        sizes = len(answers.assignment.row), len(answers.assignment.labels)
        boxes = parts.box_losses[:first].sum() / sizes[0], parts.box_losses[first:].sum() / sizes[1]
        expected = losses["rpn_box"], losses["box"]
    else:
        boxes = (parts.box_losses.sum() / answers.assignment.count,)
        expected = (losses["box"] if "box" in losses else losses["offset"] + losses["size"],)
        decoded, _ = answers.student.decode(answers.outputs, (64, 64))
        own = decoded[answers.assignment.image, answers.assignment.row]
        torch.testing.assert_close(student.boxes, own)
    torch.testing.assert_close(boxes, expected)


def test_candidates_are_the_teachers_highest_scores_without_an_object(answers) -> None:
    teacher, outputs, assignment = answers.teacher, answers.teacher_outputs, answers.assignment
    chosen, everything = (teacher.find_background(outputs, assignment, limit) for limit in (5, 10**6))
    student, judged = answers.background(5)
    assert len(student.losses) == len(judged.losses) == len(chosen[0]) <= 10 and not student.box_losses.any()
    two_stage = "classes" in student.logits
    # The less a proposal looks like background, the larger is its loss; rows are in the order of their scores.
    losses = teacher.background_responses(outputs, assignment, everything).losses
    for image in range(2):
        here = everything[0] == image
        order = losses[here].argsort(descending=True) if two_stage else torch.arange(int(here.sum()))
        assert set(everything[1][here][order[:5]].tolist()) == set(chosen[1][chosen[0] == image].tolist())
    if not two_stage:
        positive = set(zip(assignment.image.tolist(), assignment.row.tolist(), strict=True))
        assert not positive & set(zip(*(each.tolist() for each in everything), strict=True))


# --- boxes --------------------------------------------------------------------------------------------


def box(width: float, height: float, left: float = 100.0, top: float = 50.0) -> Tensor:
    return tensor([left, top, left + width, top + height])


def options(**settings: object) -> DynamicOptions:
    return check_values(DynamicOptions, "test", **settings)


@pytest.mark.parametrize(
    ("sides", "expected"), [((8, 8), 0.4), ((16, 16), 2 / 9), ((32, 32), 2 / 17), ((64, 16), 2 / 9)]
)
def test_tsa_1_a_displaced_box_is_the_harder_the_smaller_and_the_more_elongated_it_is(sides, expected) -> None:
    truth = box(*sides)
    hardness = box_hardness(box(*sides, top=52.0), truth)
    torch.testing.assert_close(hardness, tensor(expected))
    assert expected == pytest.approx(2 * 2 / (sides[1] + 2))


def test_tsa_1_the_ratio_of_two_weights_is_that_of_their_sides_plus_the_displacement() -> None:
    truth = torch.cat([box(64, 16), box(32, 32)])
    moved = truth + tensor([0, 2, 0, 2])
    weights = box_weights(moved, truth, tensor(0.5), USUAL, HUGE)
    torch.testing.assert_close(weights[0] / weights[1], tensor(34.0 / 18)[0])


def test_tsa_2_equally_hard_boxes_weigh_one_and_tsa_4_the_weight_has_a_cap() -> None:
    truth = box(20, 20).repeat(3, 1)
    moved = truth + tensor([0, 4, 0, 4])
    status = update_status(start_status(USUAL), moved, truth, USUAL)
    weights = box_weights(moved, truth, status, USUAL, HUGE)
    torch.testing.assert_close(weights, torch.ones_like(weights))
    losses = box_losses(moved, truth, truth, status, USUAL)
    torch.testing.assert_close((weights * losses).mean(), losses.mean())
    assert box_weights(moved, truth, status / 100, USUAL, HUGE).tolist() == [3, 3, 3]
    assert box_weights(truth, truth, 0 * status, USUAL, HUGE).tolist() == [0, 0, 0]


def test_tsa_3_the_status_approaches_a_constant_hardness_at_the_rate_of_its_decay() -> None:
    truth = box(20, 20)
    easy, hard = truth + tensor([0, 1, 0, 1]), truth + tensor([0, 8, 0, 8])
    first, h = box_hardness(easy, truth), box_hardness(hard, truth)
    status = update_status(start_status(USUAL), easy, truth, USUAL)
    torch.testing.assert_close(status, first)
    for step in range(1, 6):
        status = update_status(status, hard, truth, USUAL)
        torch.testing.assert_close(status, h + 0.98**step * (first - h))
    nothing = truth[:0]
    assert torch.equal(update_status(status, nothing, nothing, USUAL), status)
    assert update_status(start_status(USUAL), nothing, nothing, USUAL).isnan().all()


def test_tsa_3_the_status_is_the_mean_over_all_processes(monkeypatch) -> None:
    truth = box(20, 20)
    here, there = truth + tensor([0, 1, 0, 1]), torch.cat([truth + tensor([0, 8, 0, 8])] * 2)

    def add_the_other(sums: Tensor) -> None:
        sums += torch.stack([box_hardness(there, truth.repeat(2, 1)).sum(), tensor(2)[0]])[:, None]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", add_the_other)
    both = box_hardness(torch.cat([here, there]), truth.repeat(3, 1))
    torch.testing.assert_close(update_status(start_status(USUAL), here, truth, USUAL), both.mean()[None])


def test_tsa_5_no_gradient_passes_the_weights_and_tsa_6_the_teachers_box_has_no_loss() -> None:
    truth, boxes = box(20, 30), box(22, 28, 102, 49).requires_grad_()
    weights = box_weights(boxes, truth, tensor(0.3), USUAL, HUGE)
    assert not weights.requires_grad and weights != 1
    assert box_losses(boxes, boxes.detach(), truth, tensor(0.3), USUAL).abs() < 1e-6


@pytest.mark.parametrize("form", ["status", "smooth"])
@given(sides=st.lists(st.floats(4, 60), min_size=8, max_size=8))
def test_the_gradient_of_each_form_of_the_loss_agrees_with_finite_differences(form, sides) -> None:
    width, height, wide, high, left, top, right, bottom = sides
    goal, truth = box(width, height), box(wide, high)
    # No side is shorter than a pixel, and no corner lies on that of the goal, where the overlap has a kink.
    boxes = (goal + tensor([left / 21, top / 21, right / 5, bottom / 5])).requires_grad_()
    status, chosen = tensor(0.37), options(regression=form)

    def loss(x: Tensor) -> Tensor:
        if form == "status":
            return frozen_ciou(x, goal, boxes.detach()).sum()
        return box_losses(x, goal, truth, status, chosen).sum()

    (gradient,) = torch.autograd.grad(box_losses(boxes, goal, truth, status, chosen).sum(), boxes)
    torch.testing.assert_close(gradient, differences(loss, boxes.detach()), rtol=1e-6, atol=1e-6)


def frozen_ciou(boxes: Tensor, goal: Tensor, frozen: Tensor) -> Tensor:
    """1 - CIoU by its definition (Zheng et al. 2020), in which the factor alpha has no gradient."""

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        overlap = 1 - plain_hardness(x, goal)
        angles = [torch.atan((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1])) for b in (goal, x)]
        return overlap, 4 / math.pi**2 * (angles[0] - angles[1]) ** 2

    overlap, v = parts(boxes)
    fixed, fixed_v = parts(frozen)
    alpha = fixed_v / (1 - fixed + fixed_v + 1e-7)
    low, high = torch.minimum(boxes[:, :2], goal[:, :2]), torch.maximum(boxes[:, 2:], goal[:, 2:])
    centres = [(b[:, :2] + b[:, 2:]) / 2 for b in (boxes, goal)]
    apart = (centres[0] - centres[1]).square().sum(1) / (high - low).square().sum(1)
    return 1 - overlap + apart + alpha * v


def plain_hardness(first: Tensor, second: Tensor) -> Tensor:
    sides = (torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])).clamp(min=0)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (first, second)]
    return 1 - sides.prod(1) / (sum(areas) - sides.prod(1))


def differences(function, point: Tensor, step: float = 1e-5) -> Tensor:
    gradient = torch.zeros_like(point)
    for index in itertools.product(*map(range, point.shape)):
        shift = torch.zeros_like(point)
        shift[index] = step
        gradient[index] = (function(point + shift) - function(point - shift)) / (2 * step)
    return gradient


def test_bins_and_the_explicit_weight_know_size_and_shape() -> None:
    truth = torch.cat([box(10, 10), box(40, 10), box(90, 50), box(200, 100)])
    assert find_bins(truth).tolist() == [0, 2, 4, 7]
    moved = truth + tensor([0, 2, 0, 2])
    chosen = options(regression="bins")
    status = update_status(start_status(chosen), moved, truth, chosen)
    torch.testing.assert_close(status[[0, 2, 4, 7]], box_hardness(moved, truth))
    assert status.isnan().sum() == 5
    weights = box_weights(moved, truth, status, chosen, HUGE)
    torch.testing.assert_close(weights, torch.ones_like(weights))
    explicit = options(regression="explicit", aspect_gain=2.0, size_gain=3.0, largest=100.0)
    area = truth.new_tensor([100.0, 400.0, 4500.0, 20000.0])
    shape = 1 + 2 * (1 - 1 / tensor(1, 4, 1.8, 2)) + 3 * torch.exp(-2 * (area / 1e4).sqrt())
    torch.testing.assert_close(
        box_weights(moved, truth, tensor(0.5), explicit, 1e4), shape * box_hardness(moved, truth) / 0.5
    )


def test_the_smooth_distance_has_the_running_median_of_errors_as_its_beta() -> None:
    chosen, truth = options(regression="smooth"), box(10, 20).repeat(3, 1)
    boxes = truth + tensor([1, 2, 3, 8], [0, 0, 0, 0], [2, 4, 2, 4])
    errors = tensor([0.1, 0.1, 0.3, 0.4], [0, 0, 0, 0], [0.2, 0.2, 0.2, 0.2])
    status = update_status(start_status(chosen), boxes, truth, chosen)
    torch.testing.assert_close(status, errors.median()[None])
    expected = F.smooth_l1_loss(errors, 0 * errors, beta=float(status), reduction="none").sum(1)
    torch.testing.assert_close(box_losses(boxes, truth, truth, status, chosen), expected)
    torch.testing.assert_close(box_losses(boxes, truth, truth, status, options(regression="l1")), errors.sum(1))
    assert box_weights(boxes, truth, status, chosen, HUGE).tolist() == [1, 1, 1]


def test_the_bound_counts_errors_that_exceed_the_teachers_and_never_learns_its_box() -> None:
    truth = box(10, 20).repeat(3, 1)
    boxes, goal = truth + tensor([3, 0, 0, 4], [1, 0, 0, 0], [0, 0, 0, 0]), truth + tensor([2, 0, 0, 4])
    losses = box_losses(boxes, goal, truth, tensor(0.5), options(regression="bound"))
    torch.testing.assert_close(losses, tensor(0.3**2 + 0.2**2, 0, 0))


def test_a_box_without_any_side_has_a_finite_loss_and_gradient() -> None:
    boxes = torch.cat([box(0, 0), box(-3, 5), box(1e-9, 40)]).requires_grad_()
    goal = box(20, 20).repeat(3, 1)
    for form in ("status", "smooth"):
        status = update_status(start_status(USUAL), boxes, goal, USUAL)
        losses = box_losses(boxes, goal, goal, status, options(regression=form))
        (gradient,) = torch.autograd.grad(losses.sum(), boxes)
        assert losses.isfinite().all() and gradient.isfinite().all()
