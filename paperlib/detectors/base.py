"""The interface of a detector to training and distillation: label assignment, losses and head outputs.

Distillation (Section 3.2) compares a student's outputs with a teacher's without knowing either by name. A detector
takes part if it has `assign_targets`, `compute_losses` and `head_responses` beside `head_outputs` and `decode`.
Distillation of features and of single instances also needs

- `features(outputs)`: the levels that the heads read (`FeatureMap`), coarsest first for YOLO and CenterNet;
- `cell_scores(outputs)`: per level `[B, H, W]`, the highest score in each cell;
- `find_background(outputs, assignment, limit)`: indices of image and place of the up to `limit` highest scores of each
  image that are neither positive nor ignored;
- `background_responses(outputs, assignment, places)`: the `Instances` there, whose truth is background.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.detectors.blocks import as_batch

Targets = Sequence[dict[str, Tensor]]
"""Per image: `boxes` `[N, 4]` xyxy pixels and `labels` `[N]` in 1..C."""


@dataclass(frozen=True)
class Assignment:
    """The positives of a batch: P pairs of an output row and the ground-truth box assigned to it.

    Attributes:
        image: `[P]` index of the image in the batch.
        row: `[P]` index of the output row.
        boxes: `[P, 4]` its box, xyxy pixels.
        labels: `[P]` its class, in 0..C-1.
        ignored: `[B, R]` rows that are neither positive nor trained as background.
    """

    image: Tensor
    row: Tensor
    boxes: Tensor
    labels: Tensor
    ignored: Tensor

    @property
    def count(self) -> int:
        """Return the number of positives, at least 1: the divisor of every loss."""
        # A batch without objects still has the loss of its background, which must not be divided by zero.
        return max(1, len(self.row))


@dataclass(frozen=True)
class FeatureMap:
    """One level of the features that a detector's heads read.

    Attributes:
        values: `[B, C, H, W]`.
        stride: side of a cell in pixels.
        source: name of the convolution whose outputs these channels are; a pruning plan says which of them it kept.
        anchors: `[K, 2]` width and height in pixels of the level's anchors; None for a detector without anchors.
    """

    values: Tensor
    stride: int
    source: str
    anchors: Tensor | None = None


class HeadTensors(list[Tensor]):
    """The head tensors of a one-stage detector: a list, which also carries the features that the heads read.

    Attributes:
        features: per level, `[B, C, H, W]`; empty where only the head tensors matter, as in a trace of `torch.fx`.
    """

    def __init__(self, tensors: Iterable[Tensor], features: Iterable[Tensor] = ()) -> None:
        super().__init__(tensors)
        self.features = list(features)


@dataclass(frozen=True)
class InstanceLogits:
    """Logits of instances under one classification loss.

    Attributes:
        values: `[n]` or `[n, C]`, as the loss takes them.
        instance: `[n]` index of the instance.
        weights: of the shape of a cross entropy of `values`: its weight in the detector's own loss times the number
            that this loss is divided by.
    """

    values: Tensor
    instance: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Instances:
    """What a detector answers at N places, and how far from the truth that is by the detector's own loss.

    Attributes:
        logits: per classification loss, the logits of those instances that it judges.
        class_losses: `[N]` the losses of classes and objectness.
        box_losses: `[N]` the loss of the box; zero for background.
        correct: `[N]` bool, whether the class is that of the truth.
    """

    logits: dict[str, InstanceLogits]
    class_losses: Tensor
    box_losses: Tensor
    correct: Tensor

    @property
    def losses(self) -> Tensor:
        """Return the sum of an instance's losses, `[N]`."""
        return self.class_losses + self.box_losses


