"""The methods of distillation by name, each made from its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import nn

from paperlib import files
from paperlib.distillation.answers import Cut, match_channels
from paperlib.distillation.assistants import Distillation
from paperlib.distillation.dynamic import DynamicDistillation
from paperlib.distillation.dynamic_options import DynamicOptions
from paperlib.distillation.instances import InstanceDistillation, InstanceOptions
from paperlib.typed_options import Options, check_values

TeachingMethod = Literal["bounded", "dynamic", "instances"]
"""Eqs. 10-12 of the paper, dynamic distillation (DKD), and general instance distillation (GID)."""
Teaching = Distillation | DynamicDistillation | InstanceDistillation


@dataclass(frozen=True)
class KeptChannels:
    """What a pruning kept, as far as distillation must know it: per convolution, its kept and its carrier channels."""

    kept: dict[str, list[int]]
    carriers: dict[str, list[int]]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file of a `paperlib.pruning.PruningPlan`."""
        plan = files.read_json(path)
        return cls(plan["kept"], plan["carriers"])


def choose_options(
    method: TeachingMethod, usual: Options | None, changes: Mapping[str, Any], *, scenes: bool = False
) -> Options:
    """Return the settings of a method: the usual ones, or its defaults, with some of them changed.

    Raises:
        ValueError: one line: the method or a setting is unknown, or out of its range; or `scenes`, and the method is
            for detectors only.
    """
    if method not in get_args(TeachingMethod):
        raise ValueError(f"distillation {method!r} is not known; choose one of: {', '.join(get_args(TeachingMethod))}")
    if scenes and method != "bounded":
        raise ValueError(f"distillation {method!r} is for detectors; classifiers of scenes have the method bounded")
    if usual is None:
        usual = DynamicOptions() if method == "dynamic" else InstanceOptions()
    return check_values(type(usual), f"distillation {method}", **{**vars(usual), **changes})


def make_teaching(
    method: TeachingMethod, options: Options, student: nn.Module, teacher: nn.Module,
    plans: Sequence[Cut] | None, seed: int,
) -> Teaching:  # fmt: skip
    """Make the objective of a student.

    Args:
        method: by name.
        options: its settings.
        student: a detector, which is not changed.
        teacher: a detector, which is frozen.
        plans: all prunings from the teacher to the student; None if the student is no pruned teacher.
        seed: of the fresh weights of the convolution that a student of another family needs.

    Raises:
        ValueError: the student is of another family and has no stride in common with the teacher; or the method is
            `instances`, and the teacher has two stages.
    """
    settings = vars(options)
    if method == "bounded":
        return Distillation(teacher, **settings)
    adapter = None
    if plans is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = match_channels(student, teacher)
    kind = DynamicDistillation if method == "dynamic" else InstanceDistillation
    return kind(teacher, plans=plans or (), adapter=adapter, **settings)
