"""General instance distillation (GID, Dai et al. 2021), a rival of dynamic distillation, from its own definition.

The student imitates its teacher at the few boxes of each image on which both disagree most, whatever the ground truth
says: the pooled features of these boxes, the distances between them, and the responses of the rows assigned to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from paperlib.detectors.base import HeadResponses, Targets
from paperlib.distillation.adapters import ChannelAdapter
from paperlib.distillation.answers import Cut, ask_both, digest_plans
from paperlib.distillation.imitation import FeatureLevel
from paperlib.typed_options import Count, Number, Options, check_values

CANDIDATES = 3000
"""Candidates of an image that enter the suppression, those of the largest disagreement."""
CELLS_ACROSS = 14
"""An instance is pooled on the coarsest level on which it is at least this many cells wide: 224 pixels at stride 16."""
FEWEST_RELATED = 3
"""Among fewer instances a single distance remains, and dividing it by the mean distance leaves nothing of it."""


class InstanceOptions(Options):
    """Settings of general instance distillation; the defaults are the published ones."""

    count: Count = 10
    """Instances of an image, at most."""
    overlap: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3
    """Largest IoU of two instances of an image."""
    side: Count = 10
    """Side of the square of cells to which the features of an instance are pooled."""
    feature_weight: Number = 0.005
    """Weight of the squared differences of the pooled features."""
    relation_weight: Number = 40.0
    """Weight of the differences of the distances between instances."""
    class_weight: Number = 0.1
    """Weight of the cross entropy with the teacher's classes."""
    box_weight: Number = 0.1
    """Weight of the L1 distance from the teacher's regressions."""


