"""Evaluation: perfect is 1, small cases are computed by hand, and coordinates come back to the image's own pixels."""

import gc

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paperlib.data.records import Dataset, Letterboxed, Record
from paperlib.evaluation.coco import run_coco_eval
from paperlib.evaluation.curves import trace_classes
from paperlib.evaluation.evaluate import compute_metrics, detect, evaluate
from paperlib.evaluation.metrics import COCO_THRESHOLDS, PAPER_THRESHOLD

CLASSES = ("ship", "bridge", "vehicle")


def dataset(*images: list[tuple[int, list[float]]], size: tuple[int, int] = (100, 100)) -> Dataset:
    """One image of `size` (height, width) per list of (label, box)."""
    records = []
    for number, annotations in enumerate(images):
        boxes = np.array([box for _, box in annotations], np.float32).reshape(-1, 4)
        labels = np.array([label for label, _ in annotations], np.int64)
        records.append(Record(str(number), np.zeros((*size, 3), np.uint8), boxes, labels))
    return Dataset("made", CLASSES, records)


def detections(*found: tuple[int, list[float], float]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([box for _, box, _ in found]).reshape(-1, 4),
        "labels": torch.tensor([label for label, _, _ in found], dtype=torch.int64),
        "scores": torch.tensor([score for _, _, score in found]),
    }


A, B, ELSEWHERE = [10.0, 10, 30, 40], [50.0, 50, 90, 80], [0.0, 80, 8, 99]


class Oracle(nn.Module):
    """Answers each batch with what it was told, image by image."""

    def __init__(self, answers: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.weight = nn.Parameter(torch.zeros(1))
        self.frozen = nn.BatchNorm2d(1)
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        assert not any(module.training for module in self.modules())
        self.batches.append(images)
        done = sum(len(batch) for batch in self.batches)
        return self.answers[done - len(images) : done]


def truth(boxed: Letterboxed) -> list[dict[str, Tensor]]:
    """The letterboxed ground truth as detections."""
    return [
        {"boxes": boxes, "labels": labels, "scores": torch.full((len(labels),), 0.9)}
        for boxes, labels in zip(boxed.boxes, boxed.labels, strict=True)
    ]


def test_perfect_detections_score_one():
    data = dataset([(1, A), (2, B)], [], [(1, B)])
    metrics = compute_metrics([detections((1, A, 0.9), (2, B, 0.4)), detections(), detections((1, B, 0.6))], data)
    assert (metrics.map50, metrics.map, metrics.precision, metrics.recall) == pytest.approx((1, 1, 1, 1))
    assert metrics.per_class == pytest.approx({"ship": 1, "bridge": 1})
    assert metrics.confidence <= 0.4
    assert metrics.to_dict()["per_class"] == metrics.per_class


def test_average_precision_agrees_with_a_hand_computed_curve():
    # Hit, miss, hit of two boxes: precision 1 up to recall 1/2 (51 of 101 points), then 2/3.
    found = [detections((1, A, 0.9), (1, ELSEWHERE, 0.8), (1, B, 0.7), (3, A, 0.9))]
    metrics = compute_metrics(found, dataset([(1, A), (1, B), (2, A)]), confidence=0.75)
    assert metrics.per_class == pytest.approx({"ship": (51 + 50 * 2 / 3) / 101, "bridge": 0.0})
    assert metrics.map50 == pytest.approx(np.mean(list(metrics.per_class.values())))
    # At 0.75: one hit and one miss of the ships, nothing of the bridges; vehicles do not occur and do not count.
    assert (metrics.precision, metrics.recall) == pytest.approx(((0.5 + 0) / 2, (0.5 + 0) / 2))
    assert metrics.confidence == 0.75


def test_the_overlap_that_counts_is_one_half():
    data = dataset([(1, [0.0, 0, 10, 10])])
    just, barely_not = [0.0, 0, 10, 5.01], [0.0, 0, 10, 4.99]
    hit, miss = (compute_metrics([detections((1, box, 0.9))], data) for box in (just, barely_not))
    assert (hit.map50, hit.map, hit.precision, hit.recall) == pytest.approx((1, 0.1, 1, 1))
    assert (miss.map50, miss.map, miss.precision, miss.recall) == (0, 0, 0, 0)


def test_a_second_detection_of_the_same_object_is_false():
    metrics = compute_metrics([detections((1, A, 0.9), (1, A, 0.8))], dataset([(1, A)]), confidence=0.5)
    assert (metrics.map50, metrics.precision, metrics.recall) == pytest.approx((1, 0.5, 1))


def test_detections_on_an_image_without_objects_count_against():
    data = dataset([(1, A)], [])
    clean, false = detections((1, A, 0.8)), detections((1, B, 0.9))
    assert compute_metrics([clean, detections()], data).map50 == pytest.approx(1)
    metrics = compute_metrics([clean, false], data, confidence=0.1)
    assert (metrics.map50, metrics.precision, metrics.recall) == pytest.approx((0.5, 0.5, 1))


def test_the_confidence_chosen_is_the_one_that_maximises_f1():
    found = [detections((1, A, 0.8), (1, B, 0.6), (1, ELSEWHERE, 0.3))]
    metrics = compute_metrics(found, dataset([(1, A), (1, B)]))
    assert 0.3 < metrics.confidence <= 0.6
    assert (metrics.precision, metrics.recall) == (1, 1)


def test_finding_nothing_scores_zero():
    metrics = compute_metrics([detections()], dataset([(1, A)]))
    assert (metrics.map50, metrics.map, metrics.precision, metrics.recall) == (0, 0, 0, 0)


def test_letterboxed_coordinates_come_back_to_the_images_own():
    wide = dataset([(1, A), (2, B)], [], [(3, [0.0, 0, 200, 100])], size=(100, 200))
    oracle = Oracle(truth(wide.letterboxed(64)))
    metrics = evaluate(oracle, wide, image_size=64, batch_size=2)
    assert (metrics.map50, metrics.map) == pytest.approx((1, 1))
    assert [tuple(batch.shape) for batch in oracle.batches] == [(2, 3, 64, 64), (1, 3, 64, 64)]


def test_without_a_size_the_longest_side_sets_it_rounded_up_to_32_pixels():
    wide = dataset([(1, A)], size=(100, 200))
    oracle = Oracle(truth(wide.letterboxed(224)))
    assert evaluate(oracle, wide).map50 == pytest.approx(1)
    assert oracle.batches[0].shape[2:] == (224, 224)


def test_detections_lie_inside_the_image_and_not_in_its_padding():
    wide = dataset([(1, A)], size=(100, 200))
    into_the_padding = [detections((1, [0.0, 10, 64, 60], 0.9))]
    (found,) = detect(Oracle(into_the_padding), wide, image_size=64)
    torch.testing.assert_close(found["boxes"], torch.tensor([[0.0, 31.25, 200, 100]]))


def test_pixels_come_in_the_detectors_own_type():
    data = dataset([(1, A)])
    oracle = Oracle(truth(data.letterboxed(64))).double()
    evaluate(oracle, data, image_size=64)
    assert oracle.batches[0].dtype == torch.float64


def test_the_detector_comes_back_in_the_mode_it_was_in():
    data = dataset([(1, A)])
    for failing in (False, True):
        oracle = Oracle([] if failing else truth(data.letterboxed(64))).train()
        oracle.frozen.eval()
        if failing:
            with pytest.raises(ValueError):
                evaluate(oracle, data, image_size=64)
        else:
            evaluate(oracle, data, image_size=64)
        assert oracle.training and not oracle.frozen.training


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="made: no boxes, nothing to evaluate"):
        evaluate(Oracle([]), dataset([], []), image_size=64)
    with pytest.raises(ValueError, match="made: no boxes, nothing to evaluate"):
        compute_metrics([detections()], dataset([]))
    with pytest.raises(ValueError, match="made: detections for 1 images, the data set has 2"):
        compute_metrics([detections()], dataset([(1, A)], []))


