"""Sparse channel pruning (Section 3.1) of any `nn.Module`: sparse training, a plan, and the surgery."""

from paperlib.pruning.channel_graph import ChannelGraph, Layer, Segment, trace_channels
from paperlib.pruning.criteria import register_importance, score_channels
from paperlib.pruning.gamma_rescaling import rescale_gamma_
from paperlib.pruning.importance import IMPORTANCES
from paperlib.pruning.layers import Block, removable_blocks
from paperlib.pruning.plan import LayerStatistics, PruningPlan, removed_channels
from paperlib.pruning.planner import plan_pruning, plan_ratios
from paperlib.pruning.sensitivity import SensitivityScan, scan_cliff, scan_sensitivity
from paperlib.pruning.soft_pruning import SoftPruning
from paperlib.pruning.sparsity import Sparsity, absolute_gammas, init_gamma
from paperlib.pruning.surgery import COMPENSATIONS, apply_plan, find_carriers, mask_plan

__all__ = [
    "COMPENSATIONS",
    "IMPORTANCES",
    "Block",
    "ChannelGraph",
    "SensitivityScan",
    "Layer",
    "LayerStatistics",
    "PruningPlan",
    "Segment",
    "SoftPruning",
    "Sparsity",
    "apply_plan",
    "absolute_gammas",
    "find_carriers",
    "init_gamma",
    "rescale_gamma_",
    "mask_plan",
    "plan_pruning",
    "plan_ratios",
    "register_importance",
    "removable_blocks",
    "removed_channels",
    "scan_cliff",
    "scan_sensitivity",
    "score_channels",
    "trace_channels",
]
