"""Which channels go: a global threshold, held back by what is tied and by a floor (Section 3.1, Algorithm 1).

The paper ranks all gammas and cuts under a threshold. What it leaves open is settled here: N counts every
prunable batch norm channel; tied channels go only together; layers and parts of splits keep a share. Blocks go
before channels, and N counts what is left.
"""

from collections.abc import Iterable
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from paperlib.costs import kernel_positions
from paperlib.pruning.budget import CostModel, fewest_candidates
from paperlib.pruning.channel_graph import BoolArray, ChannelGraph, IntArray, Segment, trace_channels
from paperlib.pruning.importance import Batches, Scores, score_channels
from paperlib.pruning.layers import least_important_blocks, make_bypasses, without_blocks
from paperlib.pruning.plan import LayerStatistics, PruningPlan, prunable_outputs


def plan_pruning(
    detector: nn.Module,
    ratio: float | None = None,
    *,
    size_mb: float | None = None,
    gmacs: float | None = None,
    channels: int | None = None,
    layers: int = 0,
    importance: str = "gamma",
    calibration: Batches | None = None,
    keep_floor: float = 0.1,
    original: nn.Module | None = None,
    round_to: int = 1,
    image_size: int = 800,
) -> PruningPlan:
    """Plan the removal of the least important blocks and channels (Section 3.1; Algorithm 1, lines 12-14).

    Of all N prunable channels the floor(ratio * N) least important are candidates, in a stable order, so that
    equal values never stand in the way. Tied channels go only if all of them are candidates. With a target in place
    of the ratio, as few are candidates as it takes to reach it.

    Args:
        detector: any network that `trace_channels` can read.
        ratio: share of the prunable channels to remove, in [0, 1). Exactly one of this and the next three is given.
        size_mb: what the pruned network may weigh at most (`Cost.size_mb`), compensation apart.
        gmacs: what one pass of it may cost at most (`Cost.gmacs`), compensation apart.
        channels: how many prunable channels it may have at most.
        layers: number of residual blocks to remove: those whose branch ends in the batch norm of the lowest mean
            |gamma|, whatever the criterion for channels (the paper's second contribution). With `ratio` 0 nothing
            else goes.
        importance: `gamma`, `l1`, `l1-layerwise` or `taylor`.
        calibration: batches `(images, targets)` for `taylor`; the others take none.
        keep_floor: share, in [0, 1], which convolutions and parts of splits keep; one channel at least.
        original: the network whose channels `keep_floor` is a share of; by default `detector`. One that is pruned
            again and again needs it: a tenth of a tenth is a hundredth.
        round_to: the kept channels of each of them are rounded up to a multiple of this, or to all.
        image_size: side in pixels of the square image that multiply-accumulates are counted for.

    Raises:
        ValueError: an argument is out of its range; the target cannot be reached, with the least that can be;
            nothing in the network can be pruned; or `original` lacks one of its layers.
    """
    target = _the_target(ratio=ratio, size_mb=size_mb, gmacs=gmacs, channels=channels)
    planner = Planner(
        detector, layers=layers, importance=importance, calibration=calibration,
        keep_floor=keep_floor, original=original, round_to=round_to, image_size=image_size,
    )  # fmt: skip
    return planner.plan(_candidates(planner.ranking, planner.costs, *target), ratio)


def plan_ratios(detector: nn.Module, ratios: Iterable[float], **choices: Any) -> list[PruningPlan]:
    """What `plan_pruning` gives for each ratio, traced and scored once for all.

    Args:
        detector: as for `plan_pruning`.
        ratios: shares of the prunable channels to remove, each in [0, 1).
        choices: what else `plan_pruning` takes, the other targets apart.

    Raises:
        ValueError: as `plan_pruning`.
    """
    targets = [_the_target(ratio=ratio) for ratio in ratios]
    planner = Planner(detector, **choices)
    return [planner.plan(_candidates(planner.ranking, planner.costs, *target), target[1]) for target in targets]


