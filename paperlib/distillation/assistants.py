"""Section 3.2: distillation, directly and through assistants, as an objective of the student (Eqs. 5-12).

`Distillation` wraps a detector's own loss; with its weights at zero it is equal to the detector's own loss. A chain
teacher -> assistants -> student (TAKD) applies this objective once for each pair of neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.detectors.base import HeadResponses, Targets
from paperlib.distillation.losses import bounded_regression_loss, soft_losses


@dataclass
class Distillation:
    """Objective of a student that learns from the ground truth and from a teacher.

    Args:
        teacher: a detector, set to evaluation mode and frozen; it runs exactly once per batch.
        soft_weight: lambda_c of Eq. 10 (lambda_k of Eq. 9), in [0, 1].
        bound_weight: alpha of Eq. 11; the paper's 0.5.
        temperature: tau of Eqs. 6-8.

    Raises:
        ValueError: a weight or temperature is out of its range.
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
        """Compute one batch's losses: the student's own, mixed with the soft ones (Eq. 10), plus the bound (Eq. 11).

        Args:
            student: a detector in training mode.
            images: `[B, 3, H, W]` in [0, 1].
            targets: per image `boxes` `[N, 4]` xyxy pixels and `labels` `[N]` in 1..C.

        Raises:
            ValueError: teacher and student are incompatible: they differ in classes or anchors.
        """
        # Both follow the protocol of `paperlib.detectors.base`, which `nn.Module` does not declare.
        learner: Any = student
        teacher: Any = self.teacher
        outputs = learner.head_outputs(images)
        assignment = learner.assign_targets(outputs, targets)
        losses = learner.compute_losses(outputs, assignment)
        with torch.no_grad():
            # The teacher is read at the outputs that the student's assignment selects.
            teacher_output = teacher.head_responses(teacher.head_outputs(images), assignment)
        student_output = learner.head_responses(outputs, assignment)
        _check_compatible(student_output, teacher_output)
        for name, soft in soft_losses(student_output, teacher_output, self.temperature).items():
            losses[name] = (1 - self.soft_weight) * losses[name] + self.soft_weight * soft
        bound = bounded_regression_loss(
            student_output.regression, teacher_output.regression, student_output.regression_target
        )
        losses["bound"] = self.bound_weight * student_output.regression_weight * bound.sum()
        return losses

    def describe(self) -> dict[str, Any]:
        """Return the settings, for a result's provenance."""
        return {
            "soft_weight": self.soft_weight,
            "bound_weight": self.bound_weight,
            "temperature": self.temperature,
        }


def _check_compatible(student: HeadResponses, teacher: HeadResponses) -> None:
    student_shapes = {name: logits.shape for name, logits in student.logits.items()}
    teacher_shapes = {name: logits.shape for name, logits in teacher.logits.items()}
    target = teacher.regression_target.to(student.regression_target)
    # Equal shapes are not enough: with other anchors the same row would mean another box.
    same_boxes = student.kind == teacher.kind and student_shapes == teacher_shapes
    if not same_boxes or not torch.allclose(student.regression_target, target):
        raise ValueError("student and teacher are incompatible: they need the same classes and the same anchors")
