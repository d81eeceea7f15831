"""Distillation of networks that classify whole images: by a teacher, and by the network's own deepest layers.

Both are rivals of partner learning (BPL). Plain distillation is Eq. 9 of Section 3.2 (Hinton et al. 2015).
Self-distillation (Zhang et al. 2019, *Be Your Own Teacher*) trains a classifier after each stage of the network, with
the network's own answers and last features as a teacher; afterwards these classifiers are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.distillation.losses import knowledge_distillation_loss
from paperlib.seeding import seeded_rng


@dataclass
class SceneDistillation:
    """Objective of a classifier that learns from labels and from a teacher (Eq. 9).

    Args:
        teacher: a classifier of the same classes, set to evaluation mode and frozen.
        soft_weight: lambda_k of Eq. 9, in [0, 1].
        temperature: tau.

    Raises:
        ValueError: a weight or temperature is out of its range.
    """

    teacher: nn.Module
    soft_weight: float = 0.5
    temperature: float = 4.0

    def __post_init__(self) -> None:
        _check_options(self.soft_weight, self.temperature)
        self.teacher.eval().requires_grad_(False)

    def __call__(self, student: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute the loss of one batch of images `[B, 3, H, W]` with labels int64 `[B]` in 0..C-1.

        Raises:
            ValueError: teacher and student differ in the number of classes.
        """
        learner: Any = student  # a classifier, whose methods `nn.Module` does not declare
        teacher: Any = self.teacher
        logits = learner.logits(images)
        with torch.no_grad():
            target = teacher.logits(images)
        if logits.shape != target.shape:
            raise ValueError(f"the student has {logits.shape[1]} classes and its teacher {target.shape[1]}")
        loss = knowledge_distillation_loss(logits, target, labels, self.soft_weight, self.temperature)
        return {"distillation": loss}

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {"soft_weight": self.soft_weight, "temperature": self.temperature}


class SelfDistillation(nn.Module):
    """Objective of a classifier that teaches its own earlier stages.

    With q_i the answers of the classifier after stage i, F_i its features, and q, F those of the network itself as
    constants, the loss is CE(q, y) + sum_i [(1 - soft_weight) CE(q_i, y) + soft_weight tau^2 KL(q || q_i) +
    hint_weight mean (F_i - F)^2]. F_i is the stage's output, pooled to the size of F and brought to its number of
    channels by a 1 x 1 convolution with batch norm. The heads are ours; those of the paper have more layers.

    Args:
        classifier: the network that will be trained; here it is only asked for the shapes of its features.
        soft_weight, temperature, hint_weight: as above; the defaults are the paper's 0.3, its code's 3, and 0.03.
        seed: determines the weights of the added classifiers.

    Raises:
        ValueError: the network has a single stage, or a weight is out of its range.
    """

    def __init__(
        self, classifier: nn.Module, *, soft_weight: float = 0.3, temperature: float = 3.0, hint_weight: float = 0.03,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_options(soft_weight, temperature)
        self.soft_weight, self.temperature, self.hint_weight = soft_weight, temperature, hint_weight
        *early, deepest = _count_channels(classifier)
        if not early:
            raise ValueError("self-distillation needs two stages at least: the last one teaches the others")
        classes: Any = classifier.num_classes
        with seeded_rng(seed):
            self.heads = nn.ModuleList([_Head(channels, deepest, classes) for channels in early])

    def forward(self, student: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute the losses of one batch of images `[B, 3, H, W]` with labels int64 `[B]` in 0..C-1."""
        learner: Any = student  # a classifier, whose methods `nn.Module` does not declare
        *early, deepest = learner.stages(images)
        logits = learner.fc(deepest.mean((2, 3)))
        soft, hints = [], []
        for head, stage in zip(self.heads, early, strict=True):
            hint, own_logits = head(stage, deepest.shape[2:])
            teacher = logits.detach()
            soft.append(knowledge_distillation_loss(own_logits, teacher, labels, self.soft_weight, self.temperature))
            hints.append(self.hint_weight * F.mse_loss(hint, deepest.detach()))
        own = F.cross_entropy(logits, labels)
        return {"classes": own, "early": torch.stack(soft).sum(), "hint": torch.stack(hints).sum()}

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {
            "soft_weight": self.soft_weight,
            "temperature": self.temperature,
            "hint_weight": self.hint_weight,
        }


class _Head(nn.Module):
    """The classifier after one stage."""

    def __init__(self, channels: int, deepest: int, classes: int) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(channels, deepest, 1, bias=False)
        # It is used in training only, with the statistics of the batch.
        self.norm = nn.BatchNorm2d(deepest, track_running_stats=False)
        self.linear = nn.Linear(deepest, classes)

    def forward(self, features: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Map [B, channels, h, w] to features [B, deepest, H, W] and logits [B, C]."""
        adapted = self.norm(self.adapter(F.adaptive_avg_pool2d(features, (size[0], size[1])))).relu()
        return adapted, self.linear(adapted.mean((2, 3)))


@torch.no_grad()
def _count_channels(classifier: Any) -> list[int]:
    """Return the channels of each stage, found by one pass in evaluation mode."""
    training, weight = classifier.training, next(classifier.parameters())
    stages = classifier.eval().stages(torch.zeros(1, 3, 64, 64, dtype=weight.dtype, device=weight.device))
    classifier.train(training)
    return [features.shape[1] for features in stages]


def _check_options(soft_weight: float, temperature: float) -> None:
    if not 0 <= soft_weight <= 1:
        raise ValueError(f"soft_weight {soft_weight} is not in [0, 1]")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not positive")
