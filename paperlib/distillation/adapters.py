"""Adapters: a student's and a teacher's features in the same channels, so that they can be compared.

The channels of a pruned student are some of its teacher's; then nothing has to be learned. A student of another family
needs a convolution that is trained with it and thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class ChannelCut:
    """What one pruning kept of the channels of a level.

    Attributes:
        kept: the kept channels, ascending, numbered as before this cut.
        carriers: the carrier channels of an exact compensation, numbered as after this cut. They emit only a constant
            for the next layer, which is not a feature of the teacher.
    """

    kept: Sequence[int]
    carriers: Sequence[int] = ()


def trace_origins(channels: int, cuts: Sequence[ChannelCut]) -> list[int | None]:
    """Return for each channel of a student the channel of the teacher that it was, or None for a carrier.

    Args:
        channels: number of the teacher's channels on this level.
        cuts: all cuts from the teacher to the student, in order.

    Raises:
        ValueError: a cut names a channel that there is not.
    """
    origins: list[int | None] = list(range(channels))
    for number, cut in enumerate(cuts, 1):
        count = len(cut.kept) + len(cut.carriers)
        if any(not 0 <= channel < len(origins) for channel in cut.kept):
            raise ValueError(f"cut {number} keeps a channel outside of 0..{len(origins) - 1}")
        if any(not 0 <= channel < count for channel in cut.carriers):
            raise ValueError(f"cut {number} has a carrier outside of 0..{count - 1}")
        remaining = [origins[channel] for channel in cut.kept]
        # In ascending order each insertion leaves the positions before it alone.
        for position in sorted(cut.carriers):
            remaining.insert(position, None)
        origins = remaining
    return origins


def select_teacher_channels(student: Tensor, teacher: Tensor, cuts: Sequence[ChannelCut]) -> tuple[Tensor, Tensor]:
    """Return a pruned student's features, and the teacher's in the channels that the student has kept.

    Args:
        student: `[B, C_S, H, W]`.
        teacher: `[B, C_T, H, W]`.
        cuts: all cuts from the teacher to the student, in order.

    Returns:
        Two tensors `[B, K, H, W]`. The student's carriers are left out; without any, its features are unchanged.

    Raises:
        ValueError: the cuts do not lead from the teacher's channels to the student's.
    """
    origins = trace_origins(teacher.shape[1], cuts)
    if len(origins) != student.shape[1]:
        raise ValueError(f"the cuts leave {len(origins)} channels, but the student has {student.shape[1]}")
    features = [(position, origin) for position, origin in enumerate(origins) if origin is not None]
    if len(features) < len(origins):
        student = student[:, [position for position, _ in features]]
    return student, teacher[:, [origin for _, origin in features]]


def pair_levels(student: Sequence[int], teacher: Sequence[int]) -> list[tuple[int, int]]:
    """Pair levels of the same stride: return the index of each in the student's and in the teacher's strides.

    Raises:
        ValueError: no stride is common to both.
    """
    pairs = [(index, teacher.index(stride)) for index, stride in enumerate(student) if stride in teacher]
    if not pairs:
        raise ValueError(f"student and teacher have no stride in common: {list(student)} and {list(teacher)}")
    return pairs


class ChannelAdapter(nn.Module):
    """A learned 1 x 1 convolution per level that maps a student's channels to those of a teacher of another family.

    Args:
        student: number of the student's channels on each level.
        teacher: number of the teacher's channels on each level.

    Raises:
        ValueError: the numbers of levels differ.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        if len(student) != len(teacher):
            raise ValueError(f"the student has {len(student)} levels, the teacher {len(teacher)}")
        layers = [nn.Conv2d(inputs, outputs, 1) for inputs, outputs in zip(student, teacher, strict=True)]
        self.layers = nn.ModuleList(layers)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map per level `[B, C_S, H, W]` to `[B, C_T, H, W]`.

        Raises:
            ValueError: the number of levels is another.
        """
        if len(features) != len(self.layers):
            raise ValueError(f"features of {len(features)} levels for an adapter of {len(self.layers)}")
        return [layer(each) for layer, each in zip(self.layers, features, strict=True)]
