"""Tables for readers: CSV for programs, Markdown for pages, LaTeX for papers; and the paper's own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from paperlib import paths
from paperlib.evaluation.metrics import Metrics

METRICS = ("precision", "recall", "map50", "map")
COUNTS = ("images", "objects")


def reported(name: str) -> pd.DataFrame:
    """A table of the paper, transcribed exactly, from `results/reported/<name>.csv`.

    Raises:
        FileNotFoundError: no such table has been transcribed.
    """
    return pd.read_csv(paths.repository_root() / "results" / "reported" / f"{name}.csv", comment="#")


def render(table: pd.DataFrame) -> dict[str, str]:
    """A table as `csv`, `md` and `tex` text; the last two, which are for people, leave empty columns out."""
    shown = table.dropna(axis="columns", how="all")
    return {
        "csv": table.to_csv(index=False),
        "md": shown.to_markdown(index=False) + "\n",
        "tex": shown.to_latex(index=False, escape=True),
    }


def over_seeds(runs: pd.DataFrame, models: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean and sample standard deviation over the seeds, one row per model, in the order given.

    Args:
        runs: one row per model and seed (`Study.frame`).
        models: which ones; by default all, in order of appearance.

    Returns:
        `model`, `seeds`, `mb`, `gmacs`, then per metric its mean and `<metric>_sd` (NaN for a single seed).
    """
    groups = runs.groupby("model", sort=False)
    table = groups[["mb", "gmacs", *METRICS]].mean()
    table.insert(0, "seeds", groups.size())
    table = table.join(groups[list(METRICS)].std().add_suffix("_sd"))
    return table.loc[list(models or table.index)].reset_index()


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `over_seeds` for people: percentages with their spread, sizes rounded."""
    shown = pd.DataFrame({"model": table["model"], "MB": table["mb"].round(2), "GMACs": table["gmacs"].round(3)})
    titles = {"precision": "P / %", "recall": "R / %", "map50": "mAP / %", "map": "COCO mAP / %"}
    for metric, title in titles.items():
        shown[title] = [_with_spread(*pair) for pair in zip(table[metric], table[f"{metric}_sd"], strict=True)]
    return shown


def by_slice(metrics: Mapping[str, Metrics]) -> pd.DataFrame:
    """Average precision on edge cases and under changes (Section 4.5.4), one column per detector.

    Args:
        metrics: by detector, what `evaluate(..., slices=True)` gave on one data set.

    Returns:
        `slice`, `images`, `objects`, then per detector its mAP at IoU 0.5 in percent.
    """
    first = next(iter(metrics.values())).slices
    table = pd.DataFrame({"slice": list(first), **{key: [int(part[key]) for part in first.values()] for key in COUNTS}})
    for name, found in metrics.items():
        table[f"{name}: mAP / %"] = [round(100 * found.slices[part]["map50"], 1) for part in first]
    return table


def by_class(metrics: Mapping[str, Sequence[Metrics]], boxes: Mapping[str, int]) -> pd.DataFrame:
    """Average precision at IoU 0.5 of each class in percent, with its spread over the seeds, one column per detector.

    Args:
        metrics: by detector, one for each seed.
        boxes: how many boxes each class is judged by.
    """
    scores = {name: pd.DataFrame([each.per_class for each in found]) for name, found in metrics.items()}
    kinds = list(next(iter(scores.values())))
    table = pd.DataFrame({"class": kinds, "boxes": [boxes[kind] for kind in kinds]})
    for name, found in scores.items():
        pairs = zip(found.mean(), found.std(), strict=True)
        table[f"{name}: AP / %"] = [_with_spread(*pair) for pair in pairs]
    return table


def _with_spread(mean: float, spread: float) -> str:
    return f"{100 * mean:.1f}" if pd.isna(spread) else f"{100 * mean:.1f} ± {100 * spread:.1f}"