class Planner:
    """All that plans for one network have in common (arguments as for `plan_pruning`)."""

    def __init__(
        self, detector: nn.Module, *, layers: int = 0, importance: str = "gamma", calibration: Batches | None = None,
        keep_floor: float = 0.1, original: nn.Module | None = None, round_to: int = 1, image_size: int = 800,
    ) -> None:  # fmt: skip
        _check_settings(keep_floor, round_to)
        self.importance = importance
        self.blocks = least_important_blocks(detector, layers)
        whole = without_blocks(detector, make_bypasses(detector, self.blocks, shifted=False))
        self.everything = trace_channels(detector)
        self.graph = trace_channels(whole) if self.blocks else self.everything
        if not self.graph.prunable:
            raise ValueError(f"{type(detector).__name__} has no prunable channel: no convolution with a batch norm")
        self.scores = score_channels(importance, detector, self.everything.prunable | self.graph.prunable, calibration)
        whole_segments = self.graph.segments if original is None else trace_channels(original).segments
        floors = _floors(self.graph.segments, whole_segments, keep_floor)
        self.ranking = Ranking(self.graph, self.scores, floors, round_to)
        places = kernel_positions(detector, image_size)
        self.present = CostModel(detector, self.everything, places, image_size)
        self.costs = CostModel(whole, self.graph, places, image_size) if self.blocks else self.present

    def plan(self, candidates: int, ratio: float | None) -> PruningPlan:
        """The plan for so many candidates, which `ratio` asked for, or a target if that is None."""
        ranking = self.ranking
        floored = ranking.floored(candidates)
        removed, nothing = ranking.rounded(floored), np.zeros_like(self.everything.fixed)
        held = ranking.held(candidates, floored)
        before, after = self.present.by_layer(nothing), self.costs.by_layer(removed)
        return PruningPlan(
            kept={name: np.flatnonzero(~removed[ids]).tolist() for name, ids in prunable_outputs(self.graph)},
            threshold=float(ranking.values[candidates]),
            ratio=candidates / ranking.count if ratio is None else float(ratio),
            importance=self.importance,
            blocks=self.blocks,
            layers=_statistics(self.scores, held, before, after),
            cost_before=self.present.of(nothing),
            cost_after=self.costs.of(removed),
            notes=ranking.notes(candidates, asked=ratio is not None),
        )


class Ranking:
    """The prunable channels of a network in the order of their removal, and what holds them back.

    Attributes:
        values: importance of all N prunable channels, ascending.
        count: N.
    """

    def __init__(self, graph: ChannelGraph, scores: Scores, floors: list[int], round_to: int) -> None:
        self.graph, self.floors, self.round_to = graph, floors, round_to
        self.rank, self.values = _rank(graph, scores)
        self.count = len(self.values)

    def floored(self, candidates: int) -> BoolArray:
        """For each channel number, whether ties and the floor let it go when so many channels are candidates."""
        removed = self.rank < candidates
        for segment, floor_here in zip(self.graph.segments, self.floors, strict=True):
            _restore(removed, self.rank, segment.channels, floor_here)
        return removed

    def rounded(self, floored: BoolArray) -> BoolArray:
        """For each channel number, whether it goes once kept counts are rounded up, too."""
        removed = floored.copy()
        if self.round_to > 1:
            _round_up(removed, self.rank, self.graph, self.round_to)
        return removed

    def held(self, candidates: int, floored: BoolArray) -> set[str]:
        """Convolutions in which the floor keeps candidates that nothing else would."""
        under = self.rank < candidates
        return {name for name, ids in prunable_outputs(self.graph) if (floored[ids] != under[ids]).any()}

    def notes(self, candidates: int, *, asked: bool) -> list[str]:
        """What was asked for and cannot be had; `asked`, if it was this number of candidates."""
        under = self.rank < candidates
        whole = [name for name, ids in prunable_outputs(self.graph) if under[ids].all()]
        found = []
        if whole:
            layers = whole[0] if len(whole) == 1 else f"{len(whole)} layers"
            names = f" ({', '.join(whole[:3])}{', ...' if len(whole) > 3 else ''})" if len(whole) > 1 else ""
            found.append(f"every channel of {layers}{names} was to go; the floor keeps a share of each")
        if asked and candidates > (limit := self._most()):
            found.append(f"{candidates} of {self.count} channels were to go; the floor lets {limit} go at most")
        return found

    def left(self, removed: BoolArray) -> int:
        """How many prunable channels stay without the channel numbers at `removed`."""
        return sum(int((~removed[ids]).sum()) for _, ids in prunable_outputs(self.graph))

    def _most(self) -> int:
        """How many channels go if all are candidates."""
        total = sum(len(ids) for _, ids in prunable_outputs(self.graph))
        return total - self.left(self.rounded(self.floored(self.count)))


