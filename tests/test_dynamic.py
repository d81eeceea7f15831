"""Dynamic distillation on all six detectors, in float64: features, instances and boxes, and as an objective."""

import copy

import pytest
import tiny
import torch
from conftest import make_tiny_batch, same, snapshot
from test_objectives import make, seeded

from paperlib.detectors import DETECTORS
from paperlib.distillation.answers import ask_both, match_channels
from paperlib.distillation.assistants import Distillation
from paperlib.distillation.dynamic import DynamicDistillation
from paperlib.distillation.imitation import imitation_loss
from paperlib.distillation.imitation_methods import METHODS, choose_method
from paperlib.distillation.methods import choose_options, make_teaching
from paperlib.pruning import apply_plan, find_carriers, mask_plan, trace_channels
from paperlib.pruning.plan import PruningPlan, prunable_outputs
from paperlib.training.loop import fit

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


def test_a_stranger_of_the_same_strides_learns_instances_through_an_adapter():
    student, teacher = make("yolov3").float().train(), make("yolov3-spp", seed=1).float()
    objective = make_teaching("instances", choose_options("instances", None, {}), student, teacher, None, seed=3)
    losses = objective(student, *make_tiny_batch())
    losses["instance_features"].backward()
    weights = list(objective.parameters())
    assert len(objective.adapter.layers) == 3 and any(weight.grad.any() for weight in weights)
    other = make_teaching("instances", choose_options("instances", None, {}), student, teacher, None, seed=4)
    assert not torch.equal(next(other.parameters()), weights[0])
    other.load_state_dict(objective.state_dict())
    assert torch.equal(next(other.parameters()), weights[0])


def test_a_training_logs_what_was_selected_and_leaves_the_teacher_as_it_was(tmp_path):
    student, teacher = tiny.detector(), tiny.detector(seed=7)
    before = snapshot(teacher)
    objective = DynamicDistillation(teacher)
    history = fit(student, tiny.dataset(), tiny.recipe(epochs=3), objective=objective, folder=tmp_path).epochs
    assert same(before, snapshot(teacher)) and objective.step == objective.steps == 6
    assert history["selected"].between(0, 1).all() and history["selected_background"].between(0, 1).all()
    assert {"features", "instances", "boxes", "status"} < set(history.columns)
    assert 0 < history["status"].iloc[-1] <= 1 and objective.epoch_values() == {}
    # A second training starts from nothing that was measured in the first.
    again = fit(tiny.detector(), tiny.dataset(), tiny.recipe(epochs=3), objective=objective, folder=tmp_path).epochs
    assert list(again["status"]) == list(history["status"])


def test_weights_grow_over_the_first_steps_and_q_changes_over_all():
    student, teacher = make("yolov4-tiny").eval(), make("yolov4-tiny", seed=1)
    objective = DynamicDistillation(
        teacher, warmup=0.4, imitation=choose_method("gd", fraction=1.0), last_fraction=0.25
    )
    objective.start_training(10)
    sizes, fractions = [], []
    for _ in range(10):
        fractions.append(objective.imitation().fraction)
        sizes.append(objective(student, *batch())["instances"].item())
    assert sizes == pytest.approx([sizes[-1] * min(1, k / 4) for k in range(1, 11)])
    assert fractions == pytest.approx([1 - k / 12 for k in range(10)])


def test_the_grey_padding_belongs_to_neither_region():
    student, teacher = make("yolov4-tiny").eval(), make("yolov4-tiny", seed=1)
    images, targets = batch()
    shown = [torch.tensor([[0.0, 0.0, 40.0, 64.0]])] * 2
    objective = DynamicDistillation(teacher, instance_weight=0, box_weight=0)
    found = objective(student, images, [t | {"visible": area} for t, area in zip(targets, shown, strict=True)])
    levels = ask_both(student, teacher, images, targets).levels()
    assert found["features"] == imitation_loss(levels, boxes(), areas=shown) != imitation_loss(levels, boxes())


@pytest.mark.parametrize("method", METHODS)
def test_each_rival_that_imitates_features_is_a_setting(method):
    student, teacher = make("yolov4-tiny").train(), make("yolov4-tiny", seed=1)
    objective = DynamicDistillation(teacher, imitation=METHODS[method], instance_weight=0, box_weight=0)
    losses = objective(student, *batch())
    expected = imitation_loss(ask_both(student, teacher, *batch()).levels(), boxes(), options=METHODS[method])
    torch.testing.assert_close(losses["features"], expected)
    assert objective.describe()["imitation"] == METHODS[method].model_dump(mode="json")


def settings_of(**changes):
    return lambda: DynamicDistillation(make("yolov4-tiny"), **changes)


def distilled(teacher, **changes):
    return lambda: DynamicDistillation(teacher(), **changes)(make("yolov4-tiny"), *batch())


def of_four_classes():
    return tiny.quick("yolov4-tiny", 4).double()


def with_other_anchors():
    return tiny.quick("yolov4-tiny", 3, side=96).double()


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (settings_of(last_fraction=0.0), "last_fraction.* greater than 0"),
        (settings_of(last_fraction=1.5), "last_fraction.* less than or equal to 1"),
        (settings_of(feature_weight=-1.0), "feature_weight.* greater than or equal to 0"),
        (settings_of(box_weight=float("nan")), "box_weight.* finite"),
        (settings_of(selection="some"), "selection"),
        (settings_of(boxweight=1.0), "boxweight"),
        (distilled(of_four_classes), "the same classes and the same anchors"),
        (distilled(with_other_anchors), "the same classes and the same anchors"),
        (distilled(lambda: make("yolov4"), feature_weight=0), r"their strides are \[32, 16\] and \[32, 16, 8\]"),
        (distilled(lambda: make("centernet-resnet50"), feature_weight=0), "their strides are"),
        (distilled(lambda: make("yolov4")), "level of stride 32: .*; give all plans"),
    ],
)
def test_bad_input_is_told_in_one_line(call, fault):
    with pytest.raises(ValueError, match=fault) as told:
        call()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", DETECTORS)
def test_a_teacher_in_another_precision_and_saturated_logits_give_finite_losses(name, precision):
    student, teacher = make(name).float().train(), make(name, seed=1).to(precision)
    images, targets = make_tiny_batch()
    with torch.no_grad():
        for layer in teacher.modules():
            # Output layers alone have a bias.
            if getattr(layer, "bias", None) is not None and not isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight *= 1e5
    objective = DynamicDistillation(teacher)
    losses = seeded(lambda: objective(student, images, targets))
    assert all(loss.isfinite() and torch.finfo(loss.dtype).bits >= 32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


def test_plain_distillation_refuses_a_teacher_of_other_strides_too():
    with pytest.raises(ValueError, match="their strides are"):
        Distillation(make("yolov4"))(make("yolov4-tiny"), *batch())
