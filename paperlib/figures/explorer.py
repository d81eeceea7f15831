"""One drag (Section 4.4.3): a slider over the ratio, and at once what would go and what that would save.

The same drawing twice: in JupyterLab, where Python draws anew for each place of the slider, and as a page of its own
that needs neither Python nor the network. Nothing is cut for it: every number is a plan's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets
from torch import nn

from paperlib.figures.method import COLOURS
from paperlib.pruning import PruningPlan, plan_ratios

PERCENT = range(96)
WIDTH, LEFT, RIGHT = 760, 46, 744
CURVES_TOP, CURVES_HEIGHT = 22, 150
BARS_TOP, BARS_HEIGHT = 236, 130
NAMES_HEIGHT = 92
MOST_NAMES = 40
"""With more layers than that their names would overlap; they show when pointed at."""
SIZE, COMPUTE, ACCURACY = COLOURS[0], COLOURS[1], COLOURS[2]

STYLE = f"""
.explorer {{ font: 13px/1.35 system-ui, sans-serif; max-width: {WIDTH}px }}
.explorer .numbers {{ display: grid; grid-template-columns: .7fr 1fr 1.3fr 1.5fr 1.9fr; gap: 12px; margin: 10px 0 }}
.explorer .name {{ opacity: .7 }}
.explorer .number {{ font-size: 17px; font-variant-numeric: tabular-nums; white-space: nowrap }}
.explorer svg {{ display: block; width: 100%; height: auto; font-size: 11px; fill: currentColor }}
.explorer .line {{ fill: none; stroke-width: 2 }}
.explorer .grid {{ stroke: currentColor; opacity: .15 }}
.explorer .cursor {{ stroke: currentColor; stroke-width: 1.5 }}
.explorer .total {{ opacity: .18 }}
"""
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>What a pruning ratio saves</title>
<style>
body {{ margin: 1.2em auto; padding: 0 1em; max-width: {width}px }}
input {{ width: 100% }}
label {{ font: 13px system-ui, sans-serif }}
{style}</style>
<label for="ratio">Channels to prune: drag, or use the arrow keys</label>
<input id="ratio" type="range" min="0" max="{last}" value="{first}">
{drawing}
<script>
const steps = {steps}
const all = selector => [...document.querySelectorAll(selector)]
function show(step) {{
  all(".explorer .number").forEach((cell, index) => {{ cell.textContent = step.numbers[index] }})
  all(".explorer .kept").forEach((bar, index) => {{
    bar.setAttribute("y", step.bars[index][0])
    bar.setAttribute("height", step.bars[index][1])
  }})
  for (const end of ["x1", "x2"]) all(".explorer .cursor")[0].setAttribute(end, step.cursor)
}}
const slider = document.getElementById("ratio")
slider.addEventListener("input", () => show(steps[slider.value]))
show(steps[slider.value])
</script>
</html>
"""


def scan_ratios(detector: nn.Module, **choices: Any) -> list[PruningPlan]:
    """A plan for every whole percent from 0 to 95.

    Args:
        detector: what would be cut, trained with Eq. 4.
        choices: what `plan_pruning` is asked for beside the ratio: `keep_floor`, `round_to`, `image_size`, ….
    """
    return plan_ratios(detector, [percent / 100 for percent in PERCENT], **choices)


def slider(plans: Sequence[PruningPlan], accuracy: Mapping[float, float], start: int = 50) -> ipywidgets.Widget:
    """The drawing for JupyterLab, which follows a slider.

    Args:
        plans: of `scan_ratios`.
        accuracy: mAP at the ratios that were trained, both as shares; dots in the drawing.
        start: where the slider stands first, in percent.
    """
    handle = ipywidgets.IntSlider(
        value=start, min=PERCENT[0], max=PERCENT[-1], description="pruned / %", layout={"width": f"{WIDTH}px"}
    )
    picture = ipywidgets.HTML()

    def draw(change: Mapping[str, Any]) -> None:
        picture.value = f"<style>{STYLE}</style>{drawing(plans, accuracy, change['new'])}"

    draw({"new": start})
    handle.observe(draw, names="value")
    return ipywidgets.VBox([handle, picture])


def page(plans: Sequence[PruningPlan], accuracy: Mapping[float, float], start: int = 50) -> str:
    """The same as a page of HTML that stands alone (arguments as for `slider`)."""
    steps = [{"numbers": [*numbers(plan).values()], **_moving(plan)} for plan in plans]
    return PAGE.format(
        width=WIDTH, style=STYLE, first=start, last=PERCENT[-1],
        drawing=drawing(plans, accuracy, start), steps=json.dumps(steps, ensure_ascii=False),
    )  # fmt: skip


def numbers(plan: PruningPlan) -> dict[str, str]:
    """What a plan comes to, in words, by name."""
    before, after = plan.cost_before, plan.cost_after
    kept, total = plan.channels_kept, plan.channels_total
    return {
        "pruned": f"{plan.ratio:.0%}".replace("%", " %"),
        "threshold": f"{plan.threshold:.4f}",
        "channels left": f"{kept} of {total}",
        "size": f"{after.size_mb:.3g} MB ({100 * after.size_mb / before.size_mb:.0f} %)",
        "compute": f"{after.gmacs:.3g} GMACs ({100 * after.gmacs / before.gmacs:.0f} %)",
    }


