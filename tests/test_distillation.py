"""Distillation in closed form (Eqs. 5-12), in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F

from paperlib.detectors import build_detector
from paperlib.detectors.base import Assignment, HeadResponses, Instances
from paperlib.distillation.assistants import Distillation
from paperlib.distillation.losses import (
    bounded_regression_loss,
    knowledge_distillation_loss,
    soft_binary_cross_entropy,
    soft_losses,
    softened_kl_divergence,
)

BATCH, KINDS, TAU = 3, 4, 2.5


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, BATCH, KINDS, generator=generator, dtype=torch.float64).unbind()
    return student.requires_grad_(), teacher


@pytest.fixture
def pair(tiny_detector):
    return tiny_detector(seed=1, dtype=torch.float64).train(), tiny_detector(seed=2, dtype=torch.float64)


@pytest.fixture
def batch(tiny_batch):
    return tiny_batch(dtype=torch.float64)


def gradients(losses, module) -> list[torch.Tensor]:
    return torch.autograd.grad(sum(losses), list(module.parameters()), retain_graph=True, allow_unused=True)


# --- Eqs. 6-9 -----------------------------------------------------------------------------------------


def test_eq8_is_the_divergence_of_the_student_from_the_teacher(logits):
    student, teacher = logits
    p, q = (teacher / TAU).softmax(1), (student / TAU).softmax(1)
    expected = TAU**2 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(softened_kl_divergence(student, teacher, TAU), expected)
    swapped = TAU**2 * (q * (q / p).log()).sum(1)
    assert not torch.allclose(swapped, expected, rtol=1e-3)


def test_eq8_has_its_closed_gradient_averaged_over_the_batch(logits):
    student, teacher = logits
    labels = torch.tensor([0, 1, 2])
    loss = knowledge_distillation_loss(student, teacher, labels, soft_weight=1.0, temperature=TAU)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = TAU * ((student / TAU).softmax(1) - (teacher / TAU).softmax(1)) / BATCH
    torch.testing.assert_close(gradient, expected.detach())


def test_eq8_of_small_logits_is_half_their_squared_distance(logits):
    """The factor tau^2 is there so that the gradient (a_s - a_t) / C does not depend on tau."""
    student, teacher = (1e-4 * (a - a.mean(1, keepdim=True)).detach() for a in logits)
    student.requires_grad_()
    for temperature in (1.0, 10.0):
        loss = softened_kl_divergence(student, teacher, temperature).sum()
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(loss, (student - teacher).square().sum() / (2 * KINDS), rtol=1e-3, atol=0)
        torch.testing.assert_close(gradient, (student - teacher).detach() / KINDS, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_eq9_mixes_hard_and_soft(logits, weight):
    (student, teacher), labels = logits, torch.tensor([3, 0, 2])
    hard = -student.log_softmax(1)[torch.arange(BATCH), labels].mean()
    expected = (1 - weight) * hard + weight * softened_kl_divergence(student, teacher, TAU).sum() / BATCH
    torch.testing.assert_close(knowledge_distillation_loss(student, teacher, labels, weight, TAU), expected)


def test_the_sigmoid_form_has_its_closed_value_and_gradient(logits):
    student, teacher = logits
    p, q = (teacher / TAU).sigmoid(), (student / TAU).sigmoid()
    loss = soft_binary_cross_entropy(student, teacher, TAU)
    torch.testing.assert_close(loss, -(TAU**2) * (p * q.log() + (1 - p) * (1 - q).log()))
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient, (TAU * (q - p)).detach())


@pytest.mark.parametrize("form", [softened_kl_divergence, soft_binary_cross_entropy])
def test_a_teacher_like_the_student_pulls_nowhere(logits, form):
    student, _ = logits
    (gradient,) = torch.autograd.grad(form(student, student.detach().clone(), TAU).sum(), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-14, rtol=0)


def test_soft_losses_weigh_each_logit_of_a_sigmoid_and_each_row_of_a_softmax(logits):
    student, teacher = logits
    none = torch.zeros(0, 4)
    nobody = Instances({}, none[:, 0], none[:, 0], none[:, 0] > 0)
    for kind, form, shape in (
        ("sigmoid", soft_binary_cross_entropy, (BATCH, KINDS)),
        ("softmax", softened_kl_divergence, (BATCH,)),
    ):
        weights = torch.rand(shape, dtype=torch.float64)
        one, other = (
            HeadResponses(kind, {"classes": a}, {}, {"classes": weights}, none, none, 1.0, none, none, nobody)
            for a in (student, teacher)
        )
        expected = (weights * form(student, teacher, TAU)).sum()
        torch.testing.assert_close(soft_losses(one, other, TAU), {"classes": expected})


# --- Eqs. 11-12 ---------------------------------------------------------------------------------------


def test_eq12_bounds_the_student_by_the_teacher_and_never_pulls_it_there():
    target = torch.zeros(4, 4, dtype=torch.float64)
    student = torch.tensor([[3, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0]], dtype=torch.float64)
    teacher = torch.tensor([[0, 2, 2, 0], [0, 0, 0, 2], [0, 0, 0, 1], [0, 0, 0, 2]], dtype=torch.float64)
    student.requires_grad_()
    bound = bounded_regression_loss(student, teacher, target)
    # Squared errors 9 > 8, 2 < 4, 0 < 1, and a tie.
    assert bound.tolist() == [9, 0, 0, 0]
    (gradient,) = torch.autograd.grad(bound.sum(), student)
    expected = torch.zeros_like(gradient)
    expected[0] = 2 * (student - target).detach()[0]
    assert torch.equal(gradient, expected)


def test_eq12_follows_its_definition_on_random_boxes():
    generator = torch.Generator().manual_seed(1)
    student, teacher, target = torch.randn(3, 50, 4, generator=generator, dtype=torch.float64).unbind()
    bound = bounded_regression_loss(student.requires_grad_(), teacher, target)
    (gradient,) = torch.autograd.grad(bound.sum(), student)
    worse = 0
    for s, t, y, value, slope in zip(student.detach(), teacher, target, bound.detach(), gradient, strict=True):
        own, limit = float(((s - y) ** 2).sum()), float(((t - y) ** 2).sum())
        assert float(value) == pytest.approx(own if own > limit else 0.0)
        torch.testing.assert_close(slope, 2 * (s - y) if own > limit else torch.zeros_like(s))
        worse += own > limit
    assert 0 < worse < 50


# --- the objective on a detector ----------------------------------------------------------------------


def test_without_weights_it_is_the_detectors_own_loss(pair, batch):
    student, teacher = pair
    own = student(*batch)
    distilled = Distillation(teacher, soft_weight=0.0, bound_weight=0.0, temperature=3.0)(student, *batch)
    assert distilled.keys() - own.keys() == {"bound"} and distilled["bound"] == 0
    assert all(torch.equal(distilled[name], own[name]) for name in own)
    for first, second in zip(gradients(own.values(), student), gradients(distilled.values(), student), strict=True):
        torch.testing.assert_close(first, second, atol=1e-12, rtol=1e-12)


def test_each_loss_is_the_mixture_that_eqs_10_and_11_state(pair, batch):
    student, teacher = pair
    losses = Distillation(teacher, soft_weight=0.3, bound_weight=0.7, temperature=2.0)(student, *batch)
    outputs = student.head_outputs(batch[0])
    assignment = student.assign_targets(outputs, batch[1])
    own, mine = student.compute_losses(outputs, assignment), student.head_responses(outputs, assignment)
    theirs = teacher.head_responses(teacher.head_outputs(batch[0]), assignment)
    for name in ("objectness", "classes"):
        p, q = (theirs.logits[name] / 2).sigmoid(), (mine.logits[name] / 2).sigmoid()
        soft = -4 * (mine.weights[name] * (p * q.log() + (1 - p) * (1 - q).log())).sum()
        torch.testing.assert_close(losses[name], 0.7 * own[name] + 0.3 * soft)
    bound = bounded_regression_loss(mine.regression, theirs.regression, mine.regression_target).sum()
    torch.testing.assert_close(losses["bound"], 0.7 * mine.regression_weight * bound)
    assert losses["bound"] > 0 and torch.equal(losses["box"], own["box"])


def test_a_teacher_identical_to_the_student_teaches_nothing(pair, batch):
    student = pair[0].eval()
    teacher = copy.deepcopy(student)
    losses = Distillation(teacher, soft_weight=1.0, bound_weight=1.0, temperature=2.0)(student, *batch)
    assert losses["bound"] == 0
    soft = [losses["objectness"], losses["classes"]]
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients(soft, student) if gradient is not None)
    assert any(gradient is not None for gradient in gradients(soft, student))


def test_the_teacher_is_frozen_and_asked_once_per_batch(pair, batch):
    student, teacher = pair
    asked = []
    teacher.stem1.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    before = copy.deepcopy(teacher.state_dict())
    distillation = Distillation(teacher.train())
    for _ in range(2):
        sum(distillation(student, *batch).values()).backward()
    assert asked == [False, False]
    assert not any(module.training for module in teacher.modules()) and student.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("other", [{"num_classes": 4}, {"anchors": None}])
def test_a_teacher_of_another_kind_is_refused(pair, batch, other):
    student = pair[0]
    arguments = student.build_arguments | other
    distillation = Distillation(build_detector(**arguments).double())
    with pytest.raises(ValueError, match="same classes and the same anchors"):
        distillation(student, *batch)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"soft_weight": 1.2}, "soft_weight 1.2 is not in"),
        ({"bound_weight": -0.1}, "bound_weight -0.1 is negative"),
        ({"temperature": 0.0}, "temperature 0.0 is not positive"),
    ],
)
def test_weights_out_of_range_are_refused(pair, arguments, fault):
    with pytest.raises(ValueError, match=fault):
        Distillation(pair[1], **arguments)


# --- what a detector hands over -----------------------------------------------------------------------


def test_responses_with_their_weights_are_the_detectors_hard_losses(pair, batch):
    student, _ = pair
    outputs = student.head_outputs(batch[0])
    assignment = student.assign_targets(outputs, batch[1])
    losses, responses = student.compute_losses(outputs, assignment), student.head_responses(outputs, assignment)
    assert set(responses.logits) == {"objectness", "classes"} == set(losses) - {"box"}
    for name, answer in responses.logits.items():
        hard = responses.hard_targets[name]
        assert hard.shape == answer.shape == responses.weights[name].shape
        entropy = F.binary_cross_entropy_with_logits(answer, hard, reduction="none")
        torch.testing.assert_close((responses.weights[name] * entropy).sum(), losses[name])


def test_the_regression_of_a_perfect_box_is_its_target(pair, batch):
    student, _ = pair
    outputs = student.head_outputs(batch[0])
    assignment = student.assign_targets(outputs, batch[1])
    boxes, _ = student.decode(outputs, batch[0].shape[2:])
    predicted = boxes[assignment.image, assignment.row]
    perfect = Assignment(assignment.image, assignment.row, predicted, assignment.labels, assignment.ignored)
    responses = student.head_responses(outputs, perfect)
    torch.testing.assert_close(responses.regression, responses.regression_target)
    assert torch.equal(responses.regression, student.head_responses(outputs, assignment).regression)
    assert student.compute_losses(outputs, perfect)["box"].abs() < 1e-6
