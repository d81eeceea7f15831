"""Dynamic distillation on all six detectors, in float64: features, instances and boxes, and as an objective."""

import copy

import pytest
import torch
from conftest import make_tiny_batch
from test_objectives import make, seeded

from paperlib.detectors import DETECTORS
from paperlib.distillation.answers import ask_both, match_channels
from paperlib.distillation.dynamic import DynamicDistillation
from paperlib.distillation.imitation import imitation_loss
from paperlib.distillation.imitation_methods import METHODS, choose_method
from paperlib.pruning import apply_plan, find_carriers, mask_plan, trace_channels
from paperlib.pruning.plan import PruningPlan, prunable_outputs

TWO_STAGE = "faster-rcnn-resnet101"


def batch():
    return make_tiny_batch(dtype=torch.float64)


def boxes():
    return [target["boxes"] for target in batch()[1]]


@pytest.fixture(scope="module", params=DETECTORS)
def pair(request):
    return make(request.param).train(), make(request.param, seed=1)


def cut(detector, ratio):
    """Keep so many of the channels, at least one of each layer; tied channels have one number and one lot."""
    graph = trace_channels(detector)
    parts = [*dict(prunable_outputs(graph)).values(), *(segment.channels for segment in graph.segments)]
    stay = {int(numbers[0]) for numbers in parts}
    kept = {
        name: [p for p, n in enumerate(numbers) if graph.fixed[n] or int(n) in stay or n % 10 < 10 * ratio]
        for name, numbers in prunable_outputs(graph)
    }
    return find_carriers(detector, PruningPlan(kept, threshold=0.0, ratio=0.0, importance="by hand"))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_pruned_student_has_the_features_of_its_masked_teacher_through_two_cuts(name):
    detector = make(name).eval()
    student, plans, carriers = detector, [], 0
    for ratio in (0.7, 0.8):
        plan = cut(student, ratio)
        pruned = apply_plan(student, plan, compensate="exact").eval()
        masked = mask_plan(student, plan, keep_beta=True).eval()
        answers = seeded(lambda pruned=pruned, masked=masked: ask_both(pruned, masked, *batch()))
        levels = answers.levels([plan])
        assert len(levels) == len(pruned.features(answers.outputs))
        for level, own, its in zip(
            levels, pruned.features(answers.outputs), masked.features(answers.teacher_outputs), strict=True
        ):
            assert own.stride == its.stride == level.stride and own.source in plan.kept
            assert level.student.shape[1] == len(plan.kept[own.source]) < its.values.shape[1]
            assert own.values.shape[1] == level.student.shape[1] + len(plan.carriers.get(own.source, []))
            carriers += len(plan.carriers.get(own.source, []))
            for options in METHODS.values():
                if options.foreground != "anchors" or level.anchors is not None:
                    assert imitation_loss([level], boxes(), options=options) < 1e-10
        student = pruned
        plans.append(plan)
    assert carriers or not name.startswith(("centernet", "faster"))
    # Through both cuts the channels are still those of the first teacher: here only their number can be seen.
    levels = seeded(lambda: ask_both(student, detector, *batch()).levels(plans))
    assert all(torch.isfinite(level.student).all() for level in levels)


@torch.no_grad()
def test_features_have_the_size_of_their_stride_and_survive_a_copy(pair):
    detector = pair[1].eval()
    outputs = detector.head_outputs(batch()[0])
    levels = detector.features(outputs)
    for level, scores in zip(levels, detector.cell_scores(outputs), strict=True):
        side = batch()[0].shape[-1] // level.stride
        assert level.values.shape[2:] == (side, side) == scores.shape[1:]
        assert level.source in dict(detector.named_modules())
        assert ((scores >= 0) & (scores <= 1)).all()
    same = zip(levels, detector.features(copy.deepcopy(outputs)), strict=True)
    assert all(torch.equal(one.values, other.values) for one, other in same)


@torch.no_grad()
def test_features_survive_compilation():
    detector = make("yolov4-tiny")
    compiled = torch.compile(detector.head_outputs, backend="eager")(batch()[0])
    pairs = zip(*(detector.features(each) for each in (compiled, detector.head_outputs(batch()[0]))), strict=True)
    assert all(torch.equal(one.values, other.values) for one, other in pairs)


def test_without_weights_it_is_the_detectors_own_loss(pair):
    student, teacher = pair
    own = seeded(lambda: student(*batch()))
    objective = DynamicDistillation(teacher, feature_weight=0, instance_weight=0, box_weight=0)
    distilled = seeded(lambda: objective(student, *batch()))
    assert distilled.keys() == own.keys() and all(torch.equal(distilled[name], own[name]) for name in own)


def test_a_teacher_like_the_student_teaches_nothing(pair):
    student = copy.deepcopy(pair[0]).eval()
    objective = DynamicDistillation(copy.deepcopy(student))
    losses = seeded(lambda: objective(student, *batch()))
    assert losses["features"] == losses["instances"] == losses["boxes"] == 0
    assert objective.epoch_values()["selected"] == 0


def test_the_teacher_is_asked_once_a_batch_and_stays_as_it_is(pair):
    student, teacher = pair
    asked, before = [], copy.deepcopy(teacher.state_dict())
    parts = [next(m for m in teacher.modules() if isinstance(m, torch.nn.Conv2d))]
    if hasattr(teacher, "roi_heads"):
        parts.append(teacher.roi_heads.box_head)
    hooks = [part.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled())) for part in parts]
    objective = DynamicDistillation(teacher.train())
    for _ in range(2):
        losses = seeded(lambda: objective(student, *batch()))
        assert {"features", "instances", "boxes"} < losses.keys() and all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
    for hook in hooks:
        hook.remove()
    assert asked == [False] * 2 * len(parts)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters()) and all(p.grad is not None for p in student.parameters())


SETTINGS = {
    "split and soft": {"split_masks": True, "softness": 0.5, "regression": "bins", "last_fraction": 0.25},
    "smooth": {"regression": "smooth", "selection": "correct", "candidates": 0},
    "explicit": {"regression": "explicit", "goal": "truth", "selection": "all"},
    "by response": {"imitation": choose_method("gd", value="response")},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_batch_without_objects_has_finite_empty_sums(pair, settings):
    student, teacher = pair
    nothing = [{"boxes": t["boxes"][:0], "labels": t["labels"][:0]} for t in batch()[1]]
    for targets in (nothing, batch()[1]):
        losses = seeded(lambda targets=targets: DynamicDistillation(teacher, **settings)(student, batch()[0], targets))
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


def test_a_stranger_learns_through_an_adapter_that_is_trained_along():
    student, teacher = make("yolov4-tiny").train(), make("yolov4", seed=1)
    adapter = match_channels(student, teacher).double()
    assert [layer.in_channels for layer in adapter.layers] == [128, 64]
    objective = DynamicDistillation(
        teacher, adapter=adapter, instance_weight=0, box_weight=0, imitation=METHODS["fitnets"]
    )
    losses = objective(student, *batch())
    assert losses["features"] > 0
    losses["features"].backward()
    assert all(p.grad.any() for p in objective.parameters())
