"""What the README shows of the committed results: Table 1 beside the paper's, and how many of its claims hold."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import cast

import pandas as pd

from paperlib import files, paths
from paperlib.claims import scoreboard
from paperlib.experiments.parameters import validate_settings
from paperlib.experiments.settings import Settings
from paperlib.figures import tables
from paperlib.store.results import CERTIFICATE, METRICS, require_fit

BLOCK = re.compile(r"(<!-- (ablation|claims): ([a-z]+) -->\n).*?(<!-- end of the \2 -->)", re.DOTALL)
"""Where a README shows the results of a scale; the text between the two lines is generated."""
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
"""The paper's rows of the detector that replaces YOLOv3 below the paper scale."""


def render_ablation(scale: str) -> str:
    """Return what the paper reports of each part of the method beside our results at a scale, as Markdown.

    Raises:
        FileNotFoundError: `03_components` has no results at that scale.
        ValueError: they are damaged, or lack a model; the message names the file.
    """
    settings, runs = _load_results(paths.results_root() / scale / NOTEBOOK)
    ours = tables.average_by(runs, "model", ["mb", "gmacs"])
    map50 = 100 * runs.pivot(index="seed", columns="model", values="map50")
    table_1 = _format_reported(tables.load_reported("table_1").set_index(["scp", "kd", "takd"]), TABLE_1)
    table_2 = _format_reported(tables.load_reported("table_2").set_index("method"), TABLE_2)
    rows = []
    for name, words in ROWS.items():
        change = "–" if name == "baseline" else _with_spread((map50[name] - map50["baseline"]).tolist(), "+.1f")
        size, compute = ours.loc[name, ["mb", "gmacs"]]
        paper = table_1.get(name, "–"), table_2.get(name, "–")
        rows.append((words, *paper, f"{size:.2f}", f"{compute:.2f}", _with_spread(map50[name].tolist(), ".1f"), change))
    titles = ("paper, Table 1: YOLOv3", "paper, Table 2: YOLOv4-tiny")
    table = pd.DataFrame(rows, columns=["", *titles, "here: MB", "here: GMACs", "here: mAP / %", "here: change"])
    start = f" Only the last row does not start from {settings.weights}." if settings.weights else ""
    note = f"Paper: 800 pixels, 300 epochs, one run. Here: {_describe_recipe(settings)}; test split.{start}"
    return f"{tables.to_markdown(table)}\n\n{note}"


def update_blocks(text: str) -> str:
    """Return a README's text with the results of each scale brought up to date.

    Raises:
        ValueError: no place for results is marked.
    """
    if not BLOCK.search(text):
        raise ValueError("the README marks no place for results")
    parts = {"ablation": render_ablation, "claims": scoreboard.render_count}
    return BLOCK.sub(lambda found: f"{found[1]}\n{parts[found[2]](found[3])}\n\n{found[4]}", text)


def refresh_readme(path: Path) -> None:
    """Bring the results in a README up to date, and with them `claims.md` of the scales whose verdicts it shows."""
    text = path.read_text(encoding="utf-8")
    for scale in {found[3] for found in BLOCK.finditer(text) if found[2] == "claims"}:
        # The sentence links to this page, so both must show the same verdicts.
        scoreboard.write_page(scale)
    files.write_text_atomically(path, update_blocks(text))


def _load_results(folder: Path) -> tuple[Settings, pd.DataFrame]:
    """Return the settings and the rows of Table 1. Raises ValueError naming the file in which something is missing."""
    require_fit(folder)
    provenance = folder / CERTIFICATE
    metrics = folder / METRICS
    settings = files.read_json(provenance).get("settings")
    if settings is None:
        raise ValueError(f"{provenance}: no settings")
    runs = pd.DataFrame(files.read_json(metrics).get("models", []))
    found = set() if runs.empty else set(runs["model"])
    if missing := [name for name in ROWS if name not in found]:
        raise ValueError(f"{metrics}: no model {', '.join(missing)}")
    return cast("Settings", validate_settings(NOTEBOOK, settings, str(provenance))), runs


def _describe_recipe(settings: Settings) -> str:
    """Return the detector, recipe and seeds of the rows, in words."""
    seeds = len(settings.seeds)
    runs = f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "1 seed"
    start = f"from {settings.weights}" if settings.weights else "from random weights"
    lengths = f"{settings.epochs} epochs, {settings.fine_tune_epochs} after each cut and for each distillation"
    return f"{settings.detector} {start}, {settings.image_size} pixels, {lengths}; {runs}"


def _format_reported(table: pd.DataFrame, rows: Mapping[str, Hashable]) -> dict[str, str]:
    """Return mAP, size and change of some of the paper's rows; the first of them is the uncompressed detector."""
    # A list with one key gives one row, also if the key has several levels.
    cells = {name: dict(table.loc[[row]].iloc[0]) for name, row in rows.items()}
    texts = {}
    for name, cell in cells.items():
        texts[name] = f"{cell['map']:.1f} % at {cell['mb']:.1f} MB"
        if name != "baseline":
            texts[name] += f" ({_signed(cell['map'] - cells['baseline']['map'], '+.1f')})"
    return texts


def _with_spread(values: list[float], form: str) -> str:
    """Return the mean over the seeds in a number format, with its spread where there is more than one seed."""
    mean = _signed(fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {stdev(values):.1f}"


def _signed(number: float, form: str) -> str:
    """Return a formatted number with a typographer's minus."""
    return f"{number:{form}}".replace("-", "−")
