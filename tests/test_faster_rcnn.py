"""Faster R-CNN: torchvision's arithmetic, two stages that can be asked apart, and surgery through shared heads."""

import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_surgery import TOLERANCE, gap, randomise
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from paperlib.costs import cost
from paperlib.detectors import build_detector, reinitialise_, usual_anchors
from paperlib.detectors.faster_rcnn import LEVEL_STRIDES
from paperlib.detectors.files import load_detector, save_detector
from paperlib.distillation.assistants import Distillation
from paperlib.pruning import apply_plan, mask_plan, plan_pruning, trace_channels

NAME = "faster-rcnn-resnet101"
ANCHORS = [(w / 2, h / 2) for w, h in usual_anchors(NAME)]


def make(seed=0, dtype=torch.float64, **options):
    """The smallest there is, with lively batch norms and outputs that tell regions apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = build_detector(NAME, 3, **{"width": 0.05, "depth": 0.05, "anchors": ANCHORS, **options})
        for norm in (m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
        predictor = detector.roi_heads.box_predictor
        for layer in (predictor.cls_score, predictor.bbox_pred, detector.rpn.head.cls_logits):
            nn.init.normal_(layer.weight, std=0.3)
    return detector.to(dtype)


def batch():
    return make_tiny_batch(dtype=torch.float64)


def seeded(call, seed=5):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return call()


def levels_of(detector, images):
    return dict(zip(["0", "1", "2", "3", "pool"], detector.head_outputs(images).levels, strict=True))


# --- as torchvision has it ------------------------------------------------------------------------------


def test_the_losses_are_torchvisions():
    ours, theirs = make().train(), make().train()
    images, targets = batch()
    losses = seeded(lambda: ours(images, targets))

    def reference():
        levels = levels_of(theirs, images)
        proposals, first = theirs.rpn(ImageList(images, [(64, 64)] * 2), levels, targets)
        _, second = theirs.roi_heads(levels, proposals, [(64, 64)] * 2, targets)
        return first | second

    expected = seeded(reference)
    names = {
        "loss_objectness": "rpn_objectness",
        "loss_rpn_box_reg": "rpn_box",
        "loss_classifier": "classes",
        "loss_box_reg": "box",
    }
    assert losses.keys() == set(names.values())
    for name, value in expected.items():
        torch.testing.assert_close(losses[names[name]], value, check_dtype=False)
        assert value > 0


def test_the_detections_are_torchvisions():
    detector = make().eval()
    images, _ = batch()
    with torch.no_grad():
        levels = levels_of(detector, images)
        proposals, _ = detector.rpn(ImageList(images, [(64, 64)] * 2), levels)
        expected, _ = detector.roi_heads(levels, proposals, [(64, 64)] * 2)
        found = detector(images)
    for one, other in zip(found, expected, strict=True):
        assert len(one["boxes"]) > 10
        for key in ("boxes", "labels", "scores"):
            torch.testing.assert_close(one[key], other[key])


def test_anchors_run_over_levels_then_cells_then_shapes():
    outputs = make().eval().head_outputs(torch.zeros(1, 3, 64, 96, dtype=torch.float64))
    expected = []
    for level, (stride, features) in enumerate(zip(LEVEL_STRIDES, outputs.levels, strict=True)):
        lines, columns = features.shape[2:]
        assert (lines, columns) == (-(-64 // stride), -(-96 // stride))
        for y, x, (w, h) in itertools.product(range(lines), range(columns), ANCHORS[3 * level : 3 * level + 3]):
            expected.append([x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2])
    torch.testing.assert_close(outputs.anchors.float(), torch.tensor(expected))
    assert outputs.objectness.shape == (1, len(expected)) and outputs.deltas.shape == (1, len(expected), 4)


def test_detections_lie_inside_each_image():
    detector = make().eval()
    sizes = [(50, 70), (96, 33), (64, 64), (7, 90)]
    with torch.no_grad():
        found = detector([torch.rand(3, *size, dtype=torch.float64) for size in sizes])
    for image, (height, width) in zip(found, sizes, strict=True):
        boxes, labels, scores = image["boxes"], image["labels"], image["scores"]
        assert 0 < len(boxes) == len(labels) == len(scores) <= 100
        assert labels.dtype == torch.int64 and set(labels.tolist()) <= {1, 2, 3}
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (scores > 0).all() and (scores <= 1).all() and (scores.diff() <= 0).all()


@pytest.mark.parametrize("anchors", [ANCHORS[:14], [], [*ANCHORS[:14], (8, 0)]])
def test_anchors_that_do_not_fill_the_levels_are_refused(anchors):
    with pytest.raises(ValueError, match="fifteen anchors"):
        build_detector(NAME, 3, anchors=anchors)


# --- training -------------------------------------------------------------------------------------------


def test_gradients_reach_every_parameter():
    detector = make().train()
    sum(detector(*batch()).values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_images_without_boxes_train_no_box():
    detector = make().train()
    images, (_, empty) = batch()
    losses = detector(images, [empty, empty])
    assert losses["box"] == 0 and losses["rpn_box"] == 0
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_training_without_a_target_for_every_image_is_refused():
    detector, (images, targets) = make().train(), batch()
    with pytest.raises(ValueError, match="needs targets"):
        detector(images)
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        detector(images, targets[:1])


def test_a_detector_can_train_after_it_was_evaluated():
    detector, (images, targets) = make(dtype=torch.float32), make_tiny_batch()
    detector.double().eval()
    with torch.inference_mode():
        detector(images.double())
    sum(detector.float().train()(images, targets).values()).backward()


def test_the_proposal_head_trains_on_the_statistics_that_it_is_evaluated_with():
    head = make().train().rpn.head
    levels = [torch.randn(2, 12, side, side, dtype=torch.float64) * side + side for side in (8, 4, 2)]
    norm = head.conv[1]
    norm.momentum = 1.0
    trained = head(levels)
    norm.running_var *= 1 - 1 / (2 * (64 + 16 + 4))  # batch norm keeps the unbiased variance, and divides by the other
    for one, other in zip(itertools.chain(*trained), itertools.chain(*head.eval()(levels)), strict=True):
        torch.testing.assert_close(one, other)


def test_it_learns_what_it_is_shown():
    torch.manual_seed(0)
    detector = build_detector(NAME, 2, width=0.125, depth=0.05, anchors=ANCHORS).train()
    images = torch.full((2, 3, 64, 64), 0.5)
    boxes = torch.tensor([[8.0, 8, 28, 28], [36, 32, 56, 60]])
    images[:, :, 8:28, 8:28], images[:, :2, 32:60, 36:56] = 1.0, 0.0
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])}] * 2
    optimiser = torch.optim.Adam(detector.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        sum(detector(images, targets).values()).backward()
        optimiser.step()
    with torch.no_grad():
        found = detector.eval()(images)[0]
    best = [found["boxes"][found["labels"] == label][0] for label in (1, 2)]
    assert (box_iou(torch.stack(best), boxes).diagonal() > 0.75).all()


# --- two stages for distillation ------------------------------------------------------------------------


def test_without_weights_distillation_is_the_detectors_own_loss():
    student, teacher = make().train(), make(seed=1, width=0.1)
    own = seeded(lambda: student(*batch()))
    distilled = seeded(lambda: Distillation(teacher, soft_weight=0.0, bound_weight=0.0)(student, *batch()))
    assert distilled.keys() - own.keys() == {"bound"} and distilled["bound"] == 0
    assert all(torch.equal(distilled[name], own[name]) for name in own)


def test_the_teacher_judges_the_students_proposals_and_the_student_judges_once():
    student, teacher = make().train(), make(seed=1)
    for output in (teacher.rpn.head.bbox_pred, teacher.roi_heads.box_predictor.bbox_pred):
        nn.init.zeros_(output.weight)  # a teacher that leaves boxes as they are is better than chance
    judged = []
    student.roi_heads.box_head.register_forward_hook(lambda *_: judged.append("student"))
    teacher.roi_heads.box_head.register_forward_hook(lambda *_: judged.append("teacher"))
    losses = seeded(lambda: Distillation(teacher, soft_weight=0.5, temperature=2.0)(student, *batch()))
    assert sorted(judged) == ["student", "teacher"]
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in student.parameters()) and losses["bound"] > 0
    mine = student.head_outputs(batch()[0])
    theirs = teacher.head_outputs(batch()[0])
    assignment = student.assign_targets(mine, batch()[1])
    logits, _ = teacher.classify_regions(theirs, assignment.proposals)
    torch.testing.assert_close(teacher.head_responses(theirs, assignment).logits["classes"], logits)
    assert len(logits) == len(assignment.labels) and (assignment.labels > 0).sum() == len(assignment.proposal_boxes)


def test_responses_with_their_weights_are_the_detectors_hard_losses():
    detector, (images, targets) = make().eval(), batch()
    outputs = detector.head_outputs(images)
    assignment = detector.assign_targets(outputs, targets)
    losses, responses = detector.compute_losses(outputs, assignment), detector.head_responses(outputs, assignment)
    assert set(responses.logits) == {"rpn_objectness", "classes"} == set(losses) - {"rpn_box", "box"}
    for name, answer in responses.logits.items():
        hard = responses.hard_targets[name]
        assert hard.shape == answer.shape and responses.weights[name].shape == answer.shape[:1]
        entropy = F.cross_entropy(answer, hard, reduction="none")
        torch.testing.assert_close((responses.weights[name] * entropy).sum(), losses[name])


def test_the_regression_of_a_perfect_box_is_its_target():
    detector, (images, targets) = make().eval(), batch()
    outputs = detector.head_outputs(images)
    assignment = detector.assign_targets(outputs, targets)
    image, row = assignment.image[assignment.objects], assignment.row[assignment.objects]
    first = detector.rpn.box_coder.decode_single(outputs.deltas[image, row], outputs.anchors[row])
    positive = assignment.labels > 0
    deltas = detector.classify_regions(outputs, assignment.proposals)[1][positive, assignment.labels[positive]]
    second = detector.roi_heads.box_coder.decode_single(deltas, torch.cat(assignment.proposals)[positive])
    perfect = dataclasses.replace(assignment, anchor_boxes=first, proposal_boxes=second)
    responses = detector.head_responses(outputs, perfect)
    assert len(first) and len(second)
    torch.testing.assert_close(responses.regression, responses.regression_target)
    losses = detector.compute_losses(outputs, perfect)
    assert losses["rpn_box"] < 1e-12 and losses["box"] < 1e-12


def test_a_teacher_identical_to_the_student_teaches_nothing():
    student = make().eval()
    losses = Distillation(copy.deepcopy(student), soft_weight=1.0, bound_weight=1.0)(student, *batch())
    assert losses["bound"] == 0
    assert losses["rpn_objectness"].abs() < 1e-12 and losses["classes"].abs() < 1e-12


# --- surgery --------------------------------------------------------------------------------------------


def test_every_convolution_but_the_outputs_can_be_pruned():
    detector = make()
    convolutions = {name for name, m in detector.named_modules() if isinstance(m, nn.Conv2d)}
    graph = trace_channels(detector)
    assert convolutions - graph.prunable.keys() == {"rpn.head.cls_logits", "rpn.head.bbox_pred"}
    outputs = [graph.layers[f"neck.layer_blocks.{level}.0"].outputs.tolist() for level in range(4)]
    assert outputs.count(outputs[0]) == 4, "the heads that levels share tie their channels"


@pytest.mark.parametrize("compensate", ["off", "exact"])
@given(ratio=st.floats(0.2, 0.9), seed=st.integers(0, 2**31))
@settings(max_examples=4, deadline=None)
def test_pruned_equals_masked(compensate, ratio, seed):
    detector = randomise(make(seed), seed)
    plan = plan_pruning(detector, ratio)
    pruned = apply_plan(detector, plan, compensate=compensate)
    masked = mask_plan(detector, plan, keep_beta=compensate == "exact")
    assert gap(pruned, masked) < TOLERANCE
    images, _ = batch()
    with torch.no_grad():
        ours, theirs = pruned.head_outputs(images), masked.head_outputs(images)
        proposals = masked.propose_regions(theirs)
        pairs = zip(pruned.classify_regions(ours, proposals), masked.classify_regions(theirs, proposals), strict=True)
        assert all((one - other).abs().max() < TOLERANCE for one, other in pairs)


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize("compensate", ["off", "exact"])
def test_a_pruned_detector_finds_what_the_masked_one_finds(compensate, ratio):
    detector = make(seed=2).eval()
    plan = plan_pruning(detector, ratio)
    pruned = apply_plan(detector, plan, compensate=compensate)
    masked = mask_plan(detector, plan, keep_beta=compensate == "exact")
    images = [torch.rand(3, *size, dtype=torch.float64) for size in ((64, 96), (50, 70))]
    with torch.no_grad():
        pairs = list(zip(pruned(images), masked(images), strict=True))
    for one, other in pairs:
        assert len(one["boxes"]) > 10 and torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-9, rtol=0)


def test_a_pruned_detector_comes_back_from_disk_with_its_anchors(tmp_path):
    detector = make(dtype=torch.float32).eval()
    pruned = apply_plan(detector, plan_pruning(detector, 0.5), compensate="exact")
    save_detector(pruned, tmp_path / "pruned.safetensors")
    loaded = load_detector(tmp_path / "pruned.safetensors")
    images, targets = make_tiny_batch()
    with torch.no_grad():
        for one, other in zip(loaded(images), pruned(images), strict=True):
            assert len(one["boxes"]) and all(torch.equal(one[key], other[key]) for key in one)
    reinitialise_(loaded)
    sum(loaded.train()(images, targets).values()).backward()


def test_limits_are_chosen_when_a_detector_is_built_and_come_back_from_disk(tmp_path):
    limits = {"max_detections": 7, "sampled_anchors": 256, "sampled_regions": 512, "proposals": [90, 40]}
    detector = make(dtype=torch.float32, **limits)
    save_detector(detector, tmp_path / "limited.safetensors")
    back = load_detector(tmp_path / "limited.safetensors")
    assert {name: getattr(back, name) for name in limits} == limits
    with torch.no_grad():
        [found] = back([torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))])
    assert len(found["boxes"]) == 7
    with pytest.raises(ValueError, match="yolov4-tiny has no proposals to choose"):
        build_detector("yolov4-tiny", 2, width=0.1, proposals=[10, 10])
    with pytest.raises(ValueError, match="faster-rcnn-resnet101 has no match_iou to choose"):
        make(match_iou=1.0)


# --- size -----------------------------------------------------------------------------------------------


def test_the_trunk_alone_costs_what_the_paper_reports_for_the_whole():
    with torch.device("meta"):
        detector = build_detector(NAME, 10)
    found, trunk = cost(detector), cost(detector.trunk)
    assert trunk.gmacs == pytest.approx(99.48, rel=1e-4)
    assert found.parameters == 61_705_606 and found.size_mb == pytest.approx(247.27, rel=1e-4)
    region = 4 * 256 * 256 * 9 * 49 + 256 * 49 * 1024 + 1024 * 5 * 11
    detector.rpn._post_nms_top_n["testing"] = 0
    assert (found.gmacs - cost(detector).gmacs) * 1e9 == pytest.approx(300 * region)
