"""Accuracy of scene classification: top-1, top-5, recall and precision of each class, and the confusion matrix."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from paperlib.data.scenes import SceneDataset
from paperlib.evaluation.bootstrap import resample_mean
from paperlib.evaluation.forward import evaluation_mode, run_on_squares
from paperlib.progress import group

TOP = 5


@dataclass(frozen=True)
class SceneMetrics:
    """How well a classifier does on a scene data set; all but the last four in [0, 1].

    Attributes:
        top1: fraction of the images whose class has the highest logit.
        top5: fraction of the images whose class is among the five highest logits (all classes, if there are fewer).
        recall: of each class that occurs, the fraction of its images that are predicted as that class.
        precision: of each class that is predicted, the fraction of these predictions that are right.
        confusion: numbers of images, `confusion[true][predicted]`.
        labels: the class of each image, 0..C-1.
        predictions: the predicted class of each image, by which two classifiers can be compared image by image.
        resampled: `top1` on images drawn with replacement (see `paperlib.evaluation.bootstrap`); from `evaluate_scenes`
            only.
    """

    top1: float
    top5: float
    recall: dict[str, float]
    precision: dict[str, float]
    confusion: list[list[int]]
    labels: list[int]
    predictions: list[int]
    resampled: dict[str, list[float]] = field(default_factory=dict)

    tracked: ClassVar[tuple[str, ...]] = ("top1", "top5")
    """What the history of a training holds of each validation; the first decides which epoch is the best."""

    @property
    def score(self) -> float:
        """Return the metric by which classifiers are compared: `top1`."""
        return self.top1

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data for JSON."""
        return asdict(self)


def evaluate_scenes(
    network: nn.Module, dataset: SceneDataset, *, image_size: int | None = None, batch_size: int = 16
) -> SceneMetrics:
    """Evaluate a classifier on a scene data set.

    Args:
        network: in any mode; it is used in evaluation mode and its modes are restored. It returns logits `[B, C]`.
        dataset: images and their classes.
        image_size: side of the squares to which images are cut, in pixels; by default the longest of the images'
            shorter sides, rounded up to a multiple of 32.
        batch_size: number of images in a batch.

    Raises:
        ValueError: there is no image, or the network's outputs are not C finite logits per image.
    """
    if not len(dataset):
        raise ValueError(f"{dataset.name}: no images, nothing to evaluate")
    logits = classify(network, dataset, image_size=image_size or dataset.usual_side(), batch_size=batch_size)
    metrics = compute_scene_metrics(logits, dataset)
    right = np.equal(metrics.labels, metrics.predictions)
    return replace(metrics, resampled={"top1": resample_mean(right, np.arange(len(right)))})


def classify(network: nn.Module, dataset: SceneDataset, *, image_size: int, batch_size: int = 16) -> Tensor:
    """Return the logits of every image, float32 `[N, C]`, on the CPU."""
    images, _ = dataset.squares(image_size)
    with evaluation_mode(network):
        batches = images.split(batch_size)
        logits = group.map_items(lambda batch: run_on_squares(network, batch).float().cpu(), batches)
    return torch.cat(logits)


def compute_scene_metrics(logits: Tensor, dataset: SceneDataset) -> SceneMetrics:
    """Compute the metrics of given logits `[N, C]`; of equal logits the class with the smaller number counts as higher.

    Raises:
        ValueError: the logits have another shape, or are not finite.
    """
    expected = (len(dataset), len(dataset.classes))
    if logits.shape != expected:
        raise ValueError(f"{dataset.name}: {list(logits.shape)} logits, {list(expected)} are needed (images, classes)")
    if not logits.isfinite().all():
        raise ValueError(f"{dataset.name}: the classifier's logits are not finite")
    labels = torch.tensor([record.label for record in dataset.records])
    ranked = logits.argsort(dim=1, descending=True, stable=True)
    predictions = ranked[:, 0]
    confusion = torch.zeros(expected[1], expected[1], dtype=torch.int64)
    confusion.index_put_((labels, predictions), torch.tensor(1), accumulate=True)
    return SceneMetrics(
        top1=float((predictions == labels).double().mean()),
        top5=float((ranked[:, :TOP] == labels[:, None]).any(1).double().mean()),
        recall=_shares(confusion, dataset.classes),
        precision=_shares(confusion.T, dataset.classes),
        confusion=confusion.tolist(),
        labels=labels.tolist(),
        predictions=predictions.tolist(),
    )


def paired_difference(first: SceneMetrics, second: SceneMetrics) -> tuple[float, float]:
    """Return by how much the second top-1 accuracy is higher, and the standard error of that difference.

    Both are computed from the differences image by image (-1, 0 or 1), so images on which both classifiers are right
    or wrong add nothing to the error.

    Raises:
        ValueError: they were not evaluated on the same images.
    """
    if first.labels != second.labels:
        raise ValueError("the two classifiers were evaluated on different images; evaluate both on the same data set")
    labels = np.array(first.labels)
    difference = (np.array(second.predictions) == labels).astype(float) - (np.array(first.predictions) == labels)
    return float(difference.mean()), float(difference.std() / np.sqrt(len(difference)))


def _shares(confusion: Tensor, classes: tuple[str, ...]) -> dict[str, float]:
    """Return the fraction on the diagonal of each row that is not empty."""
    right, total = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    return {name: right[k] / total[k] for k, name in enumerate(classes) if total[k]}
