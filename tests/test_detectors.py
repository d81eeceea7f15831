"""YOLOv4-tiny: the official network to rounding, torchvision's conventions, and an assignment that a loop confirms."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paperlib.costs import cost
from paperlib.detectors import (
    build_detector,
    load_darknet_weights,
    reinitialise_,
    transfer_coco_weights,
    usual_anchors,
)
from paperlib.detectors.base import Assignment
from paperlib.detectors.blocks import ConvBlock
from paperlib.detectors.yolo import IGNORE_IOU, MATCH_IOU
from paperlib.pruning import apply_plan, plan_pruning

WIDE_HEADER = np.array([0, 2, 5, 7, 0], dtype="<i4").tobytes()
NARROW_HEADER = np.array([0, 1, 0, 7], dtype="<i4").tobytes()


def values_of(detector: nn.Module) -> np.ndarray:
    """All values in the order of a Darknet file, each kind of layer spelled out."""
    tensors: list[Tensor] = []
    for module in detector.modules():
        if isinstance(module, ConvBlock):
            norm = module.bn
            tensors += [norm.bias, norm.weight, norm.running_mean, norm.running_var, module.conv.weight]
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            tensors += [module.bias, module.weight]
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()


def snapshot(detector: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- the official network -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut_416", "coffee_416", "coffee_320"])
def test_official_weights_give_the_outputs_of_an_independent_reader(coco_weights, data_root, name):
    path = data_root.parent / "reference" / "yolov4_tiny_coco_opencv.npz"
    if not path.is_file():
        pytest.skip(f"no reference outputs: {path}")
    reference = np.load(path)
    detector = build_detector("yolov4-tiny", 80).eval()
    load_darknet_weights(detector, coco_weights)
    image = torch.from_numpy(reference[f"{name}_image"]).permute(2, 0, 1)[None].float() / 255
    rows = torch.from_numpy(reference[f"{name}_rows"])
    side = image.shape[-1]

    with torch.no_grad():
        outputs = detector.head_outputs(image)
        boxes, scores = detector.decode(outputs, (side, side))
    found = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)[0] / side
    objectness = torch.cat([o.permute(0, 2, 3, 1).reshape(-1, 85)[:, 4] for o in outputs]).sigmoid()
    # The other reader writes a score of 0.2 or less as 0: leave out what rounding may put on either side.
    comparable = (scores[0] - 0.2).abs() > 1e-4
    expected = scores[0].where(scores[0] > 0.2, torch.zeros(()))

    torch.testing.assert_close(found, rows[:, :4], atol=1e-4, rtol=0)
    torch.testing.assert_close(objectness, rows[:, 4], atol=1e-4, rtol=0)
    torch.testing.assert_close(expected[comparable], rows[:, 5:][comparable], atol=1e-4, rtol=0)
    assert (rows[:, 5:] > 0.2).any()


def test_size_and_compute_are_those_of_the_paper():
    assert cost(build_detector("yolov4-tiny", 80)).size_mb == pytest.approx(24.3, abs=0.05)
    ten = cost(build_detector("yolov4-tiny", 10))
    assert ten.size_mb == pytest.approx(23.6, abs=0.05)
    assert ten.gmacs == pytest.approx(12.57, rel=1e-3)


def test_the_size_is_that_of_the_official_weights_file(coco_weights):
    size = cost(build_detector("yolov4-tiny", 80)).size_mb * 1e6
    assert round(size) + len(WIDE_HEADER) == coco_weights.stat().st_size


def test_multiply_accumulates_follow_their_definition():
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 8·3·9 per each of 4×4 outputs
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # 8·9 per each of 4×4 outputs
        nn.ConvTranspose2d(8, 2, 2, stride=2),  # 8·2·4 per each of 4×4 inputs
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(2 * 8 * 8, 5),
    )
    found = cost(layers, image_size=8)
    assert found.gmacs * 1e9 == pytest.approx(16 * (216 + 72 + 64) + 640)
    assert found.parameters == 216 + (72 + 8) + (64 + 2) + 4 + (640 + 5)
    assert found.size_mb * 1e6 == pytest.approx(4 * (found.parameters + 4))
    assert all(p.device.type == "cpu" for p in layers.parameters()) and not layers[0]._forward_hooks


# --- Darknet files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [WIDE_HEADER, NARROW_HEADER])
def test_a_darknet_file_fills_every_tensor(tiny_detector, tmp_path, header):
    source, target = tiny_detector(seed=1), tiny_detector(seed=2)
    path = tmp_path / "tiny.weights"
    path.write_bytes(header + values_of(source).tobytes())
    load_darknet_weights(target, path)
    assert same(snapshot(target), snapshot(source))


@pytest.mark.parametrize(
    ("damage", "held"),
    [
        (lambda content: content[:-4], "{all_but_one} float32 values;"),
        (lambda content: content + b"\0\0\0\0", "{one_more} float32 values;"),
        (lambda content: content[:-2], "{all_but_one} float32 values and 2 bytes of another;"),
        (lambda content: content[:11], "0 float32 values;"),
        (lambda content: b"", "0 float32 values;"),
        (lambda content: b"\xff\xff\xff\x7f" * 9, "4 float32 values;"),
    ],
    ids=["cut", "too-long", "inside-a-value", "inside-the-header", "empty", "another-kind"],
)
def test_a_darknet_file_that_does_not_fit_is_refused_with_both_counts(tiny_detector, tmp_path, damage, held):
    detector, path = tiny_detector(), tmp_path / "tiny.weights"
    before, count = snapshot(detector), len(values_of(detector))
    path.write_bytes(damage(WIDE_HEADER + values_of(tiny_detector(seed=1)).tobytes()))
    with pytest.raises(ValueError) as caught:
        load_darknet_weights(detector, path)
    held = held.format(all_but_one=count - 1, one_more=count + 1)
    assert str(caught.value) == f"{path}: holds {held} YoloV4Tiny needs {count}"
    assert same(snapshot(detector), before)


def test_a_darknet_file_of_other_classes_is_refused_with_both_counts(tiny_detector, tmp_path):
    detector, path = tiny_detector(4), tmp_path / "three.weights"
    counts = len(values_of(tiny_detector(3))), len(values_of(detector))
    path.write_bytes(WIDE_HEADER + values_of(tiny_detector(3)).tobytes())
    with pytest.raises(ValueError, match=f"{counts[0]} float32 values; YoloV4Tiny needs {counts[1]}"):
        load_darknet_weights(detector, path)
    with pytest.raises(FileNotFoundError, match=r"none\.weights"):
        load_darknet_weights(detector, tmp_path / "none.weights")


def test_transfer_takes_everything_but_the_class_outputs(tiny_detector, tmp_path):
    source, target, path = tiny_detector(80, seed=1), tiny_detector(10, seed=2), tmp_path / "coco.weights"
    path.write_bytes(WIDE_HEADER + values_of(source).tobytes())
    before, given = snapshot(target), snapshot(source)
    transfer_coco_weights(target, path)
    for name, value in snapshot(target).items():
        if "_out." not in name:
            assert torch.equal(value, given[name]), name
            continue
        rows, fresh = value.unflatten(0, (3, 15)), before[name].unflatten(0, (3, 15))
        assert torch.equal(rows[:, :5], given[name].unflatten(0, (3, 85))[:, :5]), name
        assert torch.equal(rows[:, 5:], fresh[:, 5:]), name


def test_transfer_to_a_pruned_detector_is_refused(tiny_detector, tmp_path):
    whole, path = tiny_detector(80), tmp_path / "coco.weights"
    path.write_bytes(WIDE_HEADER + values_of(whole).tobytes())
    pruned = apply_plan(whole, plan_pruning(whole, 0.5))
    before = snapshot(pruned)
    with pytest.raises(ValueError, match="pruned"):
        transfer_coco_weights(pruned, path)
    assert same(snapshot(pruned), before)


# --- building -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"name": "yolov9"}, "unknown detector 'yolov9'; known: yolov4-tiny"),
        ({"num_classes": 0}, "at least 1 class, not 0"),
        ({"width": 0.0}, "width 0.0 is not positive"),
        ({"anchors": [(8, 8)] * 5}, "six anchors"),
        ({"anchors": []}, "six anchors"),
        ({"anchors": [(8, 8)] * 5 + [(8, 0)]}, "six anchors"),
        ({"structure": {}}, "does not name these layers"),
    ],
)
def test_a_detector_that_cannot_be_is_refused(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        build_detector(**{"name": "yolov4-tiny", "num_classes": 3} | arguments)


def test_unknown_names_have_no_usual_anchors():
    assert len(usual_anchors("yolov4-tiny")) == 6
    with pytest.raises(ValueError, match="unknown detector 'yolov9'"):
        usual_anchors("yolov9")


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


def test_training_gives_losses_whose_gradients_reach_every_parameter(tiny_detector, tiny_batch):
    detector = tiny_detector().train()
    images, targets = tiny_batch()
    losses = detector(list(images), targets)
    assert set(losses) == {"box", "objectness", "classes"}
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


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


def test_rows_run_over_heads_then_cells_then_anchors(tiny_detector):
    detector = tiny_detector(dtype=torch.float64)
    height, width = 64, 96
    heads = ((32, 2, 3), (16, 4, 6))
    outputs = [torch.randn(2, 3 * 8, rows, columns, dtype=torch.float64) for _, rows, columns in heads]
    boxes, scores = detector.decode(outputs, (height, width))
    row = 0
    for (stride, lines, columns), output, anchors in zip(heads, outputs, detector.anchors, strict=True):
        for line in range(lines):
            for column in range(columns):
                for number, (wide, high) in enumerate(anchors):
                    tx, ty, tw, th, *logits = output[1, 8 * number : 8 * number + 8, line, column]
                    x = (column + 1.05 * tx.sigmoid() - 0.025) * stride
                    y = (line + 1.05 * ty.sigmoid() - 0.025) * stride
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


def rows_that_answer(box: list[float], detector: nn.Module, grids: list[tuple[int, int]]) -> list[int]:
    """Slowly, for one box: in the cell of its centre the most similar anchor, and all that are similar enough."""
    wide, high = box[2] - box[0], box[3] - box[1]
    flat = [(head, number, *anchor) for head, a in enumerate(detector.anchors) for number, anchor in enumerate(a)]
    similar = [overlap([0, 0, wide, high], [0, 0, w, h]) for _, _, w, h in flat]
    rows = []
    for (head, number, _, _), value in zip(flat, similar, strict=True):
        if value > MATCH_IOU or value == max(similar):
            lines, columns = grids[head]
            stride = detector.strides[head]
            line = min(int((box[1] + box[3]) / 2 / stride), lines - 1)
            column = min(int((box[0] + box[2]) / 2 / stride), columns - 1)
            before = sum(3 * a * b for a, b in grids[:head])
            rows.append(before + 3 * (line * columns + column) + number)
    return rows


@pytest.mark.parametrize("seed", range(6))
def test_assignment_agrees_with_a_loop_over_boxes(tiny_detector, seed):
    detector, generator = tiny_detector(dtype=torch.float64), torch.Generator().manual_seed(seed)
    grids = [(2, 2), (4, 4)]
    # Centres often on the border of their cell, boxes about as large as anchors.
    spread = torch.tensor([4, 4, 0.3, 0.3, 1, 1, 1, 1], dtype=torch.float64).repeat(3)[:, None, None]
    outputs = [spread * torch.randn(3, 24, *grid, generator=generator, dtype=torch.float64) for grid in grids]
    found, _ = detector.decode(outputs, (64, 64))
    targets = []
    for image, count in enumerate((12, 0, 6)):
        # Boxes near predicted ones, so that some rows find a box for which they do not answer.
        picked = found[image, torch.randint(found.shape[1], (count,), generator=generator)]
        boxes = (picked + torch.randn(count, 2, generator=generator).repeat(1, 2)).clamp(0, 64)
        targets.append({"boxes": boxes, "labels": torch.randint(1, 4, (count,), generator=generator)})

    assignment = detector.assign(outputs, targets)

    positives, ignored = set(), torch.zeros(found.shape[:2], dtype=torch.bool)
    for image, target in enumerate(targets):
        boxes = target["boxes"].tolist()
        for row, candidate in enumerate(found[image].tolist()):
            ignored[image, row] = any(overlap(candidate, box) > IGNORE_IOU for box in boxes)
        for box, label in zip(boxes, target["labels"].tolist(), strict=True):
            positives |= {(image, row, tuple(box), label - 1) for row in rows_that_answer(box, detector, grids)}
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
    losses = detector.losses(outputs, Assignment(image, row, truth, labels, ignored))

    def entropy(logit: Tensor, target: float) -> float:
        return float(-(target * logit.sigmoid().log() + (1 - target) * (-logit).sigmoid().log()))

    positives = set(zip(image.tolist(), row.tolist(), strict=True))
    objectness = sum(
        entropy(table[i, r, 4], (i, r) in positives) for i in range(2) for r in range(60) if not ignored[i, r]
    )
    classes = sum(
        entropy(table[i, r, 5 + k], k == label)
        for i, r, label in zip(image, row, labels, strict=True)
        for k in range(3)
    )
    box = 0.0
    for found, true in zip(boxes[image, row].tolist(), truth.tolist(), strict=True):
        hull = [min(found[0], true[0]), min(found[1], true[1]), max(found[2], true[2]), max(found[3], true[3])]
        diagonal = (hull[2] - hull[0]) ** 2 + (hull[3] - hull[1]) ** 2
        box += 1 - overlap(found, true) + (1**2 + 2**2) / diagonal
    gains = detector.gains
    assert float(losses["objectness"]) == pytest.approx(gains.objectness * objectness / 3)
    assert float(losses["classes"]) == pytest.approx(gains.classes * classes / 3)
    assert float(losses["box"]) == pytest.approx(gains.box * box / 3, rel=1e-6)
