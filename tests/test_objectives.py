"""The objective of Section 3.2 on all six detectors, in float64."""

import copy

import pytest
import tiny
import torch
from conftest import make_tiny_batch

from paperlib.detectors import DETECTORS
from paperlib.distillation.assistants import Distillation
from paperlib.distillation.losses import bounded_regression_loss, soft_losses

TWO_STAGE = "faster-rcnn-resnet101"
SOFT = {TWO_STAGE: ("softmax", {"rpn_objectness", "classes"}), "centernet-resnet50": ("sigmoid", {"heatmap"})}
YOLO = ("sigmoid", {"objectness", "classes"})


def make(name, seed=0):
    detector = tiny.quick(name, 3, seed).double()
    with torch.no_grad():  # what detectors start from is too even to tell a teacher from a student
        torch.manual_seed(seed)
        for layer in detector.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(std=0.3)
    return detector


def seeded(call):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return call()


def batch():
    return make_tiny_batch(dtype=torch.float64)


@pytest.fixture(scope="module", params=DETECTORS)
def pair(request):
    return request.param, make(request.param).train(), make(request.param, seed=1)


def test_without_weights_it_is_the_detectors_own_loss(pair):
    _, student, teacher = pair
    own = seeded(lambda: student(*batch()))
    distilled = seeded(
        lambda: Distillation(teacher, soft_weight=0.0, bound_weight=0.0, temperature=3.0)(student, *batch())
    )
    assert distilled.pop("bound") == 0
    assert distilled.keys() == own.keys() and all(torch.equal(distilled[name], own[name]) for name in own)


def test_the_soft_loss_has_the_form_of_the_heads_and_the_bound_is_in_the_boxes_space(pair):
    name, student, teacher = pair
    losses = seeded(
        lambda: Distillation(teacher, soft_weight=0.3, bound_weight=0.7, temperature=2.0)(student, *batch())
    )
    kind, soft_names = SOFT.get(name, YOLO)

    def by_hand():
        outputs = student.head_outputs(batch()[0])
        assignment = student.assign_targets(outputs, batch()[1])
        own, mine = student.compute_losses(outputs, assignment), student.head_responses(outputs, assignment)
        return own, mine, teacher.head_responses(teacher.head_outputs(batch()[0]), assignment)

    own, mine, theirs = seeded(by_hand)
    assert (mine.kind, set(mine.logits)) == (kind, soft_names)
    soft = soft_losses(mine, theirs, 2.0)
    for each in own:
        expected = 0.7 * own[each] + 0.3 * soft[each] if each in soft_names else own[each]
        torch.testing.assert_close(losses[each], expected)
    bound = bounded_regression_loss(mine.regression, theirs.regression, mine.regression_target)
    torch.testing.assert_close(losses["bound"], 0.7 * mine.regression_weight * bound.sum())
    assert len(bound) and losses["bound"] > 0


def test_a_teacher_like_the_student_pulls_nowhere(pair):
    _, student, _ = pair
    student = copy.deepcopy(student).eval()
    objective = Distillation(copy.deepcopy(student), soft_weight=1.0, bound_weight=1.0, temperature=2.0)
    losses = seeded(lambda: objective(student, *batch()))
    assert losses["bound"] == 0
    soft = sum(losses[name] for name in SOFT.get(pair[0], YOLO)[1])
    slopes = torch.autograd.grad(soft, list(student.parameters()), allow_unused=True)
    assert all(slope.abs().max() < 1e-10 for slope in slopes if slope is not None)


def test_the_teacher_is_frozen_and_asked_once_a_batch(pair):
    name, student, teacher = pair
    asked, before = [], copy.deepcopy(teacher.state_dict())
    parts = [next(m for m in teacher.modules() if isinstance(m, torch.nn.Conv2d))]
    if name == TWO_STAGE:
        parts.append(teacher.roi_heads.box_head)
    hooks = [part.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled())) for part in parts]
    objective = Distillation(teacher.train())
    for _ in range(2):
        seeded(lambda: sum(objective(student, *batch()).values())).backward()
    for hook in hooks:
        hook.remove()
    assert asked == [False] * 2 * len(parts)
    assert not any(module.training for module in teacher.modules()) and student.training
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters()) and all(p.grad is not None for p in student.parameters())
