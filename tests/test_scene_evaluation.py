"""Metrics of scene classification: equal to what can be counted by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from paperlib.data import Dataset, SceneDataset, SceneRecord
from paperlib.evaluation.evaluate import evaluate
from paperlib.evaluation.scenes import compute_scene_metrics, paired_difference

CLASSES = ("a", "b", "c", "d", "e", "f", "g")


def scenes(labels, classes=CLASSES, side=8):
    """Images whose first pixel's red is their number."""
    images = np.zeros((len(labels), side, side, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return SceneDataset(
        "made", classes, [SceneRecord(f"{i}", *pair) for i, pair in enumerate(zip(images, labels, strict=True))]
    )


def rank(*order):
    """Logits whose order, from the highest, is that of the given classes; the others follow."""
    rest = [k for k in range(len(CLASSES)) if k not in order]
    logits = torch.empty(len(CLASSES))
    logits[[*order, *rest]] = torch.arange(len(CLASSES), 0, -1).float()
    return logits


class Lookup(nn.Module):
    """A classifier that knows the logits of each image by the image's number."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.dropout = nn.Dropout(0.9)

    def forward(self, images):
        return self.dropout(self.logits[(images[:, 0, 0, 0] * 255).round().long()])


def test_metrics_are_those_counted_by_hand():
    data = scenes([0, 0, 0, 1, 2, 2])
    logits = torch.stack([rank(0), rank(1), rank(1, 2, 3, 4, 5), rank(1), rank(2), rank(0, 1, 3, 4, 2)])
    network = Lookup(logits).train()
    metrics = evaluate(network, data, batch_size=4)
    assert network.training and network.dropout.training
    assert metrics.top1 == metrics.score == 3 / 6
    # Only the third image's class, 0, is not among the five highest.
    assert metrics.top5 == 5 / 6
    assert metrics.recall == {"a": 1 / 3, "b": 1.0, "c": 1 / 2}
    assert metrics.precision == {"a": 1 / 2, "b": 1 / 3, "c": 1.0}
    assert np.array(metrics.confusion)[:3, :3].tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 1]]
    assert np.sum(metrics.confusion) == 6 and metrics.predictions == [0, 1, 1, 1, 2, 0]
    assert set(metrics.to_dict()) >= {"top1", "top5", "recall", "precision", "confusion", "labels", "predictions"}


def test_top5_of_four_classes_is_one_and_equal_logits_count_for_the_first_class():
    metrics = compute_scene_metrics(torch.zeros(4, 4), scenes([0, 1, 2, 3], "wxyz"))
    assert metrics.top5 == 1.0 and metrics.top1 == 0.25 and metrics.predictions == [0, 0, 0, 0]


def test_the_paired_difference_is_that_of_the_images_on_which_two_classifiers_differ():
    data = scenes([0, 0, 0, 1])
    first = compute_scene_metrics(torch.stack([rank(0), rank(1), rank(1), rank(1)]), data)
    second = compute_scene_metrics(torch.stack([rank(0), rank(0), rank(0), rank(2)]), data)
    difference, error = paired_difference(first, second)
    # Image by image 0, 1, 1, -1.
    assert difference == second.top1 - first.top1 == 0.25
    assert error == pytest.approx(np.std([0, 1, 1, -1]) / 2)
    assert paired_difference(first, first) == (0.0, 0.0)
    other = compute_scene_metrics(torch.stack([rank(0)] * 3), scenes([0, 0, 0]))
    with pytest.raises(ValueError, match="different images"):
        paired_difference(first, other)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(2, 6), r"made: \[2, 6\] logits, \[2, 7\] are needed"),
        (torch.full((2, 7), float("nan")), "made: the classifier's logits are not finite"),
    ],
)
def test_logits_that_cannot_be_judged_are_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Lookup(logits), scenes([0, 1]))


def test_options_of_detection_and_empty_data_are_refused():
    network = Lookup(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="made: scenes have no boxes: confidence"):
        evaluate(network, scenes([0, 1]), confidence=0.5)
    with pytest.raises(ValueError, match="made: no images"):
        evaluate(network, scenes([]))
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(network, Dataset("boxes", CLASSES, []))
