"""The losses of distillation as functions of logits and regressions (Section 3.2, Eqs. 8-12)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.detectors.base import HeadResponses


def soft_losses(student: HeadResponses, teacher: HeadResponses, temperature: float) -> dict[str, Tensor]:
    """Compute L_soft of Eq. 10 per classification loss, on the scale of the student's hard loss of the same name."""
    loss = soft_binary_cross_entropy if student.kind == "sigmoid" else softened_kl_divergence
    return {
        name: (student.weights[name] * loss(student.logits[name], teacher.logits[name], temperature)).sum()
        for name in student.logits
    }


def soft_binary_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the cross entropy of each sigmoid with the teacher's as its label, times tau^2; shape of the logits."""
    label = (teacher / temperature).sigmoid()
    loss = F.binary_cross_entropy_with_logits(student / temperature, label, reduction="none")
    return temperature**2 * loss


def softened_kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute tau^2 KL(softmax(a_t/tau) || softmax(a_s/tau)), Eq. 8, over the last axis: `[..., C]` to `[...]`.

    The paper prints the arguments in the opposite order; the teacher is the distribution to be matched.
    """
    log_student = F.log_softmax(student / temperature, -1)
    log_teacher = F.log_softmax(teacher / temperature, -1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


def knowledge_distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, soft_weight: float, temperature: float
) -> Tensor:
    """Compute Eq. 9 for a classifier: (1 - lambda_k) CE(softmax a_s, y) + lambda_k L_kd, averaged over the batch.

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
    """Compute Eq. 12, `[P, 4]` each to `[P]`: the student's squared error where it exceeds the teacher's, else 0.

    The teacher only bounds the student; it is never a target.
    """
    student_error = (student - target).square().sum(-1)
    teacher_error = (teacher - target).square().sum(-1)
    return torch.where(student_error > teacher_error, student_error, torch.zeros_like(student_error))
