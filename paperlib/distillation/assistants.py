"""Section 3.2: distillation, directly and through assistants, as an objective of the student (Eqs. 5-12).

`Distillation` wraps a detector's own loss; with its weights at zero it is equal to the detector's own loss. A chain
teacher -> assistants -> student (TAKD) applies this objective once for each pair of neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from paperlib.detectors.base import Targets
from paperlib.distillation.answers import ask_both
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
            ValueError: teacher and student are incompatible: they differ in classes, strides or anchors.
        """
        answers = ask_both(student, self.teacher, images, targets)
        losses, (student_output, teacher_output) = answers.losses, answers.responses
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
