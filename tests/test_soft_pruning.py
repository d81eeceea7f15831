"""Soft filter pruning: after each epoch the filters of the plan are 0, and in between all of them learn."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from paperlib.pruning import SoftPruning, apply_plan, plan_pruning
from paperlib.training.loop import fit


def dead_filters(module: nn.Module, plan_of: nn.Module) -> dict[str, list[int]]:
    """Return per convolution that a plan names the filters that are 0."""
    kept = plan_pruning(plan_of, 0.5, importance="l2-layerwise").kept
    kernels = {name: module.get_parameter(f"{name}.weight").flatten(1) for name in kept}
    return {name: (kernel == 0).all(1).nonzero().flatten().tolist() for name, kernel in kernels.items()}


class Watch(SoftPruning):
    """Soft pruning that counts, at each step, the filters which are 0."""

    def __init__(self) -> None:
        super().__init__(ratio=0.5)
        self.steps: list[int] = []
        self.epochs: list[dict[str, list[int]]] = []

    def after_step(self, module: nn.Module, learning_rate: float) -> None:
        self.steps.append(sum(map(len, dead_filters(module, module).values())))

    def after_epoch(self, module: nn.Module) -> None:
        super().after_epoch(module)
        self.epochs.append(dead_filters(module, module))


def test_filters_are_zero_after_each_epoch_recover_in_the_next_and_end_as_the_plan_says(tmp_path: Path) -> None:
    detector, watch = tiny.detector(width=0.25), Watch()
    fit(detector, tiny.dataset(), tiny.recipe(epochs=3, batch_size=4), regulariser=watch, folder=tmp_path)
    assert watch.steps == [0] * 6
    assert all(sum(map(len, dead.values())) > 100 for dead in watch.epochs)
    plan = plan_pruning(detector, 0.5, importance="l2-layerwise")
    for name, dead in dead_filters(detector, detector).items():
        kernel = detector.get_parameter(f"{name}.weight")
        assert sorted([*plan.kept[name], *dead]) == list(range(len(kernel)))
    # What is 0 emits a constant, which the surgery keeps.
    cut = apply_plan(detector, plan, compensate="exact")
    images = torch.rand(2, 3, tiny.SIDE, tiny.SIDE)
    with torch.no_grad():
        outputs = [_head_outputs(net, images) for net in (detector, cut)]
    for whole, small in zip(*outputs, strict=True):
        torch.testing.assert_close(whole, small, rtol=1e-3, atol=1e-4)


def _head_outputs(detector: Any, images: Tensor) -> list[Tensor]:
    return detector.eval().head_outputs(images)


def test_the_running_mean_is_pruned_too(tmp_path: Path) -> None:
    detector = tiny.detector(width=0.25)
    fit(detector, tiny.dataset(), tiny.recipe(ema=0.5), regulariser=SoftPruning(ratio=0.5), folder=tmp_path)
    assert sum(map(len, dead_filters(detector, detector).values())) > 100


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5])
def test_a_ratio_that_leaves_no_choice_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"ratio {ratio} is not between 0 and 1"):
        SoftPruning(ratio=ratio)
    with pytest.raises(ValueError, match="importance 'hrank' cannot be used for soft pruning; choose one of: gamma"):
        SoftPruning("hrank", ratio=0.5)
