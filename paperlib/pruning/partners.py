"""Pruning a network that trains with partners (BPL): a convolution and its partners are one layer to a plan."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from torch import nn

from paperlib.pairs import find_partners
from paperlib.pruning.channel_graph import ChannelGraph, Segment
from paperlib.pruning.importance import Scores


def merge_partners(module: nn.Module, graph: ChannelGraph, scores: Scores) -> tuple[ChannelGraph, Scores]:
    """Leave partners out of the prunable layers, and give each original the largest of their scores.

    Outputs that are added have the same channel numbers, so what is decided for an original holds for its partner. A
    partner that has not learnt yet has gamma' = 0, and must not make its original look unimportant.

    Args:
        module: the network, which may have removable blocks that `graph` lacks.
        graph: its channels.
        scores: of all its prunable convolutions.
    """
    merged = dict(scores)
    for name, pair in find_partners(module).items():
        for partner in (f"{name}.{partner}" for partner in pair.partner_names):
            if partner in merged:
                merged[f"{name}.conv"] = np.maximum(merged[f"{name}.conv"], merged.pop(partner))
    left_out = scores.keys() - merged.keys()
    prunable = {name: norm for name, norm in graph.prunable.items() if name not in left_out}
    segments = [segment for segment in graph.segments if segment.layer not in left_out]
    return dataclasses.replace(graph, prunable=prunable, segments=segments), merged


def name_by_original(module: nn.Module, segments: Iterable[Segment]) -> list[Segment]:
    """Return the segments of an extended network with the names that its layers have when it is not extended."""
    names = {f"{name}.conv": name for name in find_partners(module)}
    return [dataclasses.replace(each, layer=names.get(each.layer, each.layer)) for each in segments]
