"""CenterNet: the paper's size, peaks that a loop confirms, perfect heads, and what distillation hears of it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import same, snapshot
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from paperlib.costs import cost
from paperlib.detectors import build_detector, reinitialise_
from paperlib.detectors.base import Assignment
from paperlib.detectors.files import load_detector, save_detector
from paperlib.detectors.heatmap import MIN_OVERLAP, draw_peaks, gaussian_radius
from paperlib.distillation.assistants import Distillation
from paperlib.distillation.losses import bounded_regression_loss
from paperlib.pruning import apply_plan, plan_pruning, rescale_gamma_

SIDES = (64, 96)
GRID = (16, 24)


def make(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A CenterNet of a tenth of its width for three classes, with lively batch norms and outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = build_detector("centernet-resnet50", 3, width=0.1, depth=0.3)
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.2, 1.0)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        for head in (detector.heatmap, detector.size, detector.offset):
            nn.init.normal_(head.out.weight, std=0.5)
            nn.init.uniform_(head.out.bias, 0.5, 1.5)
    return detector.to(dtype)


def make_batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Two pictures: one with five boxes, of which two of a class share their centre's cell; one without any."""
    images = torch.rand(2, 3, *SIDES, generator=torch.Generator().manual_seed(0), dtype=dtype)
    boxes = [[2, 3, 5, 6], [10, 20, 20, 28], [7, 17, 23, 31], [1, 2, 62, 60], [60, 30, 96, 64]]
    full = {"boxes": torch.tensor(boxes, dtype=dtype), "labels": torch.tensor([1, 2, 2, 1, 3])}
    return images, [full, {key: value[:0] for key, value in full.items()}]


def random_outputs(seed: int, images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, n, *GRID, generator=generator, dtype=torch.float64) for n in (3, 2, 2)]


