"""The order in which channels are removed, and what limits it: ties, floors, equal parts (Section 3.1)."""

from collections.abc import Mapping
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paperlib.pruning.channel_graph import BoolArray, ChannelGraph, IntArray, Segment
from paperlib.pruning.importance import Scores
from paperlib.pruning.plan import prunable_outputs

_UNRANKED = -2


class Ranking:
    """The prunable channels of a network in the order of their removal, and what limits it.

    Attributes:
        values: importance of all N prunable channels, ascending.
        count: N, without the layers that have a ratio of their own.
        named: these layers, with their ratios.
    """

    def __init__(
        self, graph: ChannelGraph, scores: Scores, minimum: list[int], round_to: int, named: Mapping[str, float]
    ) -> None:
        self.graph = graph
        self.minimum = minimum
        self.round_to = round_to
        self.named = named
        self.rank, self.values = _rank_channels(graph, scores, named)
        self.count = len(self.values)
        for parts in graph.balanced:
            self.rank = _rank_rows(self.rank, parts, self.count)

    def threshold(self, candidates: int) -> float:
        """Return the importance of the least important channel that is no candidate; 0 if there is none."""
        return float(self.values[candidates]) if candidates < self.count else 0.0

    def share(self, candidates: int) -> float:
        """Return the fraction of all prunable channels that are candidates."""
        named = [self.graph.layers[name].outputs for name in self.named]
        chosen = sum(int((self.rank[ids] < 0).sum()) for ids in named)
        return (candidates + chosen) / (self.count + sum(len(ids) for ids in named))

    def apply_floor(self, candidates: int) -> BoolArray:
        """Tell for each channel number whether ties and the floor let it be removed, given the number of candidates."""
        removed = self.rank < candidates
        for segment, minimum in zip(self.graph.segments, self.minimum, strict=True):
            self._restore(removed, segment.channels, minimum)
        self._balance(removed)
        return removed

    def apply_rounding(self, floored: BoolArray) -> BoolArray:
        """Tell for each channel number whether it is removed after kept counts are rounded up to `round_to`."""
        removed = floored.copy()
        changed = self.round_to > 1
        # A channel that is restored in one segment may be tied into another, which then has to be rounded again.
        while changed:
            before = removed.copy()
            for segment in self.graph.segments:
                kept = int((~removed[segment.channels]).sum())
                wanted = min(-(-kept // self.round_to) * self.round_to, len(segment.channels))
                self._restore(removed, segment.channels, wanted)
            self._balance(removed)
            changed = bool((removed != before).any())
        return removed

    def _balance(self, removed: BoolArray) -> None:
        """Restore channels until equally many are kept wherever that is needed."""
        changed = bool(self.graph.balanced)
        # What is restored in one part may be tied into another, or into another group.
        while changed:
            before = removed.copy()
            for parts in self.graph.balanced:
                wanted = max(int((~removed[part]).sum()) for part in parts)
                for part in parts:
                    self._restore(removed, part, max(wanted, 1))
            changed = bool((removed != before).any())

    def held_layers(self, candidates: int, floored: BoolArray) -> set[str]:
        """Return the convolutions in which only the floor keeps candidates."""
        under = self.rank < candidates
        return {name for name, ids in prunable_outputs(self.graph) if (floored[ids] != under[ids]).any()}

    def write_notes(self, candidates: int, *, by_ratio: bool) -> list[str]:
        """Describe which part of the request cannot be fulfilled; `by_ratio` if a ratio set the candidates."""
        under = self.rank < candidates
        emptied_layers = [name for name, ids in prunable_outputs(self.graph) if under[ids].all()]
        notes = []
        if emptied_layers:
            layers = emptied_layers[0]
            if len(emptied_layers) > 1:
                names = ", ".join(emptied_layers[:3]) + (", ..." if len(emptied_layers) > 3 else "")
                layers = f"{len(emptied_layers)} layers ({names})"
            notes.append(f"the request would remove every channel of {layers}; min_keep_ratio keeps some in each")
        limit = self._most_removable() if by_ratio else candidates
        if candidates > limit:
            notes.append(
                f"the request would remove {candidates} of {self.count} channels; min_keep_ratio allows removing at "
                f"most {limit}"
            )
        return notes

    def _most_removable(self) -> int:
        """Count the channels that are removed if all are candidates."""
        total = sum(len(ids) for _, ids in prunable_outputs(self.graph))
        return total - self.count_kept(self.apply_rounding(self.apply_floor(self.count)))

    def count_kept(self, removed: BoolArray) -> int:
        """Count the prunable channels that are kept without the channel numbers at `removed`."""
        return sum(int((~removed[ids]).sum()) for _, ids in prunable_outputs(self.graph))

    def _restore(self, removed: BoolArray, channels: IntArray, wanted: int) -> None:
        """Restore the most important of `channels`, with all that is tied to them, until `wanted` are kept."""
        if len(channels) - np.count_nonzero(removed[channels]) >= wanted:
            return
        numbers, copies = np.unique(channels[removed[channels]], return_counts=True)
        order = np.argsort(-self.rank[numbers], kind="stable")
        # How many are kept before each of them is restored; one number may stand for several of the channels.
        before = len(channels) - copies.sum() + np.cumsum(copies[order]) - copies[order]
        removed[numbers[order][before < wanted]] = False


def _rank_rows(rank: NDArray[Any], parts: list[IntArray], never: int) -> NDArray[Any]:
    """Give the least important channels of equal parts their mean rank, and the next ones theirs, and so on.

    Parts that must keep equally many channels, such as the groups of a convolution, would otherwise keep as many as
    the part in which most are important. The rank `never` is that of a fixed channel, and holds those beside it, too.
    """
    numbers = [np.unique(part) for part in parts]
    if len({len(part) for part in numbers}) > 1 or all(np.array_equal(part, numbers[0]) for part in numbers):
        return rank
    ranked = rank.astype(np.float64)
    rows = np.stack([part[np.argsort(rank[part], kind="stable")] for part in numbers])
    ranked[rows] = np.where((rank[rows] >= never).any(0), never, rank[rows].mean(0))
    return ranked


def minimum_counts(segments: list[Segment], originals: list[Segment], min_keep_ratio: float) -> list[int]:
    """Return how many channels each segment keeps at least: a fraction of its channels in the original network."""
    counts: dict[str, list[int]] = {}
    for segment in reversed(originals):
        counts.setdefault(segment.layer, []).append(len(segment.channels))
    minimum = []
    for segment in segments:
        if not counts.get(segment.layer):
            raise ValueError(f"the original network has no layer {segment.layer} to compare with")
        # A split has several segments, in the same order in both networks.
        minimum.append(max(1, ceil(exact_fraction(min_keep_ratio) * counts[segment.layer].pop())))
    return minimum


def exact_fraction(value: float) -> Fraction:
    """Return the decimal number as written: 0.29 of 100 channels is 29, though 0.29 * 100 < 29 in binary."""
    return Fraction(str(float(value)))


def _rank_channels(
    graph: ChannelGraph, scores: Scores, named: Mapping[str, float]
) -> tuple[IntArray, NDArray[np.float64]]:
    """Return the rank of each channel number in the order of removal, and the sorted scores of all N channels.

    Tied channels share the rank of their most important member; a fixed channel comes after all. In a layer with a
    ratio of its own, that fraction of the channels comes before all others (rank -1), and the rest after all.
    """
    ids = np.concatenate([ids for _, ids in prunable_outputs(graph)])
    values = np.concatenate([scores[name] for name in graph.prunable])
    sizes = [len(ids) for _, ids in prunable_outputs(graph)]
    own = np.repeat([name in named for name in graph.prunable], sizes)
    free = ~graph.fixed[ids] & ~own
    ids, values = ids[free], values[free]
    order = np.argsort(values, kind="stable")
    rank = np.where(graph.fixed, len(values), _UNRANKED)
    np.maximum.at(rank, ids[order], np.arange(len(values)))
    for name, ratio in named.items():
        least = floor(exact_fraction(ratio) * len(scores[name]))
        positions = np.where(_positions(scores[name]) < least, -1, len(values))
        np.maximum.at(rank, graph.layers[name].outputs, positions)
    # Numbers that no batch norm ranks are aliases of a tied channel; they are never looked up.
    return np.where(rank == _UNRANKED, len(values), rank), values[order]


def _positions(values: NDArray[np.float64]) -> IntArray:
    """Return the position of each value in ascending order."""
    return values.argsort(kind="stable").argsort(kind="stable")
