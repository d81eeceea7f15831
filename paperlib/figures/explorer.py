"""Interactive explorer of the pruning ratio (Section 4.4.3): a slider shows what each ratio removes and saves.

There are two versions with the same drawing: a widget for JupyterLab, drawn by Python, and a page for any browser that
needs neither Python nor the network. No network is pruned for it: every number is that of a plan.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from torch import nn

from paperlib.costs import Cost
from paperlib.extras import needs_extra
from paperlib.figures.style import COLOURS, load_template
from paperlib.pruning import PruningPlan, plan_ratios

if TYPE_CHECKING:
    import ipywidgets

PERCENT = range(96)
TEMPLATES = Path(__file__).parent / "templates"
WIDTH, LEFT, RIGHT = 760, 46, 744
"""Pixels, as all lengths of the drawing."""
CURVES_TOP, CURVES_HEIGHT = 22, 150
BARS_TOP, BARS_HEIGHT = 236, 130
NAMES_HEIGHT = 92
MAX_NAMES = 40
"""With more layers than these their names would overlap; a name then shows when the pointer is on its bar."""


def scan_ratios(detector: nn.Module, **options: Any) -> list[PruningPlan]:
    """Return a plan for every whole percent from 0 to 95.

    Args:
        detector: the detector to prune, trained with Eq. 4.
        options: options of `plan_pruning` besides the ratio: `min_keep_ratio`, `round_to`, `image_size`, ….
    """
    return plan_ratios(detector, [percent / 100 for percent in PERCENT], **options)


def build_explorer(plans: Sequence[PruningPlan], accuracy: Mapping[float, float], start: int = 50) -> ipywidgets.Widget:
    """Build the explorer as a widget for JupyterLab.

    Args:
        plans: result of `scan_ratios`.
        accuracy: by ratio of the models that were fine-tuned, the fraction of the unpruned model's mAP that they have;
            dots in the drawing.
        start: first position of the slider, in percent.
    """
    with needs_extra("notebooks"):
        import ipywidgets

    slider = ipywidgets.IntSlider(
        value=start, min=PERCENT[0], max=PERCENT[-1], description="pruned / %", layout={"width": f"{WIDTH}px"}
    )
    picture = ipywidgets.HTML()

    def redraw(change: Mapping[str, Any]) -> None:
        picture.value = f"<style>{_style()}</style>{draw_explorer(plans, accuracy, change['new'])}"

    redraw({"new": start})
    slider.observe(redraw, names="value")
    return ipywidgets.VBox([slider, picture])


def render_explorer(plans: Sequence[PruningPlan], accuracy: Mapping[float, float], start: int = 50) -> str:
    """Return the explorer as an HTML page that needs no other file (arguments as for `build_explorer`)."""
    steps = [{"numbers": [*describe_plan(plan).values()], **_positions(plan)} for plan in plans]
    return _template("explorer.html").render(
        width=WIDTH,
        style=_style(),
        first=start,
        last=PERCENT[-1],
        drawing=draw_explorer(plans, accuracy, start),
        steps=json.dumps(steps, ensure_ascii=False),
    )


def describe_plan(plan: PruningPlan) -> dict[str, str]:
    """Return what a plan removes and saves, in words, by name."""
    before, after = _costs(plan)
    return {
        "pruned": f"{plan.ratio:.0%}".replace("%", " %"),
        "threshold": f"{plan.threshold:.4f}",
        "channels left": f"{plan.channels_kept} of {plan.channels_total}",
        "size": f"{after.size_mb:.3g} MB ({100 * after.size_mb / before.size_mb:.0f} %)",
        "compute": f"{after.gmacs:.3g} GMACs ({100 * after.gmacs / before.gmacs:.0f} %)",
    }


def draw_explorer(plans: Sequence[PruningPlan], accuracy: Mapping[float, float], percent: int) -> str:
    """Return the numbers, the curves and the layers at one position of the slider, as HTML."""
    plan = plans[percent]
    return _template("explorer_drawing.html").render(
        numbers=describe_plan(plan),
        width=WIDTH,
        height=BARS_TOP + BARS_HEIGHT + NAMES_HEIGHT,
        left=LEFT,
        right=RIGHT,
        top=CURVES_TOP,
        foot=_y_of(0),
        ticks=[(tick, _x_of(tick / 100), _y_of(tick / 100)) for tick in (0, 25, 50, 75, 100)],
        curves=_curves(plans),
        dots=[(_x_of(ratio), _y_of(value)) for ratio, value in accuracy.items()],
        dot_colour=COLOURS[2],
        cursor=_positions(plan)["cursor"],
        bars_top=BARS_TOP,
        bars_foot=BARS_TOP + BARS_HEIGHT,
        most=_most_channels(plan),
        layers=_layers(plan),
        max_names=MAX_NAMES,
    )


def _curves(plans: Sequence[PruningPlan]) -> list[dict[str, Any]]:
    """Return size and compute over the ratio: name, colour, position in the legend, and points."""
    costs = [_costs(plan) for plan in plans]
    shares = {
        "size": [after.size_mb / before.size_mb for before, after in costs],
        "multiply–accumulates": [after.gmacs / before.gmacs for before, after in costs],
    }
    curves = []
    for (name, values), colour, key in zip(shares.items(), COLOURS, (RIGHT - 390, RIGHT - 300), strict=False):
        points = [f"{_x_of(plan.ratio):.1f},{_y_of(value):.1f}" for plan, value in zip(plans, values, strict=True)]
        curves.append({"name": name, "colour": colour, "key": key, "points": " ".join(points)})
    return curves


def _layers(plan: PruningPlan) -> list[dict[str, Any]]:
    """Return name, channels before, and the bars of each layer."""
    pitch = (RIGHT - LEFT) / len(plan.layers)
    scale = BARS_HEIGHT / _most_channels(plan)
    layers = []
    for index, ((name, layer), bar) in enumerate(zip(plan.layers.items(), _positions(plan)["bars"], strict=True)):
        bars = {"left": LEFT + (index + 0.1) * pitch, "width": 0.8 * pitch, "height": scale * layer.total, "kept": bar}
        layers.append({"name": name.removesuffix(".conv"), "total": layer.total, **bars})
    return layers


def _positions(plan: PruningPlan) -> dict[str, Any]:
    """Return what moves with the slider: x of the cursor, and top and height of each layer's bar."""
    scale = BARS_HEIGHT / _most_channels(plan)
    heights = [scale * len(plan.kept.get(name, [])) for name in plan.layers]
    # Rounded, so that the page with its 96 steps stays small.
    bars = [[round(BARS_TOP + BARS_HEIGHT - height, 1), round(height, 1)] for height in heights]
    return {"cursor": round(_x_of(plan.ratio), 1), "bars": bars}


def _costs(plan: PruningPlan) -> tuple[Cost, Cost]:
    if plan.cost_before is None or plan.cost_after is None:
        raise ValueError("the plan has no costs: make it with plan_pruning")
    return plan.cost_before, plan.cost_after


def _most_channels(plan: PruningPlan) -> int:
    return max(layer.total for layer in plan.layers.values())


def _x_of(ratio: float) -> float:
    return LEFT + ratio * (RIGHT - LEFT)


def _y_of(share: float) -> float:
    return CURVES_TOP + (1 - share) * CURVES_HEIGHT


def _style() -> str:
    return _template("explorer.css").render(width=WIDTH)


@cache
def _template(name: str) -> jinja2.Template:
    return load_template(TEMPLATES / name)
