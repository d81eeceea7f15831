"""The bootstrap over groups of images: as by brute force, as in closed form, paired, and stored without loss."""

import numpy as np
import pytest
import torch

from paperlib.data.records import Dataset, Record
from paperlib.evaluation.bootstrap import (
    MatchedDetections,
    draw_weights,
    match_detections,
    paired_error,
    resample_matches,
    resample_mean,
    resample_metrics,
)
from paperlib.evaluation.metrics import compute_metrics

CLASSES = ("ship", "bridge", "vehicle")
METRICS = ("map50", "map", "precision", "recall")


def make_images(count, seed=0):
    """Images with up to four objects, and detections of which some are near an object and some anywhere."""
    draw = np.random.default_rng(seed)
    records, found = [], []
    for number in range(count):
        corners = draw.uniform(0, 60, (draw.integers(1, 5), 2))
        boxes = np.concatenate([corners, corners + draw.uniform(10, 40, corners.shape)], 1).astype(np.float32)
        labels = draw.integers(1, 4, len(boxes))
        records.append(Record(str(number), np.zeros((100, 100, 3), np.uint8), boxes, labels))
        near = boxes[draw.integers(len(boxes), size=6)] + draw.normal(0, 3, (6, 4)).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        found.append({
            "boxes": torch.from_numpy(near), "labels": torch.from_numpy(draw.integers(1, 4, 6)),
            "scores": torch.from_numpy(draw.random(6).astype(np.float32)),
        })  # fmt: skip
    return Dataset("made", CLASSES, records), found


def test_with_every_image_once_the_metrics_are_those_of_the_evaluation():
    data, found = make_images(12)
    metrics = compute_metrics(found, data)
    matched = match_detections(found, data, np.arange(12), metrics.confidence)
    again = resample_metrics(matched, np.ones((1, 12), np.int64), metrics.confidence)
    assert [again[name][0] for name in METRICS] == pytest.approx(
        [getattr(metrics, name) for name in METRICS], abs=1e-12
    )


def test_each_replicate_equals_an_evaluation_of_the_drawn_images():
    data, found = make_images(10)
    groups = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6])
    weights = draw_weights(groups, replicates=8)
    fast = resample_metrics(match_detections(found, data, groups, 0.4), weights, 0.4)
    for number, times in enumerate(weights):
        drawn = np.repeat(np.arange(10), times)
        images = Dataset("drawn", CLASSES, [data.records[index] for index in drawn])
        slow = compute_metrics([found[index] for index in drawn], images, 0.4)
        for name in METRICS:
            assert fast[name][number] == pytest.approx(getattr(slow, name), abs=1e-12), name


def test_images_of_a_group_are_drawn_together_and_as_many_groups_as_there_are():
    groups = np.array([7, 7, 2, 9])
    weights = draw_weights(groups, replicates=50)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, [0, 2, 3]].sum(1) == 3).all()


def test_the_error_of_a_mean_is_the_closed_form():
    # Of n independent images, a fraction p is right: the standard error of p is sqrt(p (1 - p) / n).
    right = np.arange(400) % 4 == 0
    weights = draw_weights(np.arange(400), replicates=4000)
    error = (weights @ right / weights.sum(1)).std()
    assert error == pytest.approx(np.sqrt(0.25 * 0.75 / 400), rel=0.04)


def test_of_two_networks_that_differ_on_few_images_the_paired_error_is_small():
    one = np.arange(300) % 2 == 0
    other = one.copy()
    other[:6] = True  # three images more
    difference = other.astype(float) - one
    error = paired_error(resample_mean(one, np.arange(300)), resample_mean(other, np.arange(300)))
    assert error == pytest.approx(difference.std() / np.sqrt(300), rel=0.25)
    assert error < 0.3 * np.std(resample_mean(one, np.arange(300)))
    with pytest.raises(ValueError, match="100 and 2 replicates"):
        paired_error(resample_mean(one, np.arange(300)), [0.1, 0.2])


def test_what_is_stored_gives_the_same_replicates(tmp_path):
    data, found = make_images(15)
    matched = match_detections(found, data, np.arange(15), 0.4)
    matched.save(tmp_path / "detections.npz")
    assert resample_matches(MatchedDetections.load(tmp_path / "detections.npz"), 0.4) == resample_matches(matched, 0.4)


def test_a_network_that_finds_nothing_has_replicates_of_zero():
    data, found = make_images(3)
    nothing = [{name: values[:0] for name, values in image.items()} for image in found]
    assert set(resample_matches(match_detections(nothing, data, np.arange(3), 0.5), 0.5)["map50"]) == {0.0}
