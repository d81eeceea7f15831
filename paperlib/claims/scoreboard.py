"""The verdicts on the paper's claims, for people: in the terminal, as a page, as an excerpt of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from paperlib import files, paths
from paperlib.claims.schema import Unit
from paperlib.claims.verdicts import Judgement, Verdict, judge_all

PAGE = "claims.md"
HOW_TO_READ = (
    "*Here* is the mean ± standard deviation over the seeds, *asked* what counts as holding at this scale: a direction "
    "or an order, unless it is the paper's own. A verdict asks that the 90 % interval of the mean lies on one side of "
    "that. Both, and how far one seed is trusted, stand in `notebooks/claims.yaml`. Differences are in percentage "
    "points; *×* is times smaller, cheaper or faster."
)
STAND_IN = (
    "Below the paper's scale YOLOv4-tiny stands in for the YOLOv3 of Sections 3.1 and 4.4.1, and for the YOLOv4 of "
    "Table 5."
)


def counted(judgements: Sequence[Judgement], scale: str) -> str:
    """How many claims met with which verdict, in a sentence."""
    counts = Counter(judgement.verdict for judgement in judgements)
    words = {Verdict.HOLDS: "hold", Verdict.FAILS: "do not hold", Verdict.UNDECIDED: "are undecided"}
    judged = ", ".join(f"{counts[verdict]} {phrase}" for verdict, phrase in words.items())
    return f"Of {len(judgements)} claims {judged}, and {counts[Verdict.NOT_RUN]} were not run at the {scale} scale."


def table(judgements: Sequence[Judgement]) -> pd.DataFrame:
    """One row a claim, all in words."""
    rows = [
        {
            "id": judgement.claim.id,
            "section": judgement.claim.section,
            "claim": judgement.claim.claim,
            "paper": _number(judgement.claim.reported, judgement.claim.unit),
            "here": _here(judgement),
            "asked": str(judgement.bounds or "–").replace("-", "−"),
            "verdict": str(judgement.verdict),
            "reason": judgement.reason,
        }
        for judgement in judgements
    ]
    return pd.DataFrame(rows, columns=["id", "section", "claim", "paper", "here", "asked", "verdict", "reason"])


def listing(judgements: Sequence[Judgement]) -> str:
    """All claims for a terminal."""
    return table(judgements).drop(columns=["section", "claim"]).to_markdown(index=False, tablefmt="simple")


def page(judgements: Sequence[Judgement], scale: str) -> str:
    """All claims as a Markdown page: first those with a verdict, then those without, and why."""
    judged, open_ones = _by_fate(judgements)
    parts = [f"# The paper's claims at the {scale} scale", counted(judgements, scale), f"{HOW_TO_READ} {STAND_IN}"]
    if judged:
        parts += ["## Measured", _judged(judged)]
    if open_ones:
        parts += ["## Not run at this scale", markdown(table(open_ones)[["section", "claim", "paper", "reason"]])]
    return "\n\n".join(parts) + "\n"


def excerpt(scale: str) -> str:
    """How many claims met with which verdict at a scale, those that have one, and why others have none."""
    judgements = judge_all(scale)
    judged, open_ones = _by_fate(judgements)
    link = f"[results/{scale}/{PAGE}](results/{scale}/{PAGE}) lists all. {STAND_IN}"
    shown = [_judged(judged)] if judged else []
    return "\n\n".join([f"{counted(judgements, scale)} {link}", *shown, *_not_run(open_ones)])


def _not_run(judgements: Sequence[Judgement]) -> list[str]:
    """Why claims were not run, the commonest reason first, in a sentence; none if all were."""
    never = "not measured at any scale"
    reasons = Counter(one.reason if one.claim.measure else never for one in judgements)
    counts = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    return [f"Not run, with the number of claims: {counts}."] if counts else []


def write_page(scale: str) -> list[Judgement]:
    """Judge all claims at a scale and write `results/<scale>/claims.md`.

    Raises:
        ValueError: there is no such scale, or what it rests on is damaged.
    """
    judgements = judge_all(scale)
    files.write_text_atomically(paths.results_root() / scale / PAGE, page(judgements, scale))
    return judgements


def _by_fate(judgements: Sequence[Judgement]) -> tuple[list[Judgement], list[Judgement]]:
    judged = [judgement for judgement in judgements if judgement.verdict is not Verdict.NOT_RUN]
    return judged, [judgement for judgement in judgements if judgement.verdict is Verdict.NOT_RUN]


def _judged(judgements: Sequence[Judgement]) -> str:
    shown = table(judgements)
    why = shown["verdict"].where(shown["reason"] == "", shown["verdict"] + ": " + shown["reason"])
    return markdown(shown.assign(verdict=why)[["section", "claim", "paper", "here", "asked", "verdict"]])


def markdown(shown: pd.DataFrame) -> str:
    """A table of text, without padding: a change in one row is a change in one line."""
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, unit: Unit) -> str:
    if value is None:
        return "–"
    text = {"points": f"{value:+.1f}", "%": f"{value:.1f} %", "times": f"{value:.3g} ×"}[unit]
    return text.replace("-", "−")


def _here(judgement: Judgement) -> str:
    if not judgement.values:
        return "–"
    seeds = len(judgement.values)
    spread = "" if judgement.spread is None else f" ± {judgement.spread:.2g}"
    return f"{_number(judgement.mean, judgement.claim.unit)}{spread} ({seeds} seed{'s' * (seeds > 1)})"
