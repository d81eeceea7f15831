"""Which channels go: a global threshold, held back by what is tied and by a floor (Section 3.1, Algorithm 1).

The paper ranks all gammas and cuts under a threshold. What it leaves open is settled here: N counts every
prunable batch norm channel; tied channels go only together; layers and parts of splits keep a share.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from math import ceil, floor
from typing import Any, Self

import numpy as np
import pandas as pd
from torch import nn

from paperlib.pruning.channels import BoolArray, ChannelGraph, IntArray, trace_channels
from paperlib.pruning.importance import Scores, score_channels


@dataclass(frozen=True)
class LayerStatistics:
    """One prunable convolution before pruning: its channel count and the spread of their importance.

    `held_by_floor` says whether the floor kept channels here that the threshold would have removed.
    """

    total: int
    minimum: float
    median: float
    maximum: float
    held_by_floor: bool


@dataclass(frozen=True)
class PruningPlan:
    """Which output channels each convolution keeps.

    Attributes:
        kept: name of each prunable convolution in `named_modules()` -> its kept output channels, ascending.
            In a plan made by hand, a convolution that is not named keeps all.
        threshold: importance of the least important channel that the ratio alone would keep.
        ratio: share of all prunable channels that were candidates.
        importance: name of the criterion.
        layers: statistics of each convolution, in forward order.
    """

    kept: dict[str, list[int]]
    threshold: float
    ratio: float
    importance: str
    layers: dict[str, LayerStatistics] = field(default_factory=dict)

    @property
    def channels_kept(self) -> int:
        """Number of channels that stay, over all layers of the plan."""
        return sum(len(channels) for channels in self.kept.values())

    @property
    def channels_total(self) -> int:
        """Number of channels before pruning, over all layers of the plan."""
        return sum(layer.total for layer in self.layers.values())

    def summary(self) -> pd.DataFrame:
        """One row a layer: channels, share kept, spread of importance, whether the floor held it back."""
        rows = [{"layer": name, "kept": len(self.kept[name]), **asdict(at)} for name, at in self.layers.items()]
        frame = pd.DataFrame(rows).assign(share_kept=lambda f: f.kept / f.total)
        order = ["layer", "total", "kept", "share_kept", "minimum", "median", "maximum", "held_by_floor"]
        return frame[order]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The plan that `to_dict` described."""
        layers = {name: LayerStatistics(**layer) for name, layer in data["layers"].items()}
        return cls(**{**data, "layers": layers})


def plan_pruning(
    detector: nn.Module,
    ratio: float,
    *,
    importance: str = "gamma",
    keep_floor: float = 0.1,
    round_to: int = 1,
) -> PruningPlan:
    """Plan the removal of the least important channels (Section 3.1; Algorithm 1, lines 12-14).

    Of all N prunable channels the floor(ratio * N) least important are candidates, in a stable order, so that
    equal values never stand in the way. Tied channels go only if all of them are candidates.

    Args:
        detector: any network that `trace_channels` can read.
        ratio: share of the prunable channels to remove, in [0, 1).
        importance: `gamma` or `l1`.
        keep_floor: share, in [0, 1], which convolutions and parts of splits keep; one channel at least.
        round_to: the kept channels of each of them are rounded up to a multiple of this, or to all.

    Raises:
        ValueError: an argument is out of its range, or nothing in the network can be pruned.
    """
    _check_settings(ratio, keep_floor, round_to)
    graph = trace_channels(detector)
    if not graph.prunable:
        raise ValueError(f"{type(detector).__name__} has no prunable channel: no convolution with a batch norm")
    scores = score_channels(importance, detector, graph)
    rank, sorted_scores = _rank(graph, scores)
    candidates = floor(_exact(ratio) * len(sorted_scores))
    removed = rank < candidates
    unguarded = removed.copy()
    for segment in graph.segments:
        _restore(removed, rank, segment.channels, max(1, ceil(_exact(keep_floor) * len(segment.channels))))
    held = {name for name, ids in _outputs(graph) if (removed[ids] != unguarded[ids]).any()}
    _round_up(removed, rank, graph, round_to)
    return PruningPlan(
        kept={name: np.flatnonzero(~removed[ids]).tolist() for name, ids in _outputs(graph)},
        threshold=float(sorted_scores[candidates]),
        ratio=float(ratio),
        importance=importance,
        layers={name: _statistics(values, name in held) for name, values in scores.items()},
    )