def random_targets(seed: int, images: int = 2) -> list[dict[str, Tensor]]:
    """Boxes of all sizes, many of them large, so that slopes overlap and reach over the border."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(images, 12, 2, 2, generator=generator, dtype=torch.float64) * torch.tensor(SIDES[::-1])
    boxes = torch.cat([corners.amin(2), corners.amax(2) + 1], -1)
    labels = torch.randint(1, 4, (images, 12), generator=generator)
    return [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]


def test_size_and_work_are_the_papers():
    whole = cost(build_detector("centernet-resnet50", 10))
    assert whole.parameters == pytest.approx(32.66e6, rel=1e-3)
    assert whole.gmacs == pytest.approx(61.51, rel=1e-3)
    quick = build_detector("centernet-resnet50", 10, width=0.125, depth=0.3)
    assert cost(quick).gmacs < 0.02 * whole.gmacs
    with pytest.raises(ValueError, match="centernet-resnet50 has no anchors to choose"):
        build_detector("centernet-resnet50", 10, anchors=[(8, 8)])


# --- heatmaps -----------------------------------------------------------------------------------------


@given(st.floats(0.5, 200), st.floats(0.5, 200))
def test_the_radius_is_that_of_the_published_code(wide, high):
    total, area, m = wide + high, wide * high, MIN_OVERLAP
    alike, inwards, outwards = (
        (1, total, area * (1 - m) / (1 + m)),
        (4, 2 * total, area * (1 - m)),
        (4 * m, -2 * m * total, -area * (1 - m)),
    )
    roots = [(b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in (alike, inwards, outwards)]
    radius = float(gaussian_radius(torch.tensor([[wide, high]], dtype=torch.float64)))
    assert radius == pytest.approx(min(roots))
    out = radius / (4 * m)
    assert area / ((wide + 2 * out) * (high + 2 * out)) == pytest.approx(m)


def slow_peaks(planes, cells, radii, shape):
    heatmap = torch.zeros(shape, dtype=torch.float64)
    for plane, (column, line), radius in zip(planes, cells, radii, strict=True):
        deviation = (2 * radius + 1) / 6
        for y in range(max(0, line - radius), min(shape[1], line + radius + 1)):
            for x in range(max(0, column - radius), min(shape[2], column + radius + 1)):
                away = torch.tensor((x - column) ** 2 + (y - line) ** 2, dtype=torch.float64)
                heatmap[plane, y, x] = max(heatmap[plane, y, x], torch.exp(-away / (2 * deviation**2)))
    return heatmap


@pytest.mark.parametrize("seed", range(3))
def test_target_heatmaps_agree_with_a_loop_over_boxes_and_cells(seed):
    generator, shape = torch.Generator().manual_seed(seed), (4, 9, 13)
    planes, radii = (torch.randint(n, (14,), generator=generator) for n in (3, 6))
    cells = torch.stack([torch.randint(n, (14,), generator=generator) for n in (13, 9)], 1)
    expected = slow_peaks(planes.tolist(), cells.tolist(), radii.tolist(), shape)
    torch.testing.assert_close(draw_peaks(planes, cells, radii, shape), expected)
    assert not expected[3].any() and ((expected > 0) & (expected < 1)).any()


@pytest.mark.parametrize("seed", range(3))
def test_losses_and_their_gradients_are_those_of_the_definition(seed):
    detector, targets = make(), random_targets(seed)
    outputs = [output.requires_grad_() for output in random_outputs(seed)]
    losses = detector.compute_losses(outputs, detector.assign_targets(outputs, targets))

    expected = dict.fromkeys(("heatmap", "offset", "size"), 0.0)
    count = sum(len(target["boxes"]) for target in targets)
    for image, target in enumerate(targets):
        boxes = target["boxes"] / 4
        cells = [(min(int(x), 23), min(int(y), 15)) for x, y in ((boxes[:, :2] + boxes[:, 2:]) / 2).tolist()]
        radii = gaussian_radius(boxes[:, 2:] - boxes[:, :2]).int().tolist()
        truth = slow_peaks((target["labels"] - 1).tolist(), cells, radii, (3, *GRID))
        p = outputs[0][image].sigmoid()
        slopes = (1 - truth) ** 4 * p**2 * (1 - p).log()
        expected["heatmap"] -= torch.where(truth == 1, (1 - p) ** 2 * p.log(), slopes).sum() / count
        for box, (x, y) in zip(boxes, cells, strict=True):
            offset = (box[:2] + box[2:]) / 2 - torch.tensor([x, y])
            expected["offset"] += (outputs[2][image, :, y, x] - offset).abs().sum() / count
            expected["size"] += 0.1 * (outputs[1][image, :, y, x] - (box[2:] - box[:2])).abs().sum() / count
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    found, wanted = (torch.autograd.grad(sum(parts.values()), outputs) for parts in (losses, expected))
    torch.testing.assert_close(found, wanted)


# --- torchvision's conventions ------------------------------------------------------------------------


def test_perfect_heads_give_back_the_true_boxes_and_only_those():
    detector, (images, targets) = make().eval(), make_batch()
    targets[0] = {key: value[[0, 1, 3, 4]] for key, value in targets[0].items()}  # one box a cell
    outputs = [torch.zeros_like(output) for output in random_outputs(0)]
    assignment = detector.assign_targets(outputs, targets)
    true = detector.head_responses(outputs, assignment).regression_target
    offset, size = true[:, :2], 10 * true[:, 2:]
    line, column = assignment.row // GRID[1], assignment.row % GRID[1]
    # Every logit that is not on a peak slopes down from one, so the peak alone is to be picked.
    plane, cell = assignment.image * 3 + assignment.labels, torch.stack([column, line], 1)
    outputs[0] = 8 * draw_peaks(plane, cell, torch.full_like(plane, 3), (6, *GRID)).view(2, 3, *GRID) - 4
    outputs[1][assignment.image, :, line, column], outputs[2][assignment.image, :, line, column] = size, offset
    detector.head_outputs = lambda batch: outputs

    boxes, scores = detector.decode(outputs, SIDES)
    assert boxes.shape == (2, 384, 4) and scores.shape == (2, 384, 3)
    torch.testing.assert_close(boxes[assignment.image, assignment.row], assignment.boxes)
    detector.score_threshold = 0.5
    full, empty = detector(images)
    order = full["boxes"][:, 0].argsort()
    true_order = targets[0]["boxes"][:, 0].argsort()
    torch.testing.assert_close(full["boxes"][order], targets[0]["boxes"][true_order])
    assert torch.equal(full["labels"][order], targets[0]["labels"][true_order])
    assert len(empty["boxes"]) == 0
    with pytest.raises(ValueError, match="do not belong to an image"):
        detector.decode(outputs, (96, 64))


def test_training_gives_losses_whose_gradients_reach_every_parameter():
    detector, (images, targets) = make().train(), make_batch()
    losses = detector(list(images), targets)
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_images_without_boxes_train_the_heatmap_alone():
    detector, (images, (_, empty)) = make().train(), make_batch()
    losses = detector(images, [empty, empty])
    assert losses["size"] == 0 and losses["offset"] == 0 and losses["heatmap"] > 0
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_a_few_steps_on_one_batch_halve_the_loss_from_a_fresh_start():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = build_detector("centernet-resnet50", 3, width=0.1, depth=0.3).train()
    optimiser, batch, history = torch.optim.Adam(detector.parameters(), 6e-3), make_batch(torch.float32), []
    for _ in range(40):
        loss = sum(detector(*batch).values())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        history.append(float(loss.detach()))
    assert history[-1] < 0.5 * history[0]


def test_detections_lie_inside_each_image():
    detector = make(dtype=torch.float32).eval()
    detector.score_threshold = 0.0
    sizes = [(50, 70), (96, 33), (64, 64), (7, 90)]
    with torch.no_grad():
        found = detector([torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) for size in sizes])
    for image, (height, width) in zip(found, sizes, strict=True):
        boxes, labels, scores = image["boxes"], image["labels"], image["scores"]
        assert 0 < len(boxes) == len(labels) == len(scores) <= detector.max_detections
        assert labels.dtype == torch.int64 and set(labels.tolist()) <= {1, 2, 3}
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (scores > 0).all() and (scores <= 1).all() and (scores.diff() <= 0).all()


# --- pruned -------------------------------------------------------------------------------------------


@pytest.fixture
def pruned() -> nn.Module:
    whole = make(dtype=torch.float32).eval()
    return apply_plan(whole, plan_pruning(whole, 0.5), compensate="exact")


def test_a_pruned_detector_is_the_same_bits_after_a_round_trip(pruned, tmp_path):
    save_detector(pruned, tmp_path / "pruned.safetensors")
    loaded = load_detector(tmp_path / "pruned.safetensors")
    images, _ = make_batch(torch.float32)
    with torch.no_grad():
        pairs = zip(pruned(images), loaded(images), strict=True)
    assert all(same(one, other) and len(one["boxes"]) for one, other in pairs)


def test_reinitialising_a_pruned_detector_leaves_nothing_of_its_weights(pruned):
    before = snapshot(pruned)
    reinitialise_(pruned)
    assert all(not torch.equal(value, before[name]) for name, value in snapshot(pruned).items() if value.ndim)
    torch.testing.assert_close(pruned.heatmap.out.bias.sigmoid(), torch.full((3,), 0.01))
    assert all((m.weight == 0.5).all() for m in pruned.modules() if isinstance(m, nn.BatchNorm2d))


def test_gamma_can_be_levelled_without_changing_the_outputs():
    detector = make().eval()
    levelled = copy.deepcopy(detector)
    rescale_gamma_(levelled)
    images, _ = make_batch()
    with torch.no_grad():
        torch.testing.assert_close(levelled.head_outputs(images), detector.head_outputs(images))


# --- distillation -------------------------------------------------------------------------------------


def gradients(losses, module) -> list[Tensor]:
    return torch.autograd.grad(sum(losses), list(module.parameters()), allow_unused=True, materialize_grads=True)


def test_without_weights_distillation_is_the_detectors_own_loss():
    student, batch = make(1).train(), make_batch()
    own = student(*batch)
    distilled = Distillation(make(2), soft_weight=0.0, bound_weight=0.0, temperature=3.0)(student, *batch)
    assert distilled.keys() - own.keys() == {"bound"} and distilled["bound"] == 0
    assert all(torch.equal(distilled[name], own[name]) for name in own)
    for first, second in zip(gradients(own.values(), student), gradients(distilled.values(), student), strict=True):
        torch.testing.assert_close(first, second, atol=1e-12, rtol=1e-12)


def test_a_teacher_identical_to_the_student_teaches_nothing():
    student, batch = make().eval(), make_batch()
    losses = Distillation(copy.deepcopy(student), soft_weight=1.0, bound_weight=1.0, temperature=2.0)(student, *batch)
    assert losses["bound"] == 0 and losses["heatmap"] > 0
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients([losses["heatmap"]], student))


def test_the_soft_loss_has_the_hard_ones_weights_and_the_bound_its_regression_space():
    student, teacher, (images, targets) = make(2).train(), make(1).eval(), make_batch()
    losses = Distillation(teacher, soft_weight=0.3, bound_weight=0.7, temperature=2.0)(student, images, targets)
    outputs = student.head_outputs(images)
    assignment = student.assign_targets(outputs, targets)
    own, mine = student.compute_losses(outputs, assignment), student.head_responses(outputs, assignment)
    theirs = teacher.head_responses(teacher.head_outputs(images), assignment)
    p, q = ((answers.logits["heatmap"] / 2).sigmoid() for answers in (theirs, mine))
    soft = -4 * (mine.weights["heatmap"] * (p * q.log() + (1 - p) * (1 - q).log())).sum()
    torch.testing.assert_close(losses["heatmap"], 0.7 * own["heatmap"] + 0.3 * soft)
    bound = bounded_regression_loss(mine.regression, theirs.regression, mine.regression_target).sum()
    torch.testing.assert_close(losses["bound"], 0.7 * bound / 5)
    assert losses["bound"] > 0


@pytest.mark.parametrize("seed", range(3))
def test_responses_with_their_weights_are_the_detectors_own_losses(seed):
    detector, outputs = make(), [output.requires_grad_() for output in random_outputs(seed)]
    assignment = detector.assign_targets(outputs, random_targets(seed))
    losses, answers = detector.compute_losses(outputs, assignment), detector.head_responses(outputs, assignment)
    weights, hard = answers.weights["heatmap"], answers.hard_targets["heatmap"]
    entropy = F.binary_cross_entropy_with_logits(answers.logits["heatmap"], hard, reduction="none")
    torch.testing.assert_close((weights * entropy).sum(), losses["heatmap"])
    assert not weights.requires_grad and set(hard.unique().tolist()) == {0.0, 1.0}
    distance = (answers.regression - answers.regression_target).abs().sum() * answers.regression_weight
    torch.testing.assert_close(distance, losses["offset"] + losses["size"])


def test_the_regression_of_a_perfect_box_is_its_target():
    detector, outputs = make(), random_outputs(0)
    outputs[1], outputs[2] = outputs[1].abs(), outputs[2].sigmoid()
    assignment = detector.assign_targets(outputs, random_targets(0))
    boxes, _ = detector.decode(outputs, SIDES)
    predicted = boxes[assignment.image, assignment.row]
    perfect = Assignment(assignment.image, assignment.row, predicted, assignment.labels, assignment.ignored)
    answers = detector.head_responses(outputs, perfect)
    torch.testing.assert_close(answers.regression, answers.regression_target)
