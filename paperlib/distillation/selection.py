"""Instance selection (ISD): the student learns an instance only where its teacher is nearer to the truth.

Built from the abstract of dynamic distillation (Zhang et al. 2022), which says that the student judges the instances
of its teacher by the magnitude of the detection loss; formulas ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paperlib.detectors.base import Instances
from paperlib.distillation.dynamic_options import SelectionOptions
from paperlib.distillation.losses import soft_binary_cross_entropy, softened_kl_divergence


@torch.no_grad()
def select_instances(student: Instances, teacher: Instances, options: SelectionOptions) -> tuple[Tensor, Tensor]:
    """Return how far each of N instances is learned: its classes `[N]` and its box `[N]`, in [0, 1]; constants.

    Both networks are judged by the detector's own loss against the truth: m_i = 1 if l_i(teacher) < l_i(student), and
    0 else, also at a tie.
    """
    if options.selection != "better":
        learned = teacher.correct if options.selection == "correct" else torch.ones_like(teacher.correct)
        return learned.to(student.losses), learned.to(student.losses)
    if not options.split_masks:
        both = _prefer_teacher(student.losses, teacher.losses, options)
        return both, both
    return (
        _prefer_teacher(student.class_losses, teacher.class_losses, options),
        _prefer_teacher(student.box_losses, teacher.box_losses, options),
    )


def instance_losses(student: Instances, teacher: Instances, kind: str, temperature: float = 1.0) -> Tensor:
    """Compute what each instance differs by in classes and objectness from the teacher's, `[N]`.

    Args:
        student: with gradient.
        teacher: the same instances; constants.
        kind: `sigmoid` or `softmax`, as of `HeadResponses`.
        temperature: tau.
    """
    loss = soft_binary_cross_entropy if kind == "sigmoid" else softened_kl_divergence
    total = torch.zeros_like(student.class_losses)
    for name, mine in student.logits.items():
        each = mine.weights * loss(mine.values, teacher.logits[name].values.detach().to(mine.values), temperature)
        total = total.index_add(0, mine.instance, each.flatten(1).sum(1) if each.ndim > 1 else each)
    return total


def _prefer_teacher(student: Tensor, teacher: Tensor, options: SelectionOptions) -> Tensor:
    lead = student - teacher.to(student) - options.margin
    return (lead > 0).to(lead) if options.softness is None else (lead / options.softness).sigmoid()