class InstanceDistillation:
    """Objective of a student: its own loss, and those of the instances on which it disagrees with its teacher.

    Args:
        teacher: a detector of one stage, set to evaluation mode and frozen; it runs exactly once per batch.
        plans: all prunings from the teacher to the student, in order, if the student is a pruned teacher.
        adapter: maps the features of any other student to the teacher's channels, and is trained along.
        settings: fields of `InstanceOptions`.

    Raises:
        ValueError: one line: a setting is unknown or out of its range, or the teacher has two stages.
    """

    def __init__(
        self, teacher: nn.Module, *, plans: Sequence[Cut] = (), adapter: ChannelAdapter | None = None, **settings: Any
    ) -> None:
        self.options = check_values(InstanceOptions, "instance distillation", **settings)
        if not hasattr(teacher, "decode"):
            raise ValueError(f"{type(teacher).__name__}: instance distillation needs a detector of one stage")
        self.teacher, self.plans, self.adapter = teacher.eval().requires_grad_(False), tuple(plans), adapter

    def __call__(self, student: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Compute one batch's losses: the student's own, and `instance_*`.

        Args:
            student: a detector in training mode.
            images: `[B, 3, H, W]` in [0, 1].
            targets: per image `boxes` `[N, 4]` xyxy pixels and `labels` `[N]` in 1..C.

        Raises:
            ValueError: teacher and student are incompatible: they differ in classes, strides, anchors or channels.
        """
        answers = ask_both(student, self.teacher, images, targets)
        answers.responses  # noqa: B018  (it refuses networks that cannot be compared)
        size = images.shape[2], images.shape[3]
        both = [(answers.student, answers.outputs), (answers.teacher, answers.teacher_outputs)]
        found = [detector.decode(outputs, size) for detector, outputs in both]
        instances = choose_instances(found[0], found[1], self.options)
        levels = answers.levels(self.plans, self.adapter)
        terms = instance_feature_losses(levels, [each["boxes"] for each in instances], self.options)
        # "Near an instance" is a row that the student's own label assignment gives it.
        assignment = answers.student.assign_targets(answers.outputs, instances)
        rows = [detector.head_responses(outputs, assignment) for detector, outputs in both]
        logits = [_flatten_logits(each) for each in rows]
        terms |= instance_response_losses(logits, [each.regression for each in rows], self.options)
        return {**answers.losses, **{f"instance_{name}": loss for name, loss in terms.items()}}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the adapter, if there is one."""
        return iter(()) if self.adapter is None else self.adapter.parameters()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the adapter, if there is one."""
        return {} if self.adapter is None else self.adapter.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        if self.adapter is not None:
            self.adapter.load_state_dict(state)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data, with a digest of the plans."""
        return {**self.options.model_dump(), "plans": digest_plans(self.plans)}


@torch.no_grad()
def choose_instances(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], options: InstanceOptions | None = None
) -> list[dict[str, Tensor]]:
    """Choose per image the boxes on which student and teacher disagree most.

    The score of a row and class is |p_T - p_S|, and the box is that of the network with the larger p.

    Args:
        student: boxes `[B, R, 4]` xyxy pixels and scores `[B, R, C]` of all rows, as a detector's `decode` returns.
        teacher: likewise, of the same rows.
        options: see `InstanceOptions`.

    Returns:
        Per image `boxes` `[K, 4]` and `labels` `[K]` in 1..C, the largest disagreement first; like targets.
    """
    options = options or InstanceOptions()
    chosen = []
    for own_boxes, own_scores, its_boxes, its_scores in zip(*student, *teacher, strict=True):
        difference = its_scores - own_scores
        score, index = difference.abs().flatten().topk(min(CANDIDATES, difference.numel()))
        row, label = index // difference.shape[1], index % difference.shape[1]
        boxes = torch.where((difference[row, label] > 0)[:, None], its_boxes[row], own_boxes[row])
        valid = (score > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, score, label = boxes[valid], score[valid], label[valid]
        kept = nms(boxes, score, options.overlap)[: options.count]
        chosen.append({"boxes": boxes[kept], "labels": label[kept] + 1})
    return chosen


def instance_feature_losses(
    levels: Sequence[FeatureLevel], boxes: Sequence[Tensor], options: InstanceOptions | None = None
) -> dict[str, Tensor]:
    """Compute the losses of the pooled features of instances and of the distances between them.

    With the pooled features t_i of the teacher and s_i of the student, `[C, S, S]`, of N instances, the first is
    sum_i |t_i - s_i|^2 / (N S^2). The second is the mean over pairs of one level of the smooth L1 distance between
    |t_i - t_j| / mean |t_i - t_j| and the same of the student. Channels differ from level to level, so only instances
    of one level are related. Both are in float32 at least.

    Args:
        levels: features of both in the same channels.
        boxes: per image, the instances `[K, 4]`, xyxy pixels.
        options: see `InstanceOptions`.

    Returns:
        `features` and `relations`, weighted; 0 where there is no instance or no pair.
    """
    options = options or InstanceOptions()
    strides = torch.tensor([level.stride for level in levels])
    chosen = [choose_level(each, strides) for each in boxes]
    squared, related, pairs = [], [], 0
    for number, level in enumerate(levels):
        own = [each[index == number] for each, index in zip(boxes, chosen, strict=True)]
        student, teacher = (_pool(each, own, level.stride, options.side) for each in (level.student, level.teacher))
        squared.append((student - teacher.detach()).square().sum())
        if len(student) >= FEWEST_RELATED:
            distances = F.smooth_l1_loss(_relate(student), _relate(teacher.detach()), reduction="sum")
            related.append(distances)
            pairs += len(student) * (len(student) - 1)
    count = max(1, sum(map(len, boxes))) * options.side**2
    relations = torch.stack(related).sum() / pairs if related else squared[0] * 0
    return {
        "features": options.feature_weight * torch.stack(squared).sum() / count,
        "relations": options.relation_weight * relations,
    }


def instance_response_losses(
    logits: Sequence[Tensor], regressions: Sequence[Tensor], options: InstanceOptions | None = None
) -> dict[str, Tensor]:
    """Compute the losses of the responses of the P rows that are assigned to instances.

    Args:
        logits: of student and teacher, `[P, C]`.
        regressions: of student and teacher, `[P, 4]`, in the detector's own regression space.
        options: see `InstanceOptions`.

    Returns:
        `classes`, the binary cross entropy with the teacher's probabilities, and `boxes`, the L1 distance; both are
        sums over a row and means over the rows, weighted.
    """
    options = options or InstanceOptions()
    rows = max(1, len(regressions[0]))
    entropy = F.binary_cross_entropy_with_logits(logits[0], logits[1].detach().sigmoid(), reduction="sum")
    distance = (regressions[0] - regressions[1].detach()).abs().sum()
    return {"classes": options.class_weight * entropy / rows, "boxes": options.box_weight * distance / rows}


def choose_level(boxes: Tensor, strides: Tensor) -> Tensor:
    """Return for each box `[N, 4]` the index of the level on which it is pooled, `[N]`: large boxes on coarse levels.

    It is the coarsest level on which the square root of the area is `CELLS_ACROSS` cells, or else the finest level:
    the rule of feature pyramid networks (Lin et al. 2017, Eq. 1) for any set of strides.
    """
    side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    strides = strides.to(boxes)
    fits = side[:, None] >= CELLS_ACROSS * strides
    return torch.where(fits.any(1), torch.where(fits, strides, -1).argmax(1), strides.argmin())


def _flatten_logits(responses: HeadResponses) -> Tensor:
    """Return all logits of each positive, `[P, K]`."""
    count = len(responses.regression)
    return torch.cat([each.values.reshape(count, -1) for each in responses.instances.logits.values()], 1)


def _pool(features: Tensor, boxes: list[Tensor], stride: int, side: int) -> Tensor:
    """Pool the features of boxes by RoIAlign (He et al. 2017): `[B, C, H, W]` to `[N, C, side, side]`."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    rois = [each.to(features) for each in boxes]
    return roi_align(features, rois, side, spatial_scale=1 / stride, sampling_ratio=2, aligned=True)


def _relate(features: Tensor) -> Tensor:
    """Return the distances between N instances, `[N, N]`, divided by their mean over the pairs."""
    vectors = features.flatten(1)
    # Not by products of matrices: the differences of nearly equal instances would be rounding errors.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (len(features) * (len(features) - 1))
    return distances / mean.clamp_min(torch.finfo(distances.dtype).tiny)
