"""A plan: which channels and blocks of a network are removed, why, and what that saves (Section 3.1)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np
import pandas as pd

from paperlib.costs import Cost
from paperlib.pruning.channel_graph import BoolArray, ChannelGraph, IntArray


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one prunable convolution before pruning, and what the plan saves there.

    Attributes:
        total: its output channels before.
        minimum, lower_quartile, median, upper_quartile, maximum: quantiles of their importance.
        held_by_floor: whether the floor kept channels here that the threshold would have removed.
        parameters_saved: removed learnable values of the convolution and its batch norm, those of its lost inputs
            included.
        macs_saved: saved multiply-accumulates of the convolution.
    """

    total: int
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float
    held_by_floor: bool
    parameters_saved: int
    macs_saved: int


@dataclass(frozen=True, repr=False)
class PruningPlan:
    """Which output channels each convolution keeps, and which blocks are removed.

    Attributes:
        kept: name of each prunable convolution in `named_modules()` -> its kept output channels, ascending.
            In a plan made by hand, a convolution that is not named keeps all. Convolutions inside a removed block
            have no entry.
        threshold: importance of the least important channel that the ratio alone would keep.
        ratio: fraction of the prunable channels, without those of removed blocks, that were candidates.
        importance: name of the criterion.
        blocks: names of the residual blocks that are removed.
        layers: statistics of each convolution, in forward order.
        cost_before, cost_after: the network's cost before and after pruning, without compensation; None in a plan
            made by hand.
        notes: what a reader should know before pruning, one sentence each; printing the plan shows them.
        carriers: name of a convolution -> its carrier channels, which only an exact compensation keeps, numbered as
            after pruning (see `paperlib.pruning.surgery.find_carriers`).
    """

    kept: dict[str, list[int]]
    threshold: float
    ratio: float
    importance: str
    blocks: list[str] = field(default_factory=list)
    layers: dict[str, LayerStatistics] = field(default_factory=dict)
    cost_before: Cost | None = None
    cost_after: Cost | None = None
    notes: list[str] = field(default_factory=list)
    carriers: dict[str, list[int]] = field(default_factory=dict)

    @property
    def channels_kept(self) -> int:
        """Count the channels that are kept, over all layers of the plan; a convolution and its partner count once."""
        return sum(len(kept) for name, kept in self.kept.items() if not self.layers or name in self.layers)

    @property
    def channels_total(self) -> int:
        """Count the channels before pruning, over all layers of the plan, those in removed blocks included."""
        return sum(layer.total for layer in self.layers.values())

    def __repr__(self) -> str:
        head = f"PruningPlan({self.importance}, ratio {self.ratio:.4g}: keeps {self.channels_kept} channels"
        head += f" of {self.channels_total}" if self.layers else ""
        head += f", removes {len(self.blocks)} blocks" if self.blocks else ""
        if self.cost_before and self.cost_after:
            before, after = self.cost_before, self.cost_after
            head += f"; {before.size_mb:.4g} -> {after.size_mb:.4g} MB"
            head += f", {before.gmacs:.4g} -> {after.gmacs:.4g} GMACs at {before.image_size} pixels"
        return "\n".join([f"{head})", *(f"  note: {note}" for note in self.notes)])

    def summary(self) -> pd.DataFrame:
        """Return a table with one row per convolution: channels, quantiles of their importance, the floor, savings.

        The savings of layers that are not pruned themselves but lose inputs are counted only in `cost_after`.
        """
        rows = []
        for name, layer in self.layers.items():
            kept = len(self.kept.get(name, []))
            counts = {"layer": name, "total": layer.total, "kept": kept, "share_kept": kept / layer.total}
            rows.append({**counts, **asdict(layer)})
        statistics = [f.name for f in fields(LayerStatistics) if f.name != "total"]
        return pd.DataFrame(rows, columns=["layer", "total", "kept", "share_kept", *statistics])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make the plan that `to_dict` described."""
        layers = {name: LayerStatistics(**layer) for name, layer in data["layers"].items()}
        # A plan made by hand has no costs.
        costs = {key: data[key] and Cost(**data[key]) for key in ("cost_before", "cost_after")}
        return cls(**{**data, "layers": layers, **costs})


def removed_channels(graph: ChannelGraph, plan: PruningPlan) -> BoolArray:
    """Tell for each channel number whether `plan` removes it.

    Args:
        graph: the channels of the network without the plan's blocks.
        plan: the plan.

    Raises:
        ValueError: the plan names an unknown layer or channel, or one channel twice; empties a layer or part
            of a split; removes a channel that must be kept; or breaks a coupling.
    """
    removed = np.zeros_like(graph.fixed)
    kept = np.zeros_like(graph.fixed)
    for name in plan.kept:
        _check_kept(graph, name, plan)
    for name, ids in prunable_outputs(graph):
        # A convolution that a plan made by hand does not name keeps all its channels.
        is_kept = np.full(len(ids), name not in plan.kept)
        is_kept[plan.kept.get(name, [])] = True
        kept[ids[is_kept]] = True
        removed[ids[~is_kept]] = True
    _check_coupling(graph, kept, removed)
    for segment in graph.segments:
        if removed[segment.channels].all():
            raise ValueError(f"the plan leaves no channel in a part of {segment.layer}")
    for parts in graph.balanced:
        counts = {int((~removed[part]).sum()) for part in parts}
        if len(counts) > 1 or 0 in counts:
            names = sorted(name for name, ids in prunable_outputs(graph) if np.isin(ids, np.concatenate(parts)).any())
            raise ValueError(f"the plan does not keep equally many channels in the equal parts of {', '.join(names)}")
    return removed


def prunable_outputs(graph: ChannelGraph) -> Iterator[tuple[str, IntArray]]:
    """Yield each prunable convolution with the numbers of its output channels, in forward order."""
    for name in graph.prunable:
        yield name, graph.layers[name].outputs


def _check_kept(graph: ChannelGraph, name: str, plan: PruningPlan) -> None:
    kept = plan.kept[name]
    for block in plan.blocks:
        if name.startswith(f"{block}."):
            raise ValueError(f"the plan keeps channels of {name}, but removes the block {block} that contains it")
    if name not in graph.prunable:
        kind = "not a prunable convolution" if name in graph.layers else "not a layer of this network"
        raise ValueError(f"the plan names {name}, which is {kind}")
    count = len(graph.layers[name].outputs)
    if not kept:
        raise ValueError(f"the plan keeps no channel of {name}")
    if len(set(kept)) != len(kept):
        raise ValueError(f"the plan names a channel of {name} twice")
    if min(kept) < 0 or max(kept) >= count:
        channel = next(each for each in kept if not 0 <= each < count)
        raise ValueError(f"the plan keeps channel {channel} of {name}, which has {count}")


def _check_coupling(graph: ChannelGraph, kept: BoolArray, removed: BoolArray) -> None:
    # Tied channels have one number, so a number that is both kept and removed breaks a coupling.
    for number in np.flatnonzero(removed & (graph.fixed | kept)):
        names = sorted(name for name, ids in prunable_outputs(graph) if number in ids)
        if graph.fixed[number]:
            raise ValueError(f"the plan removes a channel of {', '.join(names)} that must be kept")
        raise ValueError(f"the plan keeps some and removes others of the tied channels of {', '.join(names)}")
