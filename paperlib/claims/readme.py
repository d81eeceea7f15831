"""What the README shows of the committed results: Table 1 beside the paper's, and the verdicts on its claims."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib import files, paths
from paperlib.claims import scoreboard
from paperlib.experiments.parameters import validate
from paperlib.experiments.settings import Settings
from paperlib.figures import tables

BLOCK = re.compile(r"(<!-- (ablation|scoreboard): ([a-z]+) -->\n).*?(<!-- end of the \2 -->)", re.DOTALL)
"""Where a README shows the results of a scale; what stands between the two lines is generated."""
NOTEBOOK = "03_components"
ROWS = {
    "baseline": "no compression",
    "sparse": "sparse training alone",
    "pruned": "pruned, not fine-tuned after the last cut",
    "SCP": "… fine-tuned (SCP)",
    "SCP + KD": "… distilled by the teacher (SCP + KD)",
    "SCP + TAKD": "… distilled through assistants (SCP + TAKD)",
    "scratch": "the student's shape from random weights",
}
"""The rows of Table 1 and of its controls, in words."""
TABLE_1 = {
    "baseline": ("no", "no", "no"), "SCP": ("yes", "no", "no"),
    "SCP + KD": ("yes", "yes", "no"), "SCP + TAKD": ("yes", "no", "yes"),
}  # fmt: skip
"""Whether the paper's row has SCP, KD and TAKD."""
TABLE_2 = {"baseline": "YOLOv4-tiny (baseline)", "SCP + TAKD": "YOLOv4-tiny (50% pruned)"}
"""The paper's rows of the detector that stands in for YOLOv3 below its scale."""


def ablation(scale: str) -> str:
    """What the paper reports of each part of the method beside our results at a scale, as Markdown.

    Raises:
        FileNotFoundError: `03_components` has no results at that scale.
        ValueError: they are damaged, or lack a model; the message names the file.
    """
    settings, runs = _results(paths.results_root() / scale / NOTEBOOK)
    ours = tables.average_seeds(runs).set_index("model")
    map50 = 100 * runs.pivot(index="seed", columns="model", values="map50")
    change = map50.sub(map50["baseline"], axis=0)
    table_1 = _reported(tables.load_reported("table_1").set_index(["scp", "kd", "takd"]), TABLE_1)
    table_2 = _reported(tables.load_reported("table_2").set_index("method"), TABLE_2)
    shown = pd.DataFrame({
        "": list(ROWS.values()),
        "paper, Table 1: YOLOv3": [table_1.get(name, "–") for name in ROWS],
        "paper, Table 2: YOLOv4-tiny": [table_2.get(name, "–") for name in ROWS],
        "here: MB": [f"{ours['mb'][name]:.2f}" for name in ROWS],
        "here: GMACs": [f"{ours['gmacs'][name]:.2f}" for name in ROWS],
        "here: mAP / %": [_spread(f"{map50[name].mean():.1f}", map50[name].std()) for name in ROWS],
        "here: change": [_spread(_signed(change[name].mean()), change[name].std()) for name in ROWS],
    })  # fmt: skip
    shown.loc[shown.index[0], "here: change"] = "–"
    without = f" The last row alone knows nothing of {settings.weights}." if settings.weights else ""
    how = f"Paper: 800 pixels, 300 epochs, one run. Here: {_how(settings)}; test split.{without}"
    return f"{scoreboard.markdown(shown)}\n\n{how}"


def _results(folder: Path) -> tuple[Settings, pd.DataFrame]:
    """Settings and rows of Table 1. Raises ValueError naming the file in which something is missing."""
    born, metrics = folder / "provenance.json", folder / "metrics.json"
    settings = files.read_json(born).get("settings")
    if settings is None:
        raise ValueError(f"{born}: no settings")
    runs = pd.DataFrame(files.read_json(metrics).get("models", []))
    found = set() if runs.empty else set(runs["model"])
    if missing := [name for name in ROWS if name not in found]:
        raise ValueError(f"{metrics}: no model {', '.join(missing)}")
    return validate(NOTEBOOK, settings, str(born)), runs


def _how(settings: Settings) -> str:
    """By which detector, recipe and seeds the rows were made."""
    seeds = len(settings.seeds)
    runs = f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "1 seed"
    start = f"from {settings.weights}" if settings.weights else "from random weights"
    lengths = f"{settings.epochs} epochs, {settings.fine_tune_epochs} after each cut and for each distillation"
    return f"{settings.detector} {start}, {settings.image_size} pixels, {lengths}; {runs}"


def _reported(table: pd.DataFrame, rows: Mapping[str, Any]) -> dict[str, str]:
    """mAP, size and change of some of the paper's rows, the first of which is the uncompressed detector."""
    whole = table.loc[next(iter(rows.values()))]
    cells = {name: table.loc[row] for name, row in rows.items()}
    texts = {name: f"{cell['map']:.1f} % at {cell['mb']:.1f} MB" for name, cell in cells.items()}
    losses = {name: cell["map"] - whole["map"] for name, cell in cells.items()}
    return {name: texts[name] + (f" ({_signed(loss)})" if loss else "") for name, loss in losses.items()}


def in_readme(text: str) -> str:
    """A README's text with what it shows of each scale brought up to date.

    Raises:
        ValueError: no place for anything is marked.
    """
    if not BLOCK.search(text):
        raise ValueError("the README marks no place for results")
    parts = {"ablation": ablation, "scoreboard": scoreboard.excerpt}
    return BLOCK.sub(lambda found: f"{found[1]}\n{parts[found[2]](found[3])}\n\n{found[4]}", text)


def refresh_readme(path: Path) -> None:
    """Bring what a README shows up to date, and with it the pages of the scales whose verdicts it shows."""
    text = path.read_text(encoding="utf-8")
    for scale in {found[3] for found in BLOCK.finditer(text) if found[2] == "scoreboard"}:
        scoreboard.write_page(scale)
    files.write_text_atomically(path, in_readme(text))


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


def _spread(mean: str, deviation: float) -> str:
    return mean if pd.isna(deviation) else f"{mean} ± {deviation:.1f}"