def removed_channels(graph: ChannelGraph, plan: PruningPlan) -> BoolArray:
    """For each channel number of `graph`, whether `plan` removes it.

    Raises:
        ValueError: the plan names an unknown layer or channel, or one channel twice; empties a layer or part
            of a split; removes a channel that must stay; or breaks a coupling.
    """
    members: dict[int, list[str]] = {}
    dropped: dict[int, list[str]] = {}
    for name in plan.kept:
        _check_kept(graph, name, plan.kept[name])
    for name, ids in _outputs(graph):
        kept = set(plan.kept.get(name, range(len(ids))))
        for channel, number in enumerate(ids.tolist()):
            members.setdefault(number, []).append(name)
            if channel not in kept:
                dropped.setdefault(number, []).append(name)
    removed = np.zeros(len(graph.fixed), dtype=bool)
    removed[list(dropped)] = True
    _check_coupling(graph, members, dropped)
    for segment in graph.segments:
        if removed[segment.channels].all():
            raise ValueError(f"the plan leaves no channel in a part of {segment.layer}")
    return removed


def _check_settings(ratio: float, keep_floor: float, round_to: int) -> None:
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio {ratio} is not in [0, 1)")
    if not 0 <= keep_floor <= 1:
        raise ValueError(f"keep_floor {keep_floor} is not in [0, 1]")
    if round_to != int(round_to) or round_to < 1:
        raise ValueError(f"round_to {round_to} is not a whole number of at least 1")


def _exact(share: float) -> Fraction:
    """The decimal number that was written: 0.29 of 100 channels is 29, though 0.29 * 100 < 29 in binary."""
    return Fraction(str(float(share)))


def _outputs(graph: ChannelGraph) -> Iterator[tuple[str, IntArray]]:
    return ((name, graph.layers[name].outputs) for name in graph.prunable)


def _rank(graph: ChannelGraph, scores: Scores) -> tuple[IntArray, np.ndarray]:
    """Each channel number's place in the order of removal, and the sorted scores of all N channels.

    Tied channels share the place of their most important member; a fixed channel comes after all.
    """
    ids = np.concatenate([ids for _, ids in _outputs(graph)])
    values = np.concatenate([scores[name] for name in graph.prunable])
    ids, values = ids[~graph.fixed[ids]], values[~graph.fixed[ids]]
    order = np.argsort(values, kind="stable")
    rank = np.where(graph.fixed, len(values), -1)
    np.maximum.at(rank, ids[order], np.arange(len(values)))
    # Numbers that no batch norm ranks are aliases of a tied channel; they are never looked up.
    return np.where(rank < 0, len(values), rank), values[order]


def _restore(removed: BoolArray, rank: IntArray, channels: IntArray, wanted: int) -> None:
    """Bring back the most important of `channels`, with all that is tied to them, until `wanted` are kept."""
    gone, copies = np.unique(channels[removed[channels]], return_counts=True)
    order = np.argsort(-rank[gone], kind="stable")
    before = len(channels) - copies.sum() + np.cumsum(copies[order]) - copies[order]
    removed[gone[order][before < wanted]] = False


def _round_up(removed: BoolArray, rank: IntArray, graph: ChannelGraph, multiple: int) -> None:
    """Round the kept channels of every segment up; what comes back in one may be tied into another."""
    changed = True
    while changed:
        before = removed.copy()
        for segment in graph.segments:
            kept = int((~removed[segment.channels]).sum())
            wanted = min(-(-kept // multiple) * multiple, len(segment.channels))
            _restore(removed, rank, segment.channels, wanted)
        changed = bool((removed != before).any())


def _statistics(values: np.ndarray, held: bool) -> LayerStatistics:
    low, middle, high = np.quantile(values, [0, 0.5, 1]).tolist()
    return LayerStatistics(len(values), low, middle, high, held)


def _check_kept(graph: ChannelGraph, name: str, kept: list[int]) -> None:
    if name not in graph.prunable:
        kind = "not a prunable convolution" if name in graph.layers else "not a layer of this network"
        raise ValueError(f"the plan names {name}, which is {kind}")
    count = len(graph.layers[name].outputs)
    if not kept:
        raise ValueError(f"the plan keeps no channel of {name}")
    if len(set(kept)) != len(kept):
        raise ValueError(f"the plan names a channel of {name} twice")
    for channel in kept:
        if not 0 <= channel < count:
            raise ValueError(f"the plan keeps channel {channel} of {name}, which has {count}")


def _check_coupling(graph: ChannelGraph, members: dict[int, list[str]], dropped: dict[int, list[str]]) -> None:
    for number, droppers in dropped.items():
        if graph.fixed[number]:
            raise ValueError(f"the plan removes a channel of {droppers[0]} that must stay")
        if len(droppers) != len(members[number]):
            names = ", ".join(sorted(set(members[number])))
            raise ValueError(f"the plan keeps some and removes others of the tied channels of {names}")
