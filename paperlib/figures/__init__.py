"""All figures of the companion, by name: `from paperlib import figures`, then `figures.plot_share_bars(...)`.

`plot_*` and `draw_*` return a matplotlib `Figure`; `write_figure` writes it. Tables are in `paperlib.figures.tables`.
"""

from paperlib.figures.comparisons import (
    compute_shares,
    plot_accuracy_over_size,
    plot_class_scores,
    plot_components,
    plot_edge_cases,
    plot_share_bars,
    plot_speed_bars,
)
from paperlib.figures.compression import plot_channel_bars, plot_class_changes, plot_compression_chain, plot_latency
from paperlib.figures.detections import draw_contact_sheet, draw_detections
from paperlib.figures.dynamic import ValuableCells, plot_instance_weights, plot_selection, plot_valuable_cells
from paperlib.figures.explorer import build_explorer, render_explorer, scan_ratios
from paperlib.figures.mistakes import draw_mistakes, plot_precision_recall
from paperlib.figures.partners import (
    draw_twin_block,
    plot_diversity,
    plot_fusion_errors,
    plot_keep_rates,
    plot_pair_angles,
)
from paperlib.figures.pruning import (
    count_channels,
    plot_channels_left,
    plot_criteria,
    plot_kernel_surgery,
    plot_ratio_curves,
    plot_sensitivity,
)
from paperlib.figures.scale_factors import (
    plot_gamma_histogram,
    plot_gamma_panels,
    plot_layer_gammas,
    plot_sparsity_sweep,
)
from paperlib.figures.scenes import draw_scene_sheet, plot_confusion_matrix
from paperlib.figures.style import PAGE_WIDTH, use_style, write_figure
from paperlib.figures.training import plot_assistants, plot_regression_bound, plot_training_curves

__all__ = [
    # style and files
    "PAGE_WIDTH", "use_style", "write_figure",
    # images with boxes
    "draw_contact_sheet", "draw_detections",
    # what a detector gets wrong
    "draw_mistakes", "plot_precision_recall",
    # scenes
    "draw_scene_sheet", "plot_confusion_matrix",
    # scale factors and sparse training (Eq. 4)
    "plot_gamma_histogram", "plot_gamma_panels", "plot_layer_gammas", "plot_sparsity_sweep",
    # pruning
    "count_channels", "plot_channels_left", "plot_criteria", "plot_kernel_surgery", "plot_ratio_curves",
    "plot_sensitivity", "build_explorer", "render_explorer", "scan_ratios",
    # training and distillation
    "plot_assistants", "plot_regression_bound", "plot_training_curves",
    # dynamic distillation (DKD)
    "ValuableCells", "plot_instance_weights", "plot_selection", "plot_valuable_cells",
    # partner learning
    "draw_twin_block", "plot_diversity", "plot_fusion_errors", "plot_keep_rates", "plot_pair_angles",
    # detectors side by side
    "compute_shares", "plot_accuracy_over_size", "plot_class_scores", "plot_components", "plot_edge_cases",
    "plot_share_bars", "plot_speed_bars",
    # the report of `paperlib compress`
    "plot_channel_bars", "plot_class_changes", "plot_compression_chain", "plot_latency",
]  # fmt: skip
