"""Dynamic distillation (DKD): valuable regions of features, selected instances, and boxes by the training status.

Zhang et al., *Learning Efficient and Accurate Detectors With Dynamic Knowledge Distillation in Remote Sensing Imagery*
(IEEE TGRS 60, 2022, 5613819), is public as an abstract only. This is built from the abstract; formulas ours.

The rivals that imitate features are settings: `DynamicDistillation(teacher, imitation=METHODS["fitnets"],
instance_weight=0, box_weight=0)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.detectors.base import Instances, Targets
from paperlib.distillation.adapters import ChannelAdapter
from paperlib.distillation.answers import Answers, Cut, ask_both, digest_plans
from paperlib.distillation.dynamic_options import DynamicOptions
from paperlib.distillation.hardness import box_losses, box_weights, start_status, update_status, weighted_mean
from paperlib.distillation.imitation import imitation_loss
from paperlib.distillation.imitation_methods import ImitationOptions
from paperlib.distillation.selection import instance_losses, select_instances
from paperlib.typed_options import check_values


class DynamicDistillation:
    """Objective of a student: its own loss + lambda_g L_GD + lambda_i L_ISD + lambda_r L_TSA.

    Args:
        teacher: a detector, set to evaluation mode and frozen; it runs exactly once per batch.
        plans: all prunings from the teacher to the student, in order, if the student is a pruned teacher.
        adapter: maps the student's features to the channels of a teacher of another family; it is trained along (see
            `paperlib.distillation.answers.match_channels`).
        settings: fields of `DynamicOptions`, such as `feature_weight=0`.

    Attributes:
        options: the settings.
        status: `[bins]`, the training status m_t; NaN before the first box.

    Raises:
        ValueError: one line: a setting is unknown or out of its range.
    """

    def __init__(
        self, teacher: nn.Module, *, plans: Sequence[Cut] = (), adapter: ChannelAdapter | None = None, **settings: Any
    ) -> None:
        self.options = check_values(DynamicOptions, "dynamic distillation", **settings)
        self.teacher, self.plans, self.adapter = teacher.eval().requires_grad_(False), tuple(plans), adapter
        self.steps: int | None = None
        self._reset()

    def __call__(self, student: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Compute one batch's losses: the student's own, and `features`, `instances` and `boxes` of weight above 0.

        Args:
            student: a detector in training mode.
            images: `[B, 3, H, W]` in [0, 1].
            targets: per image `boxes` `[N, 4]` xyxy pixels and `labels` `[N]` in 1..C; and, where parts of the image
                are grey padding, `visible` `[n, 4]`, the rectangles that are not.

        Raises:
            ValueError: teacher and student are incompatible: they differ in classes, strides, anchors or channels.
        """
        options = self.options
        answers = ask_both(student, self.teacher, images, targets)
        losses, scale = dict(answers.losses), self._warm_up()
        if options.feature_weight > 0:
            losses["features"] = options.feature_weight * scale * self._imitate(answers, targets)
        if options.instance_weight > 0 or options.box_weight > 0:
            terms = self._learn_instances(answers, float(images.shape[2] * images.shape[3]))
            weights = {"instances": options.instance_weight, "boxes": options.box_weight}
            losses |= {name: weight * scale * terms[name] for name, weight in weights.items() if weight > 0}
        self.step += 1
        return losses

    def start_training(self, steps: int) -> None:
        """Forget what was measured, and learn how many steps there will be: warm-up and q follow it."""
        self.steps = steps
        self._reset()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the adapter, if there is one."""
        return iter(()) if self.adapter is None else self.adapter.parameters()

    def state_dict(self) -> dict[str, Any]:
        """Return the training status, the number of steps, and the adapter."""
        adapter = {} if self.adapter is None else self.adapter.state_dict(prefix="adapter.")
        return {"status": self.status, "step": self.step, **adapter}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.status, self.step = state["status"], state["step"]
        if self.adapter is not None:
            prefix = "adapter."
            weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            self.adapter.load_state_dict(weights)

    def epoch_values(self) -> dict[str, float]:
        """Return means since the last call: the ratio of selected instances, of selected background, and m_t."""
        values = {name: float(total) / max(1.0, float(count)) for name, (total, count) in self._sums.items()}
        self._sums = {}
        return values

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data, with a digest of the plans."""
        return {**self.options.model_dump(mode="json"), "plans": digest_plans(self.plans)}

    def imitation(self) -> ImitationOptions:
        """Return how features are imitated at the present step: q may change over the training."""
        method, last = self.options.imitation, self.options.last_fraction
        if last is None or not self.steps:
            return method
        progress = min(1.0, self.step / max(1, self.steps - 1))
        return method.model_copy(update={"fraction": method.fraction + progress * (last - method.fraction)})

    def _reset(self) -> None:
        self.status, self.step = start_status(self.options), 0
        self._sums: dict[str, tuple[Tensor, Tensor | int]] = {}

    def _warm_up(self) -> float:
        """Return the factor of all weights: it grows to 1 over the first steps of a training."""
        ramp = self.options.warmup * (self.steps or 0)
        return min(1.0, (self.step + 1) / ramp) if ramp else 1.0

    def _imitate(self, answers: Answers, targets: Targets) -> Tensor:
        options = self.imitation()
        levels = answers.levels(self.plans, self.adapter, scored=options.value == "response")
        boxes = [target["boxes"] for target in targets]
        areas = [target["visible"] for target in targets] if all("visible" in target for target in targets) else None
        return imitation_loss(levels, boxes, options=options, areas=areas)

    def _learn_instances(self, answers: Answers, image_area: float) -> dict[str, Tensor]:
        options = self.options
        student, teacher = answers.responses
        classes, box = select_instances(student.instances, teacher.instances, options)
        groups = [(classes, student.instances, teacher.instances)]
        self._log("selected", classes.sum(), len(classes))
        if options.candidates:
            background = answers.background(options.candidates)
            groups.append((select_instances(*background, options)[0], *background))
            self._log("selected_background", groups[1][0].sum(), len(groups[1][0]))
        terms = {"instances": weighted_mean([self._instance_term(*group, student.kind) for group in groups])}
        if options.box_weight > 0:
            boxes, truth = student.boxes, student.true_boxes
            self.status = update_status(self.status, boxes, truth, options)
            self._log("status", self.status.nansum(), (~self.status.isnan()).sum())
            goal = truth if options.goal == "truth" and options.regression != "bound" else teacher.boxes
            weights = box_weights(boxes, truth, self.status, options, image_area)
            each = weights * box_losses(boxes, goal, truth, self.status, options)
            terms["boxes"] = weighted_mean([(box, each)])
        return terms

    def _instance_term(
        self, selected: Tensor, student: Instances, teacher: Instances, kind: str
    ) -> tuple[Tensor, Tensor]:
        return selected, instance_losses(student, teacher, kind, self.options.temperature)

    def _log(self, name: str, total: Tensor, count: Tensor | int) -> None:
        before = self._sums.get(name, (torch.zeros_like(total), 0))
        self._sums[name] = (before[0] + total.detach(), before[1] + count)
