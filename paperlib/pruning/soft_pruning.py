"""Soft filter pruning (He et al. 2018): filters are set to 0 after each epoch, and may recover in the next one.

A rival of partner learning (BPL), and the way in which its authors' related code prunes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperlib.pruning.channel_graph import trace_channels
from paperlib.pruning.importance import CALIBRATED, IMPORTANCES, output_filters
from paperlib.pruning.planner import plan_pruning


class SoftPruning:
    """A regulariser for `fit` that sets to 0, after each epoch, the kernels of the filters that a plan would remove.

    Gradients are left alone, so that a filter may grow again until the next epoch ends and the choice is made afresh.
    After the training, `plan_pruning` with the same arguments removes the filters that are 0 then.

    Args:
        importance: criterion of the plan; one that needs no data.
        target: how far to prune, as for `plan_pruning`: `ratio`, `gmacs` with `image_size`, or another target.

    Raises:
        ValueError: a ratio of 0 or 1, which leaves nothing to choose; or an unknown criterion or one that needs data.
    """

    def __init__(self, importance: str = "l2-layerwise", **target: float) -> None:
        if not 0 < target.get("ratio", 0.5) < 1:
            raise ValueError(
                f"ratio {target['ratio']} is not between 0 and 1: soft pruning would remove nothing or all"
            )
        if importance not in IMPORTANCES or importance in CALIBRATED:
            known = ", ".join(name for name in IMPORTANCES if name not in CALIBRATED)
            raise ValueError(f"importance {importance!r} cannot be used for soft pruning; choose one of: {known}")
        self.importance, self.target = importance, target

    def before_step(self, module: nn.Module, learning_rate: float) -> None:
        """Do nothing: pruned filters have their gradients, with which they recover."""

    def after_step(self, module: nn.Module, learning_rate: float) -> None:
        """Do nothing until the epoch ends."""

    @torch.no_grad()
    def after_epoch(self, module: nn.Module) -> None:
        """Set the kernels of the least important filters to 0.

        Raises:
            ValueError: the target cannot be reached (see `plan_pruning`).
        """
        options: dict[str, Any] = self.target
        kept = plan_pruning(module, **options, importance=self.importance).kept
        graph = trace_channels(module)
        for name in graph.prunable:
            filters = output_filters(module, name)
            lost = torch.ones(len(filters), dtype=torch.bool, device=filters.device)
            lost[kept[name]] = False
            filters[lost] = 0.0
            # The mean of what such a filter emits is 0 now; so its batch norms emit beta, as surgery expects.
            for read in graph.norms[name]:
                mean = getattr(module.get_submodule(read.norm), "running_mean", None)
                if mean is not None:
                    mean[read.channels] = mean[read.channels].masked_fill(lost[read.outputs], 0.0)

    def penalty(self, module: nn.Module) -> Tensor:
        """Return 0: the loss has no further term."""
        return torch.zeros(())

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {"importance": self.importance, **self.target}
