"""Tables: CSV for programs, Markdown for pages, LaTeX for papers; and the paper's own numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from paperlib import paths
from paperlib.evaluation.metrics import Metrics

METRICS = ("precision", "recall", "map50", "map")
SCENE_METRICS = ("top1", "top5")
COUNTS = ("images", "objects")
TITLES = {"precision": "P / %", "recall": "R / %", "map50": "mAP / %", "map": "COCO mAP / %"}
SCENE_TITLES = {"top1": "top-1 / %", "top5": "top-5 / %"}
NUMBER = re.compile(r"[-−+±]? ?\d+(\.\d+)?(e[-+]\d+)?([ %].*)?|[–-]?|nan")
"""A cell of a column of numbers: it begins with a number, or there is none."""


def load_reported(name: str) -> pd.DataFrame:
    """Load a table of the paper, transcribed exactly, from `results/reported/<name>.csv`.

    Raises:
        FileNotFoundError: no such table has been transcribed.
    """
    return pd.read_csv(paths.source_root() / "results" / "reported" / f"{name}.csv", comment="#")


def render_table(table: pd.DataFrame) -> dict[str, str]:
    """Return a table as `csv`, `md` and `tex` text; the last two, which are for people, leave empty columns out."""
    shown = table.dropna(axis="columns", how="all")
    return {
        "csv": table.to_csv(index=False),
        "md": to_markdown(shown) + "\n",
        "tex": shown.to_latex(index=False, escape=True),
    }


def to_markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown without padding, so that a change in one row changes one line.

    Columns of numbers are aligned on the right. Cells are written as they are: text that could hold markup must come
    escaped.
    """
    rows = [[_format_cell(value) for value in row] for row in table.itertuples(index=False)]
    sides = ["---:" if all(map(NUMBER.fullmatch, column)) else "---" for column in zip(*rows, strict=True)]
    lines = [[str(name) for name in table.columns], sides or ["---"] * len(table.columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def average_by(runs: pd.DataFrame, key: str, columns: Sequence[str], *, sort: bool = False) -> pd.DataFrame:
    """Return the means of columns for each value of `key`, in order of appearance, or sorted by it."""
    # The call to DataFrame changes nothing: it tells type checkers what `mean` returns.
    return pd.DataFrame(runs.groupby(key, sort=sort)[list(columns)].mean())


def average_seeds(runs: pd.DataFrame, models: Sequence[str] | None = None) -> pd.DataFrame:
    """Average over the seeds: mean and sample standard deviation, one row per model, in the order given.

    Args:
        runs: one row per model and seed (`Study.frame`).
        models: models to show; by default all, in order of appearance.

    Returns:
        `model`, `seeds`, `mb`, `gmacs`, then per metric its mean and `<metric>_sd` (NaN for a single seed). The metrics
        are those of detectors, or of classifiers if the runs have these alone.
    """
    metrics = list(METRICS if "map50" in runs else SCENE_METRICS)
    groups = runs.groupby("model", sort=False)
    table = average_by(runs, "model", ["mb", "gmacs", *metrics])
    table.insert(0, "seeds", groups.size())
    table = table.join(groups[metrics].std().add_suffix("_sd"))
    return table.loc[list(table.index if models is None else models)].reset_index()


def format_averages(table: pd.DataFrame) -> pd.DataFrame:
    """Format a table of `average_seeds` for people: percentages with their spread, sizes rounded."""
    shown = pd.DataFrame({"model": table["model"], "MB": table["mb"].round(2), "GMACs": table["gmacs"].round(3)})
    for metric, title in (TITLES if "map50" in table else SCENE_TITLES).items():
        shown[title] = _with_spread(table[metric].tolist(), table[f"{metric}_sd"].tolist())
    return shown


def tabulate_slices(metrics: Mapping[str, Metrics]) -> pd.DataFrame:
    """Tabulate average precision on edge cases and under corruptions (Section 4.5.4), one column per detector.

    Args:
        metrics: by detector, the result of `evaluate(..., slices=True)` on one data set.

    Returns:
        `slice`, `images`, `objects`, then per detector its mAP at IoU 0.5 in percent.
    """
    first = next(iter(metrics.values())).slices
    table = pd.DataFrame({"slice": list(first)})
    for count in COUNTS:
        table[count] = [int(part[count]) for part in first.values()]
    for name, found in metrics.items():
        table[f"{name}: mAP / %"] = [round(100 * found.slices[part]["map50"], 1) for part in first]
    return table


def tabulate_classes(metrics: Mapping[str, Sequence[Metrics]], boxes: Mapping[str, int]) -> pd.DataFrame:
    """Tabulate the average precision at IoU 0.5 of each class in percent, with its spread over the seeds.

    Args:
        metrics: by detector, one for each seed; each detector has a column.
        boxes: number of ground-truth boxes of each class.
    """
    scores = {name: pd.DataFrame([each.per_class for each in found]) for name, found in metrics.items()}
    classes = list(next(iter(scores.values())))
    table = pd.DataFrame({"class": classes, "boxes": [boxes[name] for name in classes]})
    for name, found in scores.items():
        table[f"{name}: AP / %"] = _with_spread(found.mean().tolist(), found.std().tolist())
    return table


def _with_spread(means: Sequence[float], spreads: Sequence[float]) -> list[str]:
    """Return means of fractions in percent, each with its spread where there is more than one seed."""
    texts = []
    for mean, spread in zip(means, spreads, strict=True):
        texts.append(f"{100 * mean:.1f}" if pd.isna(spread) else f"{100 * mean:.1f} ± {100 * spread:.1f}")
    return texts


def _format_cell(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