def test_detections_are_matched_as_if_one_after_another_each_with_the_nearest_free_object():
    draw = np.random.default_rng(0)
    images, found = [], []
    for count in (40, 0, 120, 7):
        corners = draw.integers(0, 30, (count, 2))  # whole pixels and few scores, so that overlaps and scores tie
        boxes = np.concatenate([corners, corners + draw.integers(5, 15, (count, 2))], 1).astype(float)
        images.append([(int(label), box) for label, box in zip(draw.integers(1, 3, count), boxes, strict=True)])
        moved = [(box + draw.integers(-1, 2, 4)).tolist() for box in np.repeat(boxes, 2, axis=0)]
        found.append(detections(*((int(draw.integers(1, 3)), box, float(draw.integers(1, 9)) / 8) for box in moved)))
    evaluation = run_coco_eval(found, dataset(*images), PAPER_THRESHOLD)
    for label, curve in enumerate(trace_classes(evaluation, len(CLASSES), COCO_THRESHOLDS), 1):
        for level, threshold in enumerate(COCO_THRESHOLDS):
            for image in range(len(images)):
                hits = curve.hits[curve.images == image, level]
                table = np.array(evaluation.result.ious[image, label])  # without rows if there is no object
                assert hits.tolist() == (match_slowly(table, threshold) if len(table) else [False] * len(hits))


def match_slowly(overlaps: np.ndarray, threshold: float) -> list[bool]:
    free, hits = set(range(overlaps.shape[1])), []
    for row in overlaps:
        overlap, nearest = max(((row[column], column) for column in free), default=(0, -1))
        hits.append(bool(overlap >= threshold - 1e-10))
        free -= {nearest} if hits[-1] else set()
    return hits


def test_an_evaluation_leaves_the_garbage_collector_as_it_was():
    for enabled in (False, True):
        gc.enable() if enabled else gc.disable()
        compute_metrics([detections((1, A, 0.9))], dataset([(1, A)]))
        assert gc.isenabled() is enabled
