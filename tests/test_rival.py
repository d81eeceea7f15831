"""Torch-Pruning 1.6.1, given the same channels to keep, makes a network with the same outputs, where it can prune."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from test_layers import Darknet, ResNet
from test_surgery import SIDE, TOLERANCE, Branches, Shortcuts, gap, outputs_of, randomise
from torch import nn

from paperlib.detectors import build_detector
from paperlib.pruning import PruningPlan, apply_plan, plan_pruning, trace_channels
from paperlib.structure import describe_structure

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_pruning


def tiny(name: str) -> Callable[[], nn.Module]:
    """The detector of that name, narrow and shallow."""
    depth = {} if name == "yolov4-tiny" else {"depth": 0.25}
    return lambda: build_detector(name, 3, width=0.1, **depth)


CAN_PRUNE = [Shortcuts, Darknet, ResNet, *map(tiny, ("yolov3", "yolov3-spp", "yolov4", "centernet-resnet50"))]
CANNOT_PRUNE = [Branches, tiny("yolov4-tiny")]
"""For their channel splits: Torch-Pruning does not change the sizes that `torch.split` is told."""


def by_torch_pruning(net: nn.Module, plan: PruningPlan) -> nn.Module:
    """A copy of `net` that keeps the channels of `plan`, cut by Torch-Pruning's dependency graph."""
    pruned, graph = copy.deepcopy(net), trace_channels(net)
    method = getattr(net, "traced_method", "forward")
    dependencies = torch_pruning.DependencyGraph().build_dependency(
        pruned, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64), forward_fn=lambda m, x: getattr(m, method)(x)
    )
    done: set[int] = set()
    for name, kept in plan.kept.items():
        outputs = graph.layers[name].outputs
        gone = sorted(set(range(len(outputs))) - set(kept))
        if gone and outputs[gone[0]] not in done:  # otherwise tied to one that is cut already
            cut = torch_pruning.prune_conv_out_channels
            dependencies.get_pruning_group(pruned.get_submodule(name), cut, idxs=gone).prune()
            done.update(outputs[gone].tolist())
    return pruned


@pytest.mark.parametrize("make", CAN_PRUNE)
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_both_make_the_same_network_of_the_same_plan(make: Callable[[], nn.Module], ratio: float) -> None:
    net = randomise(make(), 0)
    plan = plan_pruning(net, ratio, image_size=SIDE)
    ours, theirs = apply_plan(net, plan, compensate="off"), by_torch_pruning(net, plan)
    assert describe_structure(ours) == describe_structure(theirs)
    assert gap(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("make", CANNOT_PRUNE)
def test_torch_pruning_cannot_prune_through_a_split(make: Callable[[], nn.Module]) -> None:
    net = randomise(make(), 0)
    pruned = by_torch_pruning(net, plan_pruning(net, 0.5, image_size=SIDE))
    with pytest.raises(RuntimeError, match="split_with_sizes expects split_sizes to sum exactly"):
        outputs_of(pruned)
