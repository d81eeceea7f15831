"""The verdicts on the papers' claims as text: in the terminal, as a page, and counted for the README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from paperlib import files, paths
from paperlib.claims.schema import Unit
from paperlib.claims.verdicts import ClaimResult, Verdict, evaluate_claims
from paperlib.figures.tables import to_markdown

PAGE = "claims.md"
COLUMNS = ["id", "section", "claim", "paper", "here", "criterion", "verdict", "reason"]
HOW_TO_READ = (
    "*Here* is the mean ± standard deviation over the seeds; *criterion* is what counts as holding at this scale: a "
    "direction or an order, unless it is the paper's own number. A claim is decided if the 90 % interval of the mean "
    "lies on one side of the criterion. The criteria, and the interval assumed for a single seed, are in "
    "`notebooks/claims.yaml`. Differences are in percentage points; *×* means times smaller, cheaper or faster."
)
STAND_IN = (
    "Below the paper scale, YOLOv4-tiny replaces the YOLOv3 of Sections 3.1 and 4.4.1, and the YOLOv4 of Table 5."
)


def count_verdicts(results: Sequence[ClaimResult], scale: str) -> str:
    """Return a sentence that says how many claims have which verdict."""
    counts = Counter(result.verdict for result in results)
    words = {Verdict.HOLDS: "hold", Verdict.FAILS: "do not hold", Verdict.UNDECIDED: "are undecided"}
    measured = ", ".join(f"{counts[verdict]} {phrase}" for verdict, phrase in words.items())
    return f"Of {len(results)} claims {measured}, and {counts[Verdict.NOT_RUN]} were not run at the {scale} scale."


def tabulate_claims(results: Sequence[ClaimResult]) -> pd.DataFrame:
    """Return one row per claim, formatted for people."""
    rows = [
        (
            result.claim.id,
            f"{result.paper.short} {result.claim.section}".lstrip(),
            result.claim.claim,
            _format_reported(result),
            _format_measured(result),
            str(result.criterion or "–").replace("-", "−"),
            str(result.verdict),
            result.reason,
        )
        for result in results
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def format_listing(results: Sequence[ClaimResult]) -> str:
    """Return all claims as a table for a terminal."""
    return tabulate_claims(results).drop(columns=["section", "claim"]).to_markdown(index=False, tablefmt="simple")


def render_page(results: Sequence[ClaimResult], scale: str) -> str:
    """Return all claims as a Markdown page: first those with a verdict, then those without, and why."""
    measured, not_run = _split_by_verdict(results)
    parts = [f"# The paper's claims at the {scale} scale", count_verdicts(results, scale), f"{HOW_TO_READ} {STAND_IN}"]
    others = {result.paper.short: result.paper for result in results if result.paper.short}
    parts += [f"Claims of *{short}* are those of: {paper.title}." for short, paper in others.items()]
    if measured:
        parts += ["## Measured", _measured_table(measured)]
    if not_run:
        shown = tabulate_claims(not_run).filter(["section", "claim", "paper", "reason"])
        parts += ["## Not run at this scale", to_markdown(shown)]
    return "\n\n".join(parts) + "\n"


def render_count(scale: str) -> str:
    """Return how many claims have which verdict at a scale, with a link to all of them."""
    counts = count_verdicts(evaluate_claims(scale), scale)
    return f"{counts} [results/{scale}/{PAGE}](results/{scale}/{PAGE}) lists all."


def write_page(scale: str) -> list[ClaimResult]:
    """Evaluate all claims at a scale and write `results/<scale>/claims.md`.

    Raises:
        ValueError: there is no such scale, or the results that it reads are damaged.
    """
    results = evaluate_claims(scale)
    files.write_text_atomically(paths.results_root() / scale / PAGE, render_page(results, scale))
    return results


def _split_by_verdict(results: Sequence[ClaimResult]) -> tuple[list[ClaimResult], list[ClaimResult]]:
    """Return the claims that were measured, and those that were not run."""
    measured = [result for result in results if result.verdict is not Verdict.NOT_RUN]
    return measured, [result for result in results if result.verdict is Verdict.NOT_RUN]


def _measured_table(results: Sequence[ClaimResult]) -> str:
    shown = tabulate_claims(results)
    shown["verdict"] = shown["verdict"].where(shown["reason"] == "", shown["verdict"] + ": " + shown["reason"])
    return to_markdown(shown.drop(columns=["id", "reason"]))


def _format_reported(result: ClaimResult) -> str:
    """Return the paper's number; of a paper without public numbers, that there is none."""
    if not result.paper.has_numbers:
        return "no number is public"
    return format_number(result.claim.reported, result.claim.unit)


def format_number(value: float | None, unit: Unit) -> str:
    """Return a number in its unit; a dash for None."""
    if value is None:
        return "–"
    text = {"points": f"{value:+.1f}", "%": f"{value:.1f} %", "times": f"{value:.3g} ×"}[unit]
    return text.replace("-", "−")


def _format_measured(result: ClaimResult) -> str:
    if not result.values:
        return "–"
    seeds = len(result.values)
    spread = "" if result.spread is None else f" ± {result.spread:.2g}"
    return f"{format_number(result.mean, result.claim.unit)}{spread} ({seeds} seed{'s' * (seeds > 1)})"
