"""What student and teacher answer to one batch: the same questions for every objective that has a teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paperlib.detectors.base import FeatureMap, HeadResponses, Instances, Targets
from paperlib.distillation.adapters import ChannelAdapter, ChannelCut, pair_levels, select_teacher_channels
from paperlib.distillation.imitation import FeatureLevel

_NEEDED = ("head_outputs", "assign_targets", "compute_losses", "head_responses", "features")


class Cut(Protocol):
    """What a pruning kept (see `paperlib.pruning.PruningPlan`)."""

    @property
    def kept(self) -> Mapping[str, Sequence[int]]:
        """Return the kept channels per convolution."""
        ...

    @property
    def carriers(self) -> Mapping[str, Sequence[int]]:
        """Return the carriers per convolution."""
        ...


@dataclass(frozen=True)
class Answers:
    """The outputs of student and teacher for one batch; the teacher is asked once, without gradients.

    Attributes:
        student, teacher: the detectors.
        outputs, teacher_outputs: their head outputs.
        assignment: the student's, by which both are read.
        losses: the student's own.
    """

    student: Any
    teacher: Any
    outputs: Any
    teacher_outputs: Any
    assignment: Any
    losses: dict[str, Tensor]

    @cached_property
    def responses(self) -> tuple[HeadResponses, HeadResponses]:
        """Return the responses of student and teacher at the student's assignment.

        Raises:
            ValueError: teacher and student are incompatible: they differ in classes, strides or anchors.
        """
        _check_rows(self.student.features(self.outputs), self.teacher.features(self.teacher_outputs))
        with torch.no_grad():
            teacher = self.teacher.head_responses(self.teacher_outputs, self.assignment)
        student = self.student.head_responses(self.outputs, self.assignment)
        _check_compatible(student, teacher)
        return student, teacher

    def background(self, limit: int) -> tuple[Instances, Instances]:
        """Return both networks' instances at the teacher's up to `limit` highest scores per image without an object.

        Call it after `responses`, which tells whether the two can be compared.
        """
        with torch.no_grad():
            places = self.teacher.find_background(self.teacher_outputs, self.assignment, limit)
            teacher = self.teacher.background_responses(self.teacher_outputs, self.assignment, places)
        return self.student.background_responses(self.outputs, self.assignment, places), teacher

    def levels(
        self, plans: Sequence[Cut] = (), adapter: ChannelAdapter | None = None, *, scored: bool = False
    ) -> list[FeatureLevel]:
        """Return the levels of equal strides, with the features of both in the same channels.

        Args:
            plans: all prunings from the teacher to the student, in order; its kept channels are compared.
            adapter: maps the student's channels to the teacher's instead, one layer per pair of levels.
            scored: whether each level needs the teacher's highest score in each cell.

        Raises:
            ValueError: no stride is common to both, or their channels differ and neither plans nor adapter explain it.
        """
        own, its = self.student.features(self.outputs), self.teacher.features(self.teacher_outputs)
        pairs = pair_levels([each.stride for each in own], [each.stride for each in its])
        scores = self.teacher.cell_scores(self.teacher_outputs) if scored else [None] * len(its)
        values = [own[index].values for index, _ in pairs]
        adapted = adapter(values) if adapter is not None else values
        levels = []
        for mine, (_, index) in zip(adapted, pairs, strict=True):
            teacher = its[index]
            both = (mine, teacher.values) if adapter is not None else _keep_channels(mine, teacher, plans)
            levels.append(FeatureLevel(*both, teacher.stride, teacher.anchors, scores[index]))
        return levels


def ask_both(student: nn.Module, teacher: nn.Module, images: Tensor, targets: Targets) -> Answers:
    """Ask student and teacher for one batch, the teacher once.

    Args:
        student: a detector in training mode.
        teacher: a detector in evaluation mode; it may have another precision.
        images: `[B, 3, H, W]` in [0, 1].
        targets: per image `boxes` `[N, 4]` xyxy pixels and `labels` `[N]` in 1..C.

    Raises:
        ValueError: one of them lacks a method that distillation needs.
    """
    # Both follow the protocol of `paperlib.detectors.base`, which `nn.Module` does not declare.
    learner: Any = student
    expert: Any = teacher
    for detector in (student, teacher):
        if missing := [name for name in _NEEDED if not hasattr(detector, name)]:
            raise ValueError(f"{type(detector).__name__} has no {', '.join(missing)}, which distillation needs")
    outputs = learner.head_outputs(images)
    assignment = learner.assign_targets(outputs, targets)
    losses = learner.compute_losses(outputs, assignment)
    with torch.no_grad():
        teacher_outputs = expert.head_outputs(images.to(next(teacher.parameters()).dtype))
    return Answers(learner, expert, outputs, teacher_outputs, assignment, losses)


def digest_plans(plans: Sequence[Cut]) -> str | None:
    """Return a digest of which channels plans keep, for the identity of a training; None without plans."""
    text = json.dumps([[plan.kept, plan.carriers] for plan in plans], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest() if plans else None


def match_channels(student: nn.Module, teacher: nn.Module, side: int = 64) -> ChannelAdapter:
    """Make an adapter from a student's channels to those of a teacher of another family, with fresh weights.

    Args:
        student: a detector.
        teacher: a detector with some strides in common.
        side: side in pixels of the image by which the channels are counted.

    Raises:
        ValueError: no stride is common to both.
    """
    maps = []
    for detector in (student, teacher):
        known: Any = detector
        parameter = next(detector.parameters())
        mode = detector.training
        with torch.no_grad():
            # In evaluation mode, so that no statistics of batch normalisation change.
            outputs = known.eval().head_outputs(parameter.new_zeros(1, 3, side, side))
        detector.train(mode)
        maps.append({each.stride: each.values.shape[1] for each in known.features(outputs)})
    pairs = pair_levels(list(maps[0]), list(maps[1]))
    counts = [[list(channels.values())[pair[k]] for pair in pairs] for k, channels in enumerate(maps)]
    return ChannelAdapter(*counts)


def _keep_channels(student: Tensor, teacher: FeatureMap, plans: Sequence[Cut]) -> tuple[Tensor, Tensor]:
    """Return the features of both in the channels that all the plans have kept."""
    source = teacher.source
    # A plan made by hand may not name the convolution: it keeps all its channels then.
    cuts = [ChannelCut(plan.kept[source], plan.carriers.get(source, ())) for plan in plans if source in plan.kept]
    try:
        return select_teacher_channels(student, teacher.values, cuts)
    except ValueError as error:
        raise ValueError(
            f"level of stride {teacher.stride}: {error}; give all plans from the teacher to the student, or an adapter"
        ) from error


def _check_rows(student: Sequence[FeatureMap], teacher: Sequence[FeatureMap]) -> None:
    strides = [[each.stride for each in levels] for levels in (student, teacher)]
    if strides[0] != strides[1]:
        raise ValueError(f"student and teacher are incompatible: their strides are {strides[0]} and {strides[1]}")


def _check_compatible(student: HeadResponses, teacher: HeadResponses) -> None:
    student_shapes = {name: logits.shape for name, logits in student.logits.items()}
    teacher_shapes = {name: logits.shape for name, logits in teacher.logits.items()}
    target = teacher.regression_target.to(student.regression_target)
    # Equal shapes are not enough: with other anchors the same row would mean another box.
    same_boxes = student.kind == teacher.kind and student_shapes == teacher_shapes
    if not same_boxes or not torch.allclose(student.regression_target, target):
        raise ValueError("student and teacher are incompatible: they need the same classes and the same anchors")
