"""Section 3.2, Eqs. 5-12: the teacher's answers as an objective for the student.

`Distillation` wraps a detector's own loss; with its weights at zero it *is* the detector's own loss. A chain
teacher -> assistants -> student (TAKD) is this objective applied link by link.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.detectors.base import HeadResponses, Targets


@dataclass
class Distillation:
    """Objective of a student that learns from the ground truth and from a teacher.

    Args:
        teacher: put into evaluation mode and frozen; asked exactly once per batch.
        soft_weight: lambda_c of Eq. 10 (lambda_k of Eq. 9), in [0, 1].
        bound_weight: alpha of Eq. 11; the paper's 0.5.
        temperature: tau of Eqs. 6-8.

    Raises:
        ValueError: a weight or temperature out of its range.
    """

    teacher: nn.Module
    soft_weight: float = 0.5
    bound_weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.soft_weight <= 1:
            raise ValueError(f"soft_weight {self.soft_weight} is not in [0, 1]")
        if self.bound_weight < 0:
            raise ValueError(f"bound_weight {self.bound_weight} is negative")
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} is not positive")
        self.teacher.eval().requires_grad_(False)

    def __call__(self, student: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Losses of one batch: the student's own, mixed with the soft ones (Eq. 10), plus the bound (Eq. 11).

        Raises:
            ValueError: the teacher's answers do not compare with the student's: other classes or other anchors.
        """
        outputs = student.head_outputs(images)
        assignment = student.assign_targets(outputs, targets)
        losses = student.compute_losses(outputs, assignment)
        with torch.no_grad():
            teacher = self.teacher.head_outputs(images)
            expert = self.teacher.head_responses(teacher, assignment)
        pupil = student.head_responses(outputs, assignment)
        _check_comparable(pupil, expert)
        soft = soft_losses(pupil, expert, self.temperature)
        for name, loss in soft.items():
            losses[name] = (1 - self.soft_weight) * losses[name] + self.soft_weight * loss
        bound = bounded_regression_loss(pupil.regression, expert.regression, pupil.regression_target)
        losses["bound"] = self.bound_weight * pupil.regression_weight * bound.sum()
        return losses

    def describe(self) -> dict[str, Any]:
        """The settings, for a result's provenance."""
        return {
            "soft_weight": self.soft_weight,
            "bound_weight": self.bound_weight,
            "temperature": self.temperature,
        }


def _check_comparable(student: HeadResponses, teacher: HeadResponses) -> None:
    """Equal shapes are not enough: with other anchors the same row would mean another box."""
    shapes = [{name: tuple(logits.shape) for name, logits in r.logits.items()} for r in (student, teacher)]
    target = teacher.regression_target.to(student.regression_target)
    if student.kind != teacher.kind or shapes[0] != shapes[1] or not torch.allclose(student.regression_target, target):
        raise ValueError("student and teacher do not compare: they need the same classes and the same anchors")


def soft_losses(student: HeadResponses, teacher: HeadResponses, temperature: float) -> dict[str, Tensor]:
    """L_soft of Eq. 10 per classification loss, on the scale of the student's hard loss of the same name."""
    one = soft_binary_cross_entropy if student.kind == "sigmoid" else softened_kl_divergence
    return {
        name: (student.weights[name] * one(student.logits[name], teacher.logits[name], temperature)).sum()
        for name in student.logits
    }


def soft_binary_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross entropy of each sigmoid with the teacher's as its label, times tau^2; same shape as the logits."""
    label = (teacher / temperature).sigmoid()
    loss = F.binary_cross_entropy_with_logits(student / temperature, label, reduction="none")
    return temperature**2 * loss


def softened_kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """tau^2 KL(softmax(a_t/tau) || softmax(a_s/tau)), Eq. 8, over the last axis: `[..., C]` to `[...]`.

    The paper prints the arguments the other way round; the teacher is the distribution to be matched.
    """
    log_student = F.log_softmax(student / temperature, -1)
    log_teacher = F.log_softmax(teacher / temperature, -1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


def knowledge_distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, soft_weight: float, temperature: float
) -> Tensor:
    """Eq. 9 for a plain classifier: (1 - lambda_k) CE(softmax a_s, y) + lambda_k L_kd, averaged over the batch.

    Args:
        student: logits a_s `[B, C]`.
        teacher: logits a_t `[B, C]`.
        labels: classes `[B]` in 0..C-1.
        soft_weight: lambda_k.
        temperature: tau.
    """
    soft = softened_kl_divergence(student, teacher, temperature).mean()
    return (1 - soft_weight) * F.cross_entropy(student, labels) + soft_weight * soft


def bounded_regression_loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Eq. 12, `[P, 4]` each to `[P]`: the student's squared error where it exceeds the teacher's, else 0.

    The teacher only bounds the student; it is never a target.
    """
    own = (student - target).square().sum(-1)
    limit = (teacher - target).square().sum(-1)
    return torch.where(own > limit, own, torch.zeros_like(own))
