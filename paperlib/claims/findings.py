"""The block "What we found" of each notebook: its claims at the best scale that has results, and one sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from paperlib import files, paths
from paperlib.claims import scoreboard
from paperlib.claims.schema import claims_path, load_claims
from paperlib.claims.verdicts import ClaimResult, Verdict, evaluate_claims
from paperlib.figures.tables import to_markdown
from paperlib.store.results import CERTIFICATE, METRICS, SCOREBOARD

FOUND = "what-we-found"
"""The tag of the cell that holds the block."""
REAL_SCALES = ("paper", "laptop")
"""The scales on real data, best first."""
TITLE = "## What we found\n<!-- written by `make scoreboard` -->"
DATA_SETS = {"vhr10": "NWPU VHR-10"}
FORMATS = {"mb": "{:.1f} MB", "gmacs": "{:.2f} GMACs"}
"""How a row's metrics are written; all others are fractions, in percent."""


def render_finding(notebook: str) -> str:
    """Return the block of a notebook as Markdown.

    Raises:
        ValueError: a sentence of `findings.yaml` no longer fits the verdicts that it rests on, or names what is not
            there.
    """
    if notebook == SCOREBOARD:
        return _render_review()
    scale = find_best_scale(notebook)
    if scale is None:
        return _render_quick(notebook)
    results = [one for one in evaluate_claims(scale) if one.claim.measure and one.claim.measure.notebook == notebook]
    parts = [f"{TITLE}\n{_describe_scale(notebook, scale)}"]
    if measured := [one for one in results if one.values]:
        parts.append(to_markdown(_tabulate(measured)))
    parts.append(f"**In one sentence.** {_fill_sentence(notebook, scale, results)}")
    parts.append(_close(notebook, scale, results))
    return "\n\n".join(parts)


def find_best_scale(notebook: str) -> str | None:
    """Return the best scale on real data at which a notebook has results, None if there is none."""
    for scale in REAL_SCALES:
        if (paths.results_root() / scale / notebook / METRICS).is_file():
            return scale
    return None


def _render_review() -> str:
    """Return the block of the notebook that shows all verdicts."""
    scale = next(scale for scale in REAL_SCALES if (paths.results_root() / scale).is_dir())
    results = evaluate_claims(scale)
    undecided = [one for one in results if one.verdict is Verdict.UNDECIDED]
    alone = sum(len(one.values) == 1 for one in undecided)
    answers = to_markdown(scoreboard.answer_topics(results, load_claims().topics))
    return (
        f"{TITLE}\n{scoreboard.count_verdicts(results, scale)} {scoreboard.count_chance(results)}\n\n{answers}\n\n"
        f"**In one sentence.** {alone} of the {len(undecided)} undecided claims have a single run, so they need more. "
        f"The table above shows the scale of this run. [All verdicts at the {scale} scale]"
        f"(../results/{scale}/{scoreboard.PAGE})."
    )


def _render_quick(notebook: str) -> str:
    """Return the block of a notebook without results on real data."""
    claims = [one.claim for one in evaluate_claims("quick") if one.claim.measure]
    count = sum(claim.measure is not None and claim.measure.notebook == notebook for claim in claims)
    return (
        f"{TITLE}\n**This notebook has not been run on real data yet**, so none of its {count} claims has a verdict "
        "that says anything about the paper. The numbers above are those of the `quick` scale: drawn scenes, narrow "
        "networks and minutes of training. They show that every step works, and no more. "
        f"`paperlib reproduce {notebook} --profile laptop` runs it on real data, "
        "[claims.yaml](claims.yaml) says how each claim will be judged."
    )


def _describe_scale(notebook: str, scale: str) -> str:
    """Return at which settings the numbers were measured."""
    settings = files.read_json(paths.results_root() / scale / notebook / CERTIFICATE)["settings"]
    seeds = len(settings["seeds"])
    data = DATA_SETS.get(settings["dataset"], settings["dataset"])
    return (
        f"At the `{scale}` scale: {data}, {settings['image_size']} pixels, {settings['epochs']} epochs in batches of "
        f"{settings['batch_size']} (the paper: 300 in batches of 16), "
        f"{seeds} seed{'s' * (seeds > 1)}."
    )


def _tabulate(results: Sequence[ClaimResult]) -> pd.DataFrame:
    rows = scoreboard.tabulate_claims(results)
    verdicts = rows["verdict"].where(rows["reason"] == "", rows["verdict"] + ": " + rows["reason"])
    columns = {
        "claim": rows["claim"],
        "paper": rows["paper"],
        "here": rows["here"],
        "90 % interval": rows["90 % interval"],
    }
    return pd.DataFrame({**columns, "COCO mAP": rows["COCO mAP"], "holds if": rows["criterion"], "verdict": verdicts})


def _fill_sentence(notebook: str, scale: str, results: Sequence[ClaimResult]) -> str:
    """Return the notebook's sentence with its numbers, after a check that it still says what was found."""
    path = claims_path().with_name("findings.yaml")
    found = files.read_yaml(path)[notebook]
    by_id = {result.claim.id: result for result in results}
    for name, verdict in found.get("rests_on", {}).items():
        if by_id[name].verdict != verdict:
            raise ValueError(f"{path}: {notebook}: {name} is now “{by_id[name].verdict}”; write another sentence")
    rows = files.read_json(paths.results_root() / scale / notebook / METRICS)
    values = _Values(by_id, [*rows["models"], *rows.get("measured", [])], f"{path}: {notebook}")
    return re.sub(r"\{([^}]+)\}", lambda match: values.look_up(match[1]), found["sentence"])


class _Values:
    """The numbers that a sentence may name."""

    def __init__(self, claims: Mapping[str, ClaimResult], rows: Sequence[Mapping[str, Any]], place: str) -> None:
        self.claims, self.rows, self.place = claims, rows, place

    def look_up(self, name: str) -> str:
        """Return a claim's value with its interval, or the mean over the seeds of `model|metric`."""
        if result := self.claims.get(name):
            if result.claim.unit == "times":
                return scoreboard.format_number(result.mean, "times").replace("×", "times")
            unit = " points" * (result.claim.unit == "points")
            interval = scoreboard.format_interval(result).removesuffix(scoreboard.ASSUMED)
            return f"{scoreboard.format_number(result.mean, result.claim.unit)}{unit}, 90 % interval {interval}"
        model, _, metric = name.partition("|")
        found = [row[metric] for row in self.rows if row["model"] == model and metric in row]
        if not found:
            raise ValueError(f"{self.place}: no claim and no model {name!r}")
        return FORMATS[metric].format(fmean(found)) if metric in FORMATS else f"{100 * fmean(found):.1f} %"


def _close(notebook: str, scale: str, results: Sequence[ClaimResult]) -> str:
    """Return what was not measured, and where to look further."""
    reasons = Counter(one.reason for one in results if one.verdict is Verdict.NOT_RUN)
    missing = "; ".join(f"{reason} ({count})" for reason, count in reasons.items())
    assumed = any(one.assumed for one in results)
    note = "*Assumed*: no run was repeated, so the interval is the usual one between runs of a recipe. " * assumed
    text = f"Claims not measured at this scale: {missing}. " if missing else ""
    folder = f"../results/{scale}"
    return f"{note}{text}[Results and certificate]({folder}/{notebook}) · [all verdicts]({folder}/{scoreboard.PAGE})"
