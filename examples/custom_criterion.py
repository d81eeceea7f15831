"""Rank channels by a criterion of your own, and compare the plan with that of the paper's."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import paperlib as pl


def signal_to_noise(network: nn.Module, prunable: Mapping[str, str]) -> dict[str, Tensor]:
    """Score each channel by |gamma| / (|beta| + 0.1).

    Args:
        network: to be pruned.
        prunable: names of convolutions, each with the name of the batch norm behind it.

    Returns:
        For each convolution as many scores as it has channels; those with the lowest scores go first.
    """
    norms = {name: network.get_submodule(norm) for name, norm in prunable.items()}
    return {name: norm.weight.detach().abs() / (norm.bias.detach().abs() + 0.1) for name, norm in norms.items()}


torch.manual_seed(0)
detector = pl.build_detector("yolov4-tiny", num_classes=3, width=0.25)
for module in detector.modules():
    if isinstance(module, nn.BatchNorm2d):  # stands for a training
        module.weight.data.uniform_(0, 1)
        module.bias.data.normal_()

# The function can be given as it is; under a name it is recorded in plans and works as any other criterion.
pl.register_importance("signal-to-noise", signal_to_noise)
plans = {name: pl.plan_pruning(detector, 0.4, importance=name, image_size=96) for name in ("gamma", "signal-to-noise")}
for name, plan in plans.items():
    print(f"{name}: {plan.channels_kept} of {plan.channels_total} channels kept")
kept = [{(layer, int(c)) for layer, chosen in plan.kept.items() for c in chosen} for plan in plans.values()]
print(f"kept by both: {len(kept[0] & kept[1])}")
