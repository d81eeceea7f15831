"""Distillation of networks that classify whole images: by a teacher, and by the network's own deepest layers.

Both are rivals of partner learning (BPL). Plain distillation is Eq. 9 of Section 3.2 (Hinton et al. 2015).
Self-distillation (Zhang et al. 2019, *Be Your Own Teacher*) trains a classifier after each stage of the network, with
the network's own answers and last features as a teacher; afterwards these classifiers are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        logits = compute_logits(student, images)
        with torch.no_grad():
            target = compute_logits(self.teacher, images)
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
        network: the classifier that will be trained; it is only asked for the shapes of its features.
        stages: names of its stages, the deepest last.
        classes: number of classes C.
        soft_weight, temperature, hint_weight: as above; the defaults are the paper's 0.3, its code's 3, and 0.03.
        seed: determines the weights of the added classifiers.

    Raises:
        ValueError: fewer than two stages, one that the network lacks, or a weight out of its range.
    """

    def __init__(
        self, network: nn.Module, stages: Sequence[str], classes: int, *, soft_weight: float = 0.3,
        temperature: float = 3.0, hint_weight: float = 0.03, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_options(soft_weight, temperature)
        if len(stages) < 2:
            raise ValueError("self-distillation needs two stages at least: the last one teaches the others")
        if missing := [name for name in stages if name not in dict(network.named_modules())]:
            raise ValueError(f"{type(network).__name__} has no stage {', '.join(missing)}")
        self.stages = tuple(stages)
        self.soft_weight, self.temperature, self.hint_weight = soft_weight, temperature, hint_weight
        *early, deepest = _count_channels(network, self.stages)
        with seeded_rng(seed):
            self.heads = nn.ModuleList([_Head(channels, deepest, classes) for channels in early])

    def forward(self, student: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute the losses of one batch of images `[B, 3, H, W]` with labels int64 `[B]` in 0..C-1."""
        with _record_outputs(student, self.stages) as features:
            logits = compute_logits(student, images)
        *early, deepest = (features[name] for name in self.stages)
        losses = {"classification": F.cross_entropy(logits, labels), "early": logits.new_zeros(())}
        losses["hint"] = logits.new_zeros(())
        for head, stage in zip(self.heads, early, strict=True):
            hint, own_logits = head(stage, deepest.shape[2:])
            losses["early"] = losses["early"] + knowledge_distillation_loss(
                own_logits, logits.detach(), labels, self.soft_weight, self.temperature
            )
            losses["hint"] = losses["hint"] + self.hint_weight * F.mse_loss(hint, deepest.detach())
        return losses

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {
            "stages": list(self.stages),
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
        adapted = self.norm(self.adapter(F.adaptive_avg_pool2d(features, list(size)))).relu()
        return adapted, self.linear(adapted.mean((2, 3)))


def compute_logits(classifier: nn.Module, images: Tensor) -> Tensor:
    """Return the logits [B, C] of a classifier in either mode; in training mode its call returns losses instead."""
    return getattr(classifier, getattr(classifier, "traced_method", "forward"))(images)


@contextmanager
def _record_outputs(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of some submodules by name while the network is called."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, _inputs, out, name=name: outputs.update({name: out})
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _count_channels(network: nn.Module, stages: Sequence[str]) -> list[int]:
    """Return the output channels of each stage, found by one pass in evaluation mode."""
    training = network.training
    weight = next(network.parameters())
    with _record_outputs(network.eval(), stages) as features:
        compute_logits(network, torch.zeros(1, 3, 64, 64, dtype=weight.dtype, device=weight.device))
    network.train(training)
    return [features[name].shape[1] for name in stages]


def _check_options(soft_weight: float, temperature: float) -> None:
    if not 0 <= soft_weight <= 1:
        raise ValueError(f"soft_weight {soft_weight} is not in [0, 1]")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not positive")
