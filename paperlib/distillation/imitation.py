"""Imitation of a teacher's features: global dynamic distillation (GD), with its rivals as settings of the same loss.

Dynamic distillation (Zhang et al. 2022, IEEE TGRS 60, 5613819) is public as an abstract only. Its global part lets the
student imitate those regions of the foreground and of the background that are valuable at the moment, on several
levels. The formulas here are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.distillation.cells import choose_cells, count_box_cells, cover_cells, fit_anchors
from paperlib.distillation.imitation_methods import METHODS, ImitationOptions

Cells = tuple[Tensor, Tensor]
"""Chosen cells of a level, in the foreground and in the background: bool `[B, H, W]` each."""


@dataclass(frozen=True)
class FeatureLevel:
    """One level of features of student and teacher, in the same channels (see `paperlib.distillation.adapters`).

    Attributes:
        student: `[B, C, H, W]`.
        teacher: `[B, C, H, W]`; a constant for autograd.
        stride: side of a cell in pixels.
        anchors: `[K, 2]` width and height in pixels of the level's anchors, for the foreground `anchors`.
        response: `[B, H, W]` the teacher's highest class probability, for the value `response`.

    Raises:
        ValueError: the shapes do not fit.
    """

    student: Tensor
    teacher: Tensor
    stride: int
    anchors: Tensor | None = None
    response: Tensor | None = None

    def __post_init__(self) -> None:
        student, teacher = list(self.student.shape), list(self.teacher.shape)
        place = f"level of stride {self.stride}"
        if self.stride < 1:
            raise ValueError(f"{place}: a stride must be ≥ 1")
        if len(student) != 4 or student != teacher:
            raise ValueError(f"{place}: the student's features {student} and the teacher's {teacher} do not match")
        if self.response is not None and list(self.response.shape) != [student[0], *student[2:]]:
            raise ValueError(f"{place}: responses {list(self.response.shape)} do not match features {student}")

    @property
    def size(self) -> tuple[int, int]:
        """Return the numbers of rows and columns."""
        return self.student.shape[2], self.student.shape[3]


def imitation_loss(
    levels: Sequence[FeatureLevel],
    boxes: Sequence[Tensor],
    *,
    options: ImitationOptions = METHODS["gd"],
    areas: Sequence[Tensor] | None = None,
    cells: Sequence[Cells] | None = None,
) -> Tensor:
    """Compute how far the student's features are from the teacher's where that is valuable: a scalar.

    With the difference D (the mean over channels of (F_S - F_T)^2 / Var F_T), the attention A
    (HW softmax(mean |F_T| / (tau std F_T))) and the valuable cells V_R of a region R, this is the mean over levels of
    sum_R alpha_R sum(V_R A D) / sum(V_R A). A region without cells adds 0. Only D has a gradient. Differences, values
    and attention are in float32 at least.

    Args:
        levels: the levels, in any order.
        boxes: per image, the ground truth `[N, 4]`, xyxy pixels.
        options: which method; see `METHODS`.
        areas: per image, `[n, 4]` xyxy pixels where the padded square shows the image and not grey padding: one row
            `[0, 0, width, height]` if it is padded on the right and at the bottom, four of a mosaic. By default
            nothing is padding. Padding changes nothing: neither mean nor variance, nor attention.
        cells: per level the cells of `choose_valuable`, chosen before; by default they are chosen now.

    Raises:
        ValueError: there is no level; levels, boxes and areas do not belong to one batch; or `options` asks for
            anchors or responses that a level lacks.
    """
    measured = _measure_levels(levels, boxes, areas, options)
    chosen = [level.choose_both() for level in measured] if cells is None else cells
    return torch.stack([level.sum_losses(*pair) for level, pair in zip(measured, chosen, strict=True)]).mean()


@torch.no_grad()
def choose_valuable(
    levels: Sequence[FeatureLevel],
    boxes: Sequence[Tensor],
    *,
    options: ImitationOptions = METHODS["gd"],
    areas: Sequence[Tensor] | None = None,
) -> list[Cells]:
    """Return per level the valuable cells V_fg and V_bg of `imitation_loss`, bool `[B, H, W]` (same arguments)."""
    return [level.choose_both() for level in _measure_levels(levels, boxes, areas, options)]


class _MeasuredLevel:
    """Difference, attention and regions of one level."""

    def __init__(
        self, level: FeatureLevel, boxes: Sequence[Tensor], areas: Sequence[Tensor] | None, options: ImitationOptions
    ) -> None:
        self.options, self.level = options, level
        student, teacher = _as_float(level.student), _as_float(level.teacher.detach())
        boxes = [each.to(teacher.device) for each in boxes]
        self.inside = torch.ones_like(teacher[:, 0], dtype=torch.bool)
        if areas is not None:
            self.inside = cover_cells([each.to(teacher.device) for each in areas], level.stride, level.size)
        variance = _masked_variance(teacher, self.inside) if options.normalisation == "variance" else None
        self.attention = self.inside.to(teacher.dtype)
        weights = torch.ones_like(teacher[:, :, :1, :1])
        if options.temperature is not None:
            temperature = options.temperature * (1 if variance is None else variance.sqrt())
            self.attention, by_channel = _attend(teacher, self.inside, temperature)
            weights = by_channel if options.channel_attention else weights
        difference = (weights * (student - teacher).square()).sum(1)
        if options.normalisation != "sum":
            difference = difference / teacher.shape[1]
        self.difference = difference if variance is None else difference / variance
        self.foreground = self._find_foreground(boxes)
        self.background = self.inside & ~self.foreground
        self.sharing = self._count_cells(boxes) if options.balance == "box" else None

    def choose_both(self) -> Cells:
        """Choose the valuable cells of both regions."""
        value = self._value_cells()
        fraction = self.options.fraction
        return choose_cells(value, self.foreground, fraction), choose_cells(value, self.background, fraction)

    def sum_losses(self, foreground: Tensor, background: Tensor) -> Tensor:
        """Compute the weighted losses of the chosen cells of both regions."""
        options = self.options
        in_foreground = options.foreground_weight * self._region_loss(foreground)
        return in_foreground + options.background_weight * self._region_loss(background)

    def _find_foreground(self, boxes: list[Tensor]) -> Tensor:
        level = self.level
        if self.options.foreground == "everywhere":
            return self.inside
        if self.options.foreground == "boxes":
            return cover_cells(boxes, level.stride, level.size) & self.inside
        if level.anchors is None:
            raise ValueError(f"level of stride {level.stride}: the foreground 'anchors' needs anchors")
        return fit_anchors(boxes, level.anchors, level.stride, self.inside)

    def _count_cells(self, boxes: list[Tensor]) -> Tensor:
        """Count for each cell those that share its weight: of its smallest box, or of its image's background."""
        in_background = self.background.sum((1, 2), keepdim=True)
        counts = torch.where(self.background, in_background, count_box_cells(boxes, self.level.stride, self.inside))
        return counts.clamp_min(1)

    def _value_cells(self) -> Tensor:
        value = self.options.value
        difference = self.difference.detach()
        if value == "response":
            if self.level.response is None:
                raise ValueError(f"level of stride {self.level.stride}: the value 'response' needs responses")
            return _as_float(self.level.response.detach())
        if value == "attention":
            return self.attention
        return difference if value == "difference" else self.attention * difference

    def _region_loss(self, cells: Tensor) -> Tensor:
        weights = self.attention * cells
        if self.sharing is not None:
            return (weights / self.sharing * self.difference).sum() / len(cells)
        total = weights.sum()
        # An empty region is an empty sum, not 0 / 0.
        return (weights * self.difference).sum() / torch.where(total > 0, total, 1)


