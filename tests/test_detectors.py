"""The YOLOs: torchvision's conventions, the order of its rows, and an assignment that a loop confirms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import YOLOS, same, snapshot
from torch import nn

from paperlib.detectors import DETECTORS, build_detector, reinitialise_, usual_anchors
from paperlib.detectors.base import Assignment
from paperlib.detectors.blocks import Mish, ResidualBlock
from paperlib.detectors.files import load_detector, save_detector
from paperlib.pruning import apply_plan, plan_pruning

# Per head, coarse head first: stride, scale_x_y and the numbers of its anchors.
COARSE, MIDDLE, FINE = (32, 1.0, (6, 7, 8)), (16, 1.0, (3, 4, 5)), (8, 1.0, (0, 1, 2))
HEADS = {
    "yolov3": (COARSE, MIDDLE, FINE),
    "yolov3-spp": (COARSE, MIDDLE, FINE),
    "yolov4": ((32, 1.05, (6, 7, 8)), (16, 1.1, (3, 4, 5)), (8, 1.2, (0, 1, 2))),
    "yolov4-tiny": ((32, 1.05, (3, 4, 5)), (16, 1.05, (1, 2, 3))),
}
MATCH_IOU = {"yolov3": 1.0, "yolov3-spp": 1.0, "yolov4": 0.213, "yolov4-tiny": 0.213}
IGNORE_IOU = 0.7


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"name": "yolov9"}, f"unknown detector 'yolov9'; known: {', '.join(DETECTORS)}"),
        ({"num_classes": 0}, "at least 1 class, not 0"),
        ({"width": 0.0}, "width 0.0 is not positive"),
        ({"depth": -1.0}, "depth -1.0 is not positive"),
        ({"depth": 0.5}, "yolov4-tiny has no depth to choose"),
        ({"anchors": [(8, 8)] * 5}, "YoloV4Tiny needs 6 anchors"),
        ({"anchors": []}, "YoloV4Tiny needs 6 anchors"),
        ({"anchors": [(8, 8)] * 5 + [(8, 0)]}, "YoloV4Tiny needs 6 anchors"),
        ({"name": "yolov4", "anchors": [(8, 8)] * 6}, "YoloV4 needs 9 anchors"),
        ({"structure": {}}, "does not name these layers"),
    ],
)
def test_a_detector_that_cannot_be_is_refused(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        build_detector(**{"name": "yolov4-tiny", "num_classes": 3} | arguments)


def test_unknown_names_have_no_usual_anchors():
    assert [len(usual_anchors(name)) for name in YOLOS] == [9, 9, 9, 6]
    with pytest.raises(ValueError, match="unknown detector 'yolov9'"):
        usual_anchors("yolov9")


def test_mish_trains_as_torchs_does():
    def answers(activation, x):
        value = activation.train()(x)
        return value, *torch.autograd.grad(value.sin().sum(), x)

    x = torch.linspace(-200, 200, 40001, dtype=torch.float64, requires_grad=True)
    for found, expected in zip(answers(Mish(), x), answers(nn.Mish(), x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("depth", "stages"), [(1.0, [1, 2, 8, 8, 4]), (0.5, [1, 1, 4, 4, 2]), (0.01, [1] * 5)])
@pytest.mark.parametrize("name", ["yolov3", "yolov4"])
def test_depth_scales_the_residual_blocks_of_each_stage_down_to_one(name, depth, stages):
    trunk = build_detector(name, 3, width=0.03, depth=depth).trunk
    found = [
        [isinstance(m, ResidualBlock) for m in stage.modules()].count(True) for stage in list(trunk.children())[1:]
    ]
    assert found == stages


def test_reinitialising_a_pruned_detector_leaves_nothing_of_its_weights(tiny_detector):
    whole = tiny_detector()
    pruned = apply_plan(whole, plan_pruning(whole, 0.5))
    before = snapshot(pruned)
    reinitialise_(pruned)
    assert all(not torch.equal(value, before[name]) for name, value in snapshot(pruned).items() if value.ndim)
    for norm in (m for m in pruned.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (norm.weight == 0.5).all() and (norm.bias == 0).all()
        assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()
    prior = pruned.coarse_out.bias.unflatten(0, (3, 8)).sigmoid()
    torch.testing.assert_close(prior[:, 4], torch.full((3,), 0.01))
    torch.testing.assert_close(prior[:, 5:], torch.full((3, 3), 1 / 3))


# --- torchvision's conventions ------------------------------------------------------------------------


@pytest.mark.parametrize("name", YOLOS)
def test_training_gives_losses_whose_gradients_reach_every_parameter(tiny_detector, tiny_batch, name):
    detector = tiny_detector(name=name).train()
    images, targets = tiny_batch()
    losses = detector(list(images), targets)
    assert set(losses) == {"box", "objectness", "classes"}
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for place, parameter in detector.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), place


def test_images_without_boxes_train_objectness_alone(tiny_detector, tiny_batch):
    detector = tiny_detector().train()
    images, (_, empty) = tiny_batch()
    losses = detector(images, [empty, empty])
    assert losses["box"] == 0 and losses["classes"] == 0 and losses["objectness"] > 0
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_detections_lie_inside_each_image(tiny_detector):
    detector = tiny_detector().eval()
    detector.score_threshold = 0.0
    sizes = [(50, 70), (96, 33), (64, 64), (7, 90)]
    with torch.no_grad():
        found = detector([torch.rand(3, *size) for size in sizes])
    assert len(found) == len(sizes)
    for image, (height, width) in zip(found, sizes, strict=True):
        boxes, labels, scores = image["boxes"], image["labels"], image["scores"]
        assert 0 < len(boxes) == len(labels) == len(scores) <= detector.max_detections
        assert labels.dtype == torch.int64 and set(labels.tolist()) <= {1, 2, 3}
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (scores > 0).all() and (scores <= 1).all() and (scores.diff() <= 0).all()


def test_a_list_and_a_batch_are_the_same_to_a_detector(tiny_detector, tiny_batch):
    detector = tiny_detector().eval()
    detector.score_threshold = 0.0
    images, _ = tiny_batch()
    with torch.no_grad():
        pairs = zip(detector(images), detector(list(images)), strict=True)
    assert all(same(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        [torch.zeros(64, 64, 3)],
        [torch.zeros(3, 64, 64), torch.zeros(64, 64)],
        [np.zeros((3, 64, 64), dtype=np.float32)],
        torch.zeros(3, 64, 64),
        [],
    ],
    ids=["uint8", "channels-last", "one-grey", "numpy", "single", "none"],
)
def test_what_is_no_float_image_is_refused(tiny_detector, images):
    with pytest.raises(ValueError, match="image"):
        tiny_detector().eval()(images)


def test_training_without_a_target_for_every_image_is_refused(tiny_detector, tiny_batch):
    detector = tiny_detector().train()
    images, targets = tiny_batch()
    with pytest.raises(ValueError, match="needs targets"):
        detector(images)
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        detector(images, targets[:1])


def test_a_detector_can_train_after_it_was_evaluated(tiny_detector, tiny_batch):
    detector = tiny_detector(seed=3, dtype=torch.float64).eval()
    images, targets = tiny_batch(dtype=torch.float64)
    with torch.inference_mode():
        detector(images)
    sum(detector.train()(images, targets).values()).backward()


# --- rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", YOLOS)
def test_rows_run_over_heads_then_cells_then_anchors(name):
    detector, sizes = build_detector(name, 3, width=0.125), usual_anchors(name)
    height, width = 64, 96
    heads = HEADS[name]
    outputs = [torch.randn(2, 3 * 8, height // s, width // s, dtype=torch.float64) for s, *_ in heads]
    boxes, scores = detector.decode(outputs, (height, width))
    row = 0
    for (stride, scale, mask), output in zip(heads, outputs, strict=True):
        for line in range(height // stride):
            for column in range(width // stride):
                for number, (wide, high) in enumerate(sizes[anchor] for anchor in mask):
                    tx, ty, tw, th, *logits = output[1, 8 * number : 8 * number + 8, line, column]
                    x = (column + scale * tx.sigmoid() - (scale - 1) / 2) * stride
                    y = (line + scale * ty.sigmoid() - (scale - 1) / 2) * stride
                    half = torch.stack([tw.exp() * wide, th.exp() * high]) / 2
                    expected = torch.cat([torch.stack([x, y]) - half, torch.stack([x, y]) + half])
                    torch.testing.assert_close(boxes[1, row], expected)
                    objectness, *classes = torch.stack(logits).sigmoid()
                    torch.testing.assert_close(scores[1, row], objectness * torch.stack(classes))
                    row += 1
    assert row == boxes.shape[1] == scores.shape[1]


def test_decoding_for_another_image_size_is_refused(tiny_detector):
    detector = tiny_detector().eval()
    outputs = detector.head_outputs(torch.zeros(1, 3, 64, 96))
    detector.decode(outputs, (64, 96))
    for size in ((96, 64), (64, 64), (128, 192)):
        with pytest.raises(ValueError, match="do not belong to an image"):
            detector.decode(outputs, size)


def overlap(first: list[float], second: list[float]) -> float:
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    inside = max(wide, 0) * max(high, 0)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return inside / (sum(areas) - inside)


def rows_that_answer(
    box: list[float], detector: nn.Module, grids: list[tuple[int, int]], match_iou: float
) -> list[int]:
    """Slowly, for one box: in the cell of its centre the most similar anchor, and all that are similar enough."""
    wide, high = box[2] - box[0], box[3] - box[1]
    flat = [(head, number, *anchor) for head, a in enumerate(detector.anchors) for number, anchor in enumerate(a)]
    similar = [overlap([0, 0, wide, high], [0, 0, w, h]) for _, _, w, h in flat]
    rows = []
    for (head, number, _, _), value in zip(flat, similar, strict=True):
        if value > match_iou or value == max(similar):
            lines, columns = grids[head]
            stride = detector.strides[head]
            line = min(int((box[1] + box[3]) / 2 / stride), lines - 1)
            column = min(int((box[0] + box[2]) / 2 / stride), columns - 1)
            before = sum(3 * a * b for a, b in grids[:head])
            rows.append(before + 3 * (line * columns + column) + number)
    return rows


def test_with_the_official_matching_a_box_has_only_its_best_anchor(tmp_path):
    detector = build_detector("yolov4-tiny", 3, width=0.1, match_iou=1.0)
    save_detector(detector, tmp_path / "official.safetensors")
    back = load_detector(tmp_path / "official.safetensors")
    boxes = torch.tensor([[10.0, 10, 90, 92], [40, 30, 52, 47], [3, 3, 60, 20]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2, 3])}]
    with torch.no_grad():
        assigned = back.assign_targets(back.head_outputs(torch.zeros(1, 3, 96, 96)), targets)
    # The first box is most like the anchor that both heads have.
    expected = [row for box in boxes.tolist() for row in rows_that_answer(box, back, [(3, 3), (6, 6)], 1.0)]
    assert sorted(assigned.row.tolist()) == sorted(expected) and len(expected) == 4


@pytest.mark.parametrize("name", YOLOS)
@pytest.mark.parametrize("seed", range(4))
def test_assignment_agrees_with_a_loop_over_boxes(tiny_detector, name, seed):
    detector, generator = tiny_detector(dtype=torch.float64, name=name), torch.Generator().manual_seed(seed)
    grids = [(64 // stride, 64 // stride) for stride, *_ in HEADS[name]]
    # Centres often on the border of their cell, boxes about as large as anchors.
    spread = torch.tensor([4, 4, 0.3, 0.3, 1, 1, 1, 1], dtype=torch.float64).repeat(3)[:, None, None]
    outputs = [spread * torch.randn(3, 24, *grid, generator=generator, dtype=torch.float64) for grid in grids]
    found, _ = detector.decode(outputs, (64, 64))
    targets = []
    for image, count in enumerate((24, 0, 12)):
        # Boxes near predicted ones, so that some rows find a box for which they do not answer.
        picked = found[image, torch.randint(found.shape[1], (count,), generator=generator)]
        boxes = (picked + 0.5 * torch.randn(count, 2, generator=generator).repeat(1, 2)).clamp(0, 64)
        targets.append({"boxes": boxes, "labels": torch.randint(1, 4, (count,), generator=generator)})

    assignment = detector.assign_targets(outputs, targets)

    positives, ignored = set(), torch.zeros(found.shape[:2], dtype=torch.bool)
    for image, target in enumerate(targets):
        boxes = target["boxes"].tolist()
        for row, candidate in enumerate(found[image].tolist()):
            ignored[image, row] = any(overlap(candidate, box) > IGNORE_IOU for box in boxes)
        for box, label in zip(boxes, target["labels"].tolist(), strict=True):
            rows = rows_that_answer(box, detector, grids, MATCH_IOU[name])
            positives |= {(image, row, tuple(box), label - 1) for row in rows}
    for image, row, *_ in positives:
        ignored[image, row] = False

    columns = (assignment.image, assignment.row, assignment.boxes, assignment.labels)
    listed = [(i, r, tuple(b), n) for i, r, b, n in zip(*(column.tolist() for column in columns), strict=True)]
    assert len(listed) == len(positives) and set(listed) == positives
    assert torch.equal(assignment.ignored, ignored) and ignored.any()


def test_losses_are_means_over_the_positives_that_leave_out_ignored_rows(tiny_detector):
    detector, generator = tiny_detector(dtype=torch.float64), torch.Generator().manual_seed(0)
    outputs = [torch.randn(2, 24, *grid, generator=generator, dtype=torch.float64) for grid in ((2, 2), (4, 4))]
    table = torch.cat([o.unflatten(1, (3, 8)).permute(0, 3, 4, 1, 2).flatten(1, 3) for o in outputs], 1)
    boxes, _ = detector.decode(outputs, (64, 64))
    image, row, labels = torch.tensor([0, 1, 1]), torch.tensor([5, 20, 31]), torch.tensor([2, 0, 1])
    ignored = torch.rand(2, 60, generator=generator) < 0.3
    ignored[image, row] = False
    truth = boxes[image, row] + torch.tensor([1.0, -2.0, 1.0, -2.0])  # moved: same shape, so CIoU is DIoU
    losses = detector.compute_losses(outputs, Assignment(image, row, truth, labels, ignored))

    answers, classes = torch.zeros(2, 60).double(), torch.eye(3).double()[labels]
    answers[image, row] = 1
    entropy = F.binary_cross_entropy_with_logits
    objectness = entropy(table[..., 4][~ignored], answers[~ignored], reduction="sum")
    classes = entropy(table[image, row, 5:], classes, reduction="sum")
    box = 0.0
    for found, true in zip(boxes[image, row].tolist(), truth.tolist(), strict=True):
        hull = [min(found[0], true[0]), min(found[1], true[1]), max(found[2], true[2]), max(found[3], true[3])]
        diagonal = (hull[2] - hull[0]) ** 2 + (hull[3] - hull[1]) ** 2
        box += 1 - overlap(found, true) + (1**2 + 2**2) / diagonal
    gains = detector.gains
    assert float(losses["objectness"]) == pytest.approx(float(gains.objectness * objectness / 3))
    assert float(losses["classes"]) == pytest.approx(float(gains.classes * classes / 3))
    assert float(losses["box"]) == pytest.approx(gains.box * box / 3, rel=1e-6)