@dataclass(frozen=True)
class HeadResponses:
    """A detector's outputs for one batch, in the form that Eqs. 10-12 compare.

    For each classification loss `name`, `sum(weights[name] * cross_entropy(logits[name], hard_targets[name]))` is the
    detector's own hard loss, so a soft loss with the same weights has the same scale.

    Attributes:
        kind: `sigmoid` (binary cross entropy per logit) or `softmax` (over the last axis).
        logits: per loss, the student's or teacher's logits.
        hard_targets: per loss, the ground truth, of the logits' shape.
        weights: per loss, weights of the logits' shape (`softmax`: without the last axis).
        regression: `[P, 4]` outputs of the positives in the detector's own regression space.
        regression_target: `[P, 4]` the ground truth there.
        regression_weight: weight of one positive's squared error beside the detector's own box loss.
        boxes: `[P, 4]` predicted boxes of the positives, xyxy pixels, with gradient.
        true_boxes: `[P, 4]` the boxes that are assigned to them.
        instances: the positives one by one.
    """

    kind: Literal["sigmoid", "softmax"]
    logits: dict[str, Tensor]
    hard_targets: dict[str, Tensor]
    weights: dict[str, Tensor]
    regression: Tensor
    regression_target: Tensor
    regression_weight: float
    boxes: Tensor
    true_boxes: Tensor
    instances: Instances

    @property
    def instance_losses(self) -> Tensor:
        """Return the detector's own loss of each positive, `[P]`."""
        return self.instances.losses

    def hard_losses(self) -> dict[str, Tensor]:
        """Return the weighted cross entropy with the ground truth, by name."""
        # F.cross_entropy reads targets of floating point as class probabilities, so one-hot and soft targets both fit.
        entropy = F.binary_cross_entropy_with_logits if self.kind == "sigmoid" else F.cross_entropy
        return {
            name: (self.weights[name] * entropy(logits, self.hard_targets[name], reduction="none")).sum()
            for name, logits in self.logits.items()
        }


class Detector(nn.Module):
    """A detector with torchvision's calling convention.

    In training `detector(images, targets)` returns a dict of losses, in evaluation `detector(images)` returns a list
    of `{boxes, labels, scores}`. A subclass defines `head_outputs`, `assign_targets`, `compute_losses`,
    `head_responses`, `features`, `cell_scores`, `find_background`, `background_responses` and `_detections`.

    Attributes:
        image_multiple: the sides of a batch are padded to multiples of this many pixels.
        num_classes: C, without background.
        build_arguments: the arguments of `build_detector` that made this detector.
        traced_method: name of the method that shows `torch.fx` how channels are connected.
    """

    image_multiple = 32
    num_classes: int
    build_arguments: dict[str, Any]
    traced_method: str
    head_outputs: Callable[..., Any]
    assign_targets: Callable[..., Any]
    compute_losses: Callable[..., dict[str, Tensor]]
    head_responses: Callable[..., HeadResponses]
    features: Callable[..., list[FeatureMap]]
    cell_scores: Callable[..., list[Tensor]]
    find_background: Callable[..., tuple[Tensor, Tensor]]
    background_responses: Callable[..., Instances]
    _detections: Callable[..., list[dict[str, Tensor]]]

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return losses in training mode, detections in evaluation mode.

        Args:
            images: list of float `[3, H, W]` in [0, 1], or a batch.
            targets: in training, per image `boxes` `[N, 4]` xyxy pixels and `labels` `[N]` in 1..C.

        Raises:
            ValueError: training without targets, or with a wrong number of them; images of a wrong shape or dtype.
        """
        batch, sizes = as_batch(images, self.image_multiple)
        outputs = self._outputs(batch, sizes)
        if self.training:
            if targets is None:
                raise ValueError("a detector in training mode needs targets")
            if isinstance(targets, Tensor):
                raise ValueError("a detector needs boxes to learn from; these targets are classes of scenes")
            if len(targets) != len(sizes):
                raise ValueError(f"{len(targets)} targets for {len(sizes)} images")
            return self.compute_losses(outputs, self.assign_targets(outputs, targets))
        return self._detections(outputs, (batch.shape[2], batch.shape[3]), sizes)

    def _outputs(self, batch: Tensor, sizes: list[tuple[int, int]]) -> Any:
        """Return the head outputs of a batch whose images have these `(height, width)`."""
        return self.head_outputs(batch)