def _attend(teacher: Tensor, inside: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention of cells `[B, H, W]` and of channels `[B, C, 1, 1]`; either has the mean 1 per image."""
    strength = teacher.abs()
    # The least number rather than -inf: an image without any cell inside must not become NaN.
    scores = (strength.mean(1) / temperature).masked_fill(~inside, torch.finfo(teacher.dtype).min)
    count = inside.sum((1, 2), keepdim=True)
    by_cell = count * scores.flatten(1).softmax(1).view_as(scores)
    means = (strength * inside[:, None]).sum((2, 3), keepdim=True) / count[:, None].clamp_min(1)
    return by_cell, teacher.shape[1] * (means / temperature).softmax(1)


def _masked_variance(teacher: Tensor, inside: Tensor) -> Tensor:
    """Return the variance over the cells inside, of all channels and images; 1 for features that do not vary."""
    weights = inside[:, None] / (inside.sum() * teacher.shape[1]).clamp_min(1).to(teacher.dtype)
    mean = (weights * teacher).sum()
    variance = (weights * (teacher - mean).square()).sum()
    # Rounding alone gives a constant level a variance, and a difference must not be divided by that.
    return torch.where(variance > torch.finfo(teacher.dtype).eps * mean.square(), variance, 1)


def _as_float(values: Tensor) -> Tensor:
    """Return the values in float32 if they have less precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _measure_levels(
    levels: Sequence[FeatureLevel], boxes: Sequence[Tensor], areas: Sequence[Tensor] | None, options: ImitationOptions
) -> list[_MeasuredLevel]:
    if not levels:
        raise ValueError("there is no level of features to imitate")
    for name, given in (("boxes", boxes), ("areas", areas)):
        if given is not None and any(len(given) != len(level.student) for level in levels):
            raise ValueError(f"{name} of {len(given)} images for features of {len(levels[0].student)}")
    # Uneven sides are rounded up at most to the next cell.
    for axis, name in enumerate(("rows", "columns")):
        sides = [level.stride * level.size[axis] for level in levels]
        if max(sides) - min(sides) >= max(level.stride for level in levels):
            raise ValueError(f"the strides do not fit the features: their {name} span {sides} pixels")
    return [_MeasuredLevel(level, boxes, areas, options) for level in levels]