def _the_target(**targets: float | None) -> tuple[str, float]:
    """The one target that is given, by name."""
    given = [(name, value) for name, value in targets.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(name for name, _ in given) or "none"
        raise ValueError(f"exactly one of {', '.join(targets)} is needed, not {found}")
    name, value = given[0]
    if name == "ratio" and not 0 <= value < 1:
        raise ValueError(f"ratio {value} is not in [0, 1)")
    return name, value


def _candidates(ranking: Ranking, costs: CostModel, target: str, value: float) -> int:
    """How many of the least important channels a target makes candidates."""
    if target == "ratio":
        return floor(_exact(value) * ranking.count)

    def reached(count: int) -> float:
        removed = ranking.rounded(ranking.floored(count))
        return ranking.left(removed) if target == "channels" else getattr(costs.of(removed), target)

    return fewest_candidates(reached, value, ranking.count - 1, target)


def _check_settings(keep_floor: float, round_to: int) -> None:
    if not 0 <= keep_floor <= 1:
        raise ValueError(f"keep_floor {keep_floor} is not in [0, 1]")
    if round_to != int(round_to) or round_to < 1:
        raise ValueError(f"round_to {round_to} is not a whole number of at least 1")


def _floors(segments: list[Segment], originals: list[Segment], keep_floor: float) -> list[int]:
    """How many channels each segment keeps at least: a share of what it had in the original network."""
    counts: dict[str, list[int]] = {}
    for segment in reversed(originals):
        counts.setdefault(segment.layer, []).append(len(segment.channels))
    if strange := next((s.layer for s in segments if not counts.get(s.layer)), None):
        raise ValueError(f"the original network has no layer {strange} to compare with")
    return [max(1, ceil(_exact(keep_floor) * counts[segment.layer].pop())) for segment in segments]


def _exact(share: float) -> Fraction:
    """The decimal number that was written: 0.29 of 100 channels is 29, though 0.29 * 100 < 29 in binary."""
    return Fraction(str(float(share)))


def _rank(graph: ChannelGraph, scores: Scores) -> tuple[IntArray, NDArray[np.float64]]:
    """Each channel number's place in the order of removal, and the sorted scores of all N channels.

    Tied channels share the place of their most important member; a fixed channel comes after all.
    """
    ids = np.concatenate([ids for _, ids in prunable_outputs(graph)])
    values = np.concatenate([scores[name] for name in graph.prunable])
    ids, values = ids[~graph.fixed[ids]], values[~graph.fixed[ids]]
    order = np.argsort(values, kind="stable")
    rank = np.where(graph.fixed, len(values), -1)
    np.maximum.at(rank, ids[order], np.arange(len(values)))
    # Numbers that no batch norm ranks are aliases of a tied channel; they are never looked up.
    return np.where(rank < 0, len(values), rank), values[order]


def _restore(removed: BoolArray, rank: IntArray, channels: IntArray, wanted: int) -> None:
    """Bring back the most important of `channels`, with all that is tied to them, until `wanted` are kept."""
    if len(channels) - np.count_nonzero(removed[channels]) >= wanted:
        return
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


def _statistics(
    scores: Scores, held: set[str], before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]
) -> dict[str, LayerStatistics]:
    """One entry for each scored convolution; of `after`, those in removed blocks are missing."""
    found = {}
    for name, values in scores.items():
        saved = np.subtract(before[name], after.get(name, (0, 0))).tolist()
        quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
        found[name] = LayerStatistics(len(values), *quantiles, name in held, *saved)
    return found