def drawing(plans: Sequence[PruningPlan], accuracy: Mapping[float, float], percent: int) -> str:
    """The numbers, the curves and the layers at one place of the slider, as HTML."""
    plan = plans[percent]
    cells = "".join(_cell(name, text) for name, text in numbers(plan).items())
    height = BARS_TOP + BARS_HEIGHT + NAMES_HEIGHT
    parts = [*_curves(plans, accuracy, _moving(plan)["cursor"]), *_layers(plan)]
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="cost and channels left">{"".join(parts)}</svg>'
    return f'<div class="explorer"><div class="numbers" aria-live="polite">{cells}</div>{svg}</div>'


def _cell(name: str, text: str) -> str:
    # No <dl>: JupyterLab has a style of its own for it.
    return f'<div><div class="name">{name}</div><div class="number">{text}</div></div>'


def _moving(plan: PruningPlan) -> dict[str, Any]:
    """What the slider moves: the cursor's place, and the top and height of each layer's bar."""
    scale = BARS_HEIGHT / max(layer.total for layer in plan.layers.values())
    heights = [scale * len(plan.kept.get(name, [])) for name in plan.layers]
    bars = [[round(BARS_TOP + BARS_HEIGHT - height, 1), round(height, 1)] for height in heights]
    return {"cursor": round(_across(plan.ratio), 1), "bars": bars}


def _curves(plans: Sequence[PruningPlan], accuracy: Mapping[float, float], cursor: float) -> list[str]:
    before = plans[0].cost_before
    parts = [_text(LEFT, CURVES_TOP - 9, "left of the unpruned / %", "start")]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{_up(share):.1f}" y2="{_up(share):.1f}"/>')
        parts.append(_text(LEFT - 6, _up(share) + 4, f"{100 * share:.0f}", "end"))
        parts.append(_text(_across(share), _up(0) + 16, f"{100 * share:.0f}", "middle"))
    parts.append(_text((LEFT + RIGHT) / 2, _up(0) + 31, "channels pruned / %", "middle"))
    for number, (name, colour, values) in enumerate(
        [
            ("size", SIZE, [plan.cost_after.size_mb / before.size_mb for plan in plans]),
            ("multiply–accumulates", COMPUTE, [plan.cost_after.gmacs / before.gmacs for plan in plans]),
        ]
    ):
        dots = " ".join(f"{_across(p.ratio):.1f},{_up(value):.1f}" for p, value in zip(plans, values, strict=True))
        dash = ' stroke-dasharray="7 4"' * number  # told apart without colour, too
        parts.append(f'<polyline class="line" stroke="{colour}"{dash} points="{dots}"/>')
        parts.append(_key(number, f'<line class="line" stroke="{colour}"{dash} x1="0" x2="24" y1="0" y2="0"/>', name))
    for ratio, value in accuracy.items():
        parts.append(f'<circle cx="{_across(ratio):.1f}" cy="{_up(value):.1f}" r="4.5" fill="{ACCURACY}"/>')
    if accuracy:
        parts.append(_key(2, f'<circle cx="12" cy="0" r="4.5" fill="{ACCURACY}"/>', "mAP / %, fine-tuned"))
    parts.append(f'<line class="cursor" x1="{cursor}" x2="{cursor}" y1="{CURVES_TOP}" y2="{_up(0)}"/>')
    return parts


def _layers(plan: PruningPlan) -> list[str]:
    most = max(layer.total for layer in plan.layers.values())
    pitch = (RIGHT - LEFT) / len(plan.layers)
    foot = BARS_TOP + BARS_HEIGHT
    parts = [_text(LEFT, BARS_TOP - 9, "channels left in each layer, of those before", "start")]
    parts += [_text(LEFT - 6, BARS_TOP + 4, f"{most}", "end"), _text(LEFT - 6, foot + 4, "0", "end")]
    for place, ((name, layer), (top, height)) in enumerate(
        zip(plan.layers.items(), _moving(plan)["bars"], strict=True)
    ):
        left, broad = LEFT + (place + 0.1) * pitch, 0.8 * pitch
        whole = BARS_HEIGHT * layer.total / most
        shown = escape(name.removesuffix(".conv"))
        box = f'x="{left:.1f}" width="{broad:.1f}"'
        parts.append(f"<g><title>{shown}: {layer.total} before</title>")
        parts.append(f'<rect class="total" {box} y="{foot - whole:.1f}" height="{whole:.1f}"/>')
        parts.append(f'<rect class="kept" {box} y="{top}" height="{height}" fill="{SIZE}"/></g>')
        if len(plan.layers) <= MOST_NAMES:
            turned = f'transform="rotate(-60 {left + broad / 2:.1f} {foot + 12})"'
            parts.append(_text(left + broad / 2, foot + 12, shown, "end", turned))
    return parts


def _key(number: int, sign: str, name: str) -> str:
    """An entry of the legend, on the right above the curves."""
    left = RIGHT - (390, 300, 130)[number]
    return f'<g transform="translate({left},{CURVES_TOP - 13})">{sign}{_text(30, 4, name, "start")}</g>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{text}</text>'


def _across(ratio: float) -> float:
    return LEFT + ratio * (RIGHT - LEFT)


def _up(share: float) -> float:
    return CURVES_TOP + (1 - share) * CURVES_HEIGHT
