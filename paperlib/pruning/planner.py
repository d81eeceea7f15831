"""Which channels are removed: a global threshold, limited by ties and by a floor (Section 3.1, Algorithm 1).

The paper ranks all gammas and removes those under a threshold. It leaves some questions open, which are settled here: N
counts every prunable batch norm channel; tied channels are removed only together; layers and parts of splits keep a
minimum ratio of their channels. Blocks are removed before channels, and N counts the channels that remain then.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from math import floor
from numbers import Real
from typing import Any

import numpy as np
from torch import nn

from paperlib.costs import kernel_positions
from paperlib.pruning.budget import CostModel, fewest_candidates
from paperlib.pruning.channel_graph import (
    BoolArray,
    ChannelGraph,
    Segment,
    explain_unprunable,
    trace_channels,
)
from paperlib.pruning.criteria import Criterion, describe_importance, score_channels
from paperlib.pruning.importance import LAYERWISE, Batches, Scores
from paperlib.pruning.layer_names import match_layers, name_layers, spread_values
from paperlib.pruning.layers import least_important_blocks, make_bypasses, without_blocks
from paperlib.pruning.partners import merge_partners, name_by_original
from paperlib.pruning.plan import LayerStatistics, PruningPlan, prunable_outputs
from paperlib.pruning.ranking import Ranking, exact_fraction, minimum_counts
from paperlib.pruning.tracing import unwrap

Ratios = Mapping[str, float] | Mapping[nn.Module, float]
Counts = Mapping[str, int] | Mapping[nn.Module, int]


def plan_pruning(
    detector: nn.Module,
    ratio: float | Ratios | None = None,
    *,
    size_mb: float | None = None,
    gmacs: float | None = None,
    channels: int | None = None,
    layers: int = 0,
    importance: str | Criterion = "gamma",
    calibration: Batches | None = None,
    min_keep_ratio: float = 0.1,
    original: nn.Module | None = None,
    round_to: int = 1,
    image_size: int = 800,
    example_inputs: Any = None,
    ratios: Ratios | None = None,
    min_keep: Counts | None = None,
    ignore: Collection[str | nn.Module] = (),
    keep_floor: float | None = None,
) -> PruningPlan:
    """Plan the removal of the least important blocks and channels (Section 3.1; Algorithm 1, lines 12-14).

    Of all N prunable channels the floor(ratio * N) least important are candidates, in a stable order, so that
    equal values cause no difficulty. Tied channels are removed only if all of them are candidates. If a target is
    given instead of the ratio, there are as few candidates as the target needs.

    Args:
        detector: any network that `trace_channels` can read.
        ratio: fraction of the prunable channels to remove, in [0, 1). Exactly one of this and the next three is given.
            A mapping is the same as `ratios`, with 0 for the layers that it does not name.
        size_mb: largest size of the pruned network (`Cost.size_mb`), without compensation; of an extended network, as
            it will be after fusion.
        gmacs: largest cost of one pass of it (`Cost.gmacs`), without compensation.
        channels: largest number of its prunable channels.
        layers: number of residual blocks to remove: those whose branch ends in the batch norm of the lowest mean
            |gamma|, whatever the criterion for channels (the paper's second contribution). With `ratio` 0 only they
            are removed.
        importance: `gamma`, `l1`, `fused`, `l1-layerwise`, `l2-layerwise`, `fpgm`, `hrank`, `taylor`, a name given to
            `register_importance`, `module:function`, or a function (see `score_channels`).
        calibration: batches `(images, targets)` for `taylor` and `hrank`; the other criteria take none.
        min_keep_ratio: fraction of their channels, in [0, 1], that convolutions and parts of splits keep at least;
            one channel is always kept.
        original: the network whose channel counts `min_keep_ratio` refers to, with or without partners; by default
            `detector`. Repeated pruning needs it: a tenth of a tenth is a hundredth.
        round_to: the number of kept channels of each of them is rounded up to a multiple of this, or to all.
        image_size: side in pixels of the square image for which multiply-accumulates are counted.
            Where the network does not accept it, a plan by ratio, size or channels has no costs.
        example_inputs: a tensor, or a tuple of arguments, for a network that takes anything else than one square image.
        ratios: fractions for single layers, each of which loses its own least important channels; the target counts
            only the others. A key is the name of a convolution, or of a module that contains some, or a glob for either
            (`layer1.*`), or the module itself. Of several that name a layer, the last decides.
        min_keep: numbers of channels that single layers keep at least; keys as in `ratios`.
        ignore: such names of layers that keep all their channels.
        keep_floor: the former name of `min_keep_ratio`.

    Raises:
        ValueError: an argument is out of its range; the target cannot be reached (the message names the least cost
            that can); nothing in the network can be pruned; or `original` lacks one of its layers.
    """
    if isinstance(ratio, Mapping):
        ratio, ratios = 0.0, dict[Any, float](ratio) | dict(ratios or {})
    target = _single_target(ratio=ratio, size_mb=size_mb, gmacs=gmacs, channels=channels)
    planner = Planner(
        detector, layers=layers, importance=importance, calibration=calibration, min_keep_ratio=min_keep_ratio,
        original=original, round_to=round_to, image_size=image_size, example_inputs=example_inputs, ratios=ratios,
        min_keep=min_keep, ignore=ignore, keep_floor=keep_floor,
    )  # fmt: skip
    return planner.make_plan(*target)


def plan_ratios(detector: nn.Module, ratios: Iterable[float], **options: Any) -> list[PruningPlan]:
    """Return the plan of `plan_pruning` for each ratio; the network is traced and scored only once.

    Args:
        detector: as for `plan_pruning`.
        ratios: fractions of the prunable channels to remove, each in [0, 1).
        options: the other arguments of `plan_pruning`, except the targets.

    Raises:
        ValueError: as `plan_pruning`.
    """
    targets = [_single_target(ratio=ratio) for ratio in ratios]
    planner = Planner(detector, **options)
    return [planner.make_plan(*target) for target in targets]


class Planner:
    """What all plans for one network have in common (arguments as for `plan_pruning`)."""

    def __init__(
        self, detector: nn.Module, *, layers: int = 0, importance: str | Criterion = "gamma",
        calibration: Batches | None = None,
        min_keep_ratio: float = 0.1, original: nn.Module | None = None, round_to: int = 1, image_size: int = 800,
        example_inputs: Any = None, ratios: Ratios | None = None,
        min_keep: Counts | None = None, ignore: Collection[str | nn.Module] = (), keep_floor: float | None = None,
    ) -> None:  # fmt: skip
        if keep_floor is not None:
            min_keep_ratio = keep_floor
        detector, original = unwrap(detector), original if original is None else unwrap(original)
        ratios, min_keep = name_layers(ratios, detector, "ratios"), name_layers(min_keep, detector, "min_keep")
        ignored = name_layers(ignore, detector, "ignore")
        if not isinstance(min_keep_ratio, Real) or not 0 <= min_keep_ratio <= 1:
            raise ValueError(f"min_keep_ratio {min_keep_ratio} is not in [0, 1]")
        if not isinstance(round_to, Real) or round_to != int(round_to) or round_to < 1:
            raise ValueError(f"round_to {round_to} is not a whole number ≥ 1")
        self.importance = describe_importance(importance)
        self.blocks = least_important_blocks(detector, layers)
        # The network that channels are removed from: `detector` without the removed blocks.
        base = without_blocks(detector, make_bypasses(detector, self.blocks, shifted=False))
        full_graph = _without_layers(trace_channels(detector, example_inputs), ignored)
        self.graph = _without_layers(trace_channels(base, example_inputs), ignored) if self.blocks else full_graph
        if not self.graph.prunable and ignored and trace_channels(base, example_inputs).prunable:
            raise ValueError("ignore: names every convolution that could be pruned")
        if not self.graph.prunable:
            raise ValueError(explain_unprunable(base, self.graph))
        prunable, norms = full_graph.prunable | self.graph.prunable, full_graph.norms | self.graph.norms
        scores = score_channels(importance, detector, prunable, calibration, norms)
        counted, self.scores = merge_partners(detector, self.graph, scores)
        segments = name_by_original(detector, counted.segments)
        originals = segments
        if original is not None:
            originals = name_by_original(original, trace_channels(original, example_inputs).segments)
        minimum = minimum_counts(segments, originals, min_keep_ratio)
        _raise_minimum(minimum, counted.segments, _checked_counts(min_keep, counted))
        self.ranking = Ranking(counted, self.scores, minimum, round_to, _checked_ratios(ratios, counted))
        self.unknown_costs: ValueError | None = None
        try:
            positions = kernel_positions(detector, image_size, example_inputs)
        except ValueError as error:
            positions, self.unknown_costs = {}, error
        self.costs = CostModel(base, self.graph, positions, image_size)
        costs_before = CostModel(detector, full_graph, positions, image_size) if self.blocks else self.costs
        nothing = np.zeros_like(full_graph.fixed)
        self.cost_before = costs_before.total_cost(nothing)
        self.layer_costs_before = costs_before.layer_costs(nothing)
        self.quantiles = _find_quantiles(self.scores)

    def make_plan(self, target: str, value: float) -> PruningPlan:
        """Plan for a target by name (`ratio`, `size_mb`, `gmacs` or `channels`) and its value."""
        ranking, notes = self.ranking, self.graph.notes
        if self.unknown_costs and target == "gmacs":
            raise self.unknown_costs
        if self.unknown_costs:
            notes = [*notes, f"multiply-accumulates are not known ({self.unknown_costs}); give example_inputs"]
        candidates = self._count_candidates(target, value)
        floored = ranking.apply_floor(candidates)
        removed = ranking.apply_rounding(floored)
        if candidates and not removed.any():
            notes = ["no channel goes: ties, rounding or min_keep_ratio keep the least important ones", *notes]
        return PruningPlan(
            kept={name: np.flatnonzero(~removed[ids]).tolist() for name, ids in prunable_outputs(self.graph)},
            threshold=ranking.threshold(candidates),
            ratio=float(value) if target == "ratio" and not ranking.named else ranking.share(candidates),
            importance=self.importance,
            blocks=self.blocks,
            layers=self._layer_statistics(ranking.held_layers(candidates, floored), removed),
            cost_before=None if self.unknown_costs else self.cost_before,
            cost_after=None if self.unknown_costs else self.costs.total_cost(removed),
            notes=[*ranking.write_notes(candidates, by_ratio=target == "ratio"), *notes],
        )

    def _count_candidates(self, target: str, value: float) -> int:
        """Return how many of the least important channels are candidates under a target."""
        ranking = self.ranking
        if target == "ratio" and self.importance in LAYERWISE:
            # Their scores are ranks over n, so this is the floor of ratio * n in every layer.
            return int(np.count_nonzero(ranking.values <= value))
        if target == "ratio":
            return floor(exact_fraction(value) * ranking.count)

        def reached_value(candidates: int) -> float:
            removed = ranking.apply_rounding(ranking.apply_floor(candidates))
            if target == "channels":
                return ranking.count_kept(removed)
            return getattr(self.costs.total_cost(removed), target)

        return fewest_candidates(reached_value, value, ranking.count - 1, target)

    def _layer_statistics(self, held: set[str], removed: BoolArray) -> dict[str, LayerStatistics]:
        after = self.costs.layer_costs(removed)
        found = {}
        for name, quantiles in self.quantiles.items():
            # Convolutions in removed blocks have no cost after pruning.
            parameters, macs = after.get(name, (0, 0))
            parameters_before, macs_before = self.layer_costs_before[name]
            low, lower, median, upper, high = quantiles
            found[name] = LayerStatistics(
                len(self.scores[name]), low, lower, median, upper, high, name in held,
                parameters_before - parameters, macs_before - macs,
            )  # fmt: skip
        return found


def _find_quantiles(scores: Scores) -> dict[str, list[float]]:
    """Return minimum, quartiles and maximum of the scores of each layer; layers of one size are computed together."""
    sizes: dict[int, list[str]] = {}
    for name, values in scores.items():
        sizes.setdefault(len(values), []).append(name)
    found: dict[str, list[float]] = {}
    for names in sizes.values():
        table = np.quantile(np.stack([scores[name] for name in names]), [0, 0.25, 0.5, 0.75, 1], axis=1)
        found |= zip(names, table.T.tolist(), strict=True)
    return {name: found[name] for name in scores}


def _without_layers(graph: ChannelGraph, ignore: Collection[str]) -> ChannelGraph:
    """Return the graph in which the convolutions of these names, or inside modules of these names, are not prunable.

    Raises:
        ValueError: a name is that of no convolution with channels, and of no module that contains one.
    """
    fixed = graph.fixed.copy()
    for name in ignore:
        for layer in match_layers(name, graph.layers, "ignore"):
            fixed[graph.layers[layer].outputs] = True
    prunable = {name: norm for name, norm in graph.prunable.items() if not fixed[graph.layers[name].outputs].all()}
    segments = [s for s in graph.segments if s.layer in prunable or s.layer not in graph.prunable]
    return dataclasses.replace(graph, fixed=fixed, prunable=prunable, segments=segments)


def _checked_ratios(ratios: Mapping[str, float], graph: ChannelGraph) -> dict[str, float]:
    """Return the ratio of each layer that has one of its own."""
    for name, ratio in ratios.items():
        if not isinstance(ratio, Real) or not 0 <= ratio < 1:
            raise ValueError(f"ratios: {ratio} of {name} is not in [0, 1)")
    return spread_values(ratios, graph.layers, graph.prunable, "ratios")


def _checked_counts(min_keep: Mapping[str, int], graph: ChannelGraph) -> dict[str, int]:
    """Return the least number of kept channels of each layer that has one of its own."""
    for name, count in min_keep.items():
        if not isinstance(count, Real) or count != int(count) or count < 1:
            raise ValueError(f"min_keep: {count} of {name} is not a whole number ≥ 1")
    return spread_values(min_keep, graph.layers, graph.prunable, "min_keep")


def _raise_minimum(minimum: list[int], segments: list[Segment], counts: Mapping[str, int]) -> None:
    """Raise the numbers of channels that layers keep at least, in place, but not above all of them."""
    for i, segment in enumerate(segments):
        wanted = min(counts.get(segment.layer, 0), len(segment.channels))
        minimum[i] = max(minimum[i], wanted)


def _single_target(**targets: float | None) -> tuple[str, float]:
    """Return name and value of the only target that is given."""
    given = [(name, value) for name, value in targets.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(name for name, _ in given) or "none"
        raise ValueError(f"exactly one of {', '.join(targets)} is needed, not {found}")
    name, value = given[0]
    if not isinstance(value, Real):
        raise ValueError(f"{name} {value!r} is not a number")
    if name == "ratio" and not 0 <= value < 1:
        raise ValueError(f"ratio {value} is not in [0, 1)")
    return name, value
