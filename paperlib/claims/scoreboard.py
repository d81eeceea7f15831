"""The verdicts on the papers' claims as text: in the terminal, as a page, and counted for the README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

import pandas as pd

from paperlib import files, paths
from paperlib.claims.schema import Topic, Unit, load_claims
from paperlib.claims.verdicts import ClaimResult, Verdict, evaluate_claims
from paperlib.figures.tables import to_markdown

PAGE = "claims.md"
ASSUMED = " (assumed)"
COLUMNS = ["id", "section", "claim", "paper", "here", "90 % interval", "COCO mAP", "criterion", "verdict", "reason"]
WORDS = {
    Verdict.HOLDS: "hold",
    Verdict.OTHER_SIZE: "hold in direction, not in size",
    Verdict.FAILS: "do not hold",
    Verdict.EQUAL: "show no difference within ± 1 point",
    Verdict.UNDECIDED: "are undecided",
}
DECIDED = (Verdict.HOLDS, Verdict.OTHER_SIZE, Verdict.FAILS, Verdict.EQUAL)
ERROR_RATE = 0.05
"""How often a 90 % interval lies wholly on the wrong side of a bound that the true value is at."""
HOW_TO_READ = (
    "*Here* is the mean over the runs; *criterion* is what counts as holding at this scale. The 90 % interval comes "
    "from the noise of all runs of the scale, pooled, and from test images drawn again; where no run was repeated, it"
    " is assumed. **Holds**: the interval lies within the criterion and, where the paper reports a size, the mean is "
    "near it. **Same direction, other size**: only the direction agrees. **No difference within ± 1 point**: the "
    "interval lies within these bounds. **Does not hold**: it lies outside of the criterion. **Undecided**: none of "
    "these. A claim on mAP50 is also decided by COCO's mAP, with bounds in proportion; *!* marks where the two "
    "contradict each other. Criteria and assumptions are in `notebooks/claims.yaml`. Differences are in percentage "
    "points; *×* means times smaller, cheaper or faster. `examples/verdict.py` computes "
    "any verdict from `metrics.json`."
)
STAND_IN = (
    "Below the paper scale, YOLOv4-tiny replaces the YOLOv3 of Sections 3.1 and 4.4.1, and the YOLOv4 of Table 5."
)


def count_verdicts(results: Sequence[ClaimResult], scale: str) -> str:
    """Return a sentence that says how many claims have which verdict."""
    counts = Counter(result.verdict for result in results)
    measured = ", ".join(f"{counts[verdict]} {words}" for verdict, words in WORDS.items() if counts[verdict])
    not_run = f"{counts[Verdict.NOT_RUN]} were not run at the {scale} scale"
    return f"Of {len(results)} claims {measured + ', and ' if measured else ''}{not_run}."


def count_chance(results: Sequence[ClaimResult]) -> str:
    """Return a sentence that says how many verdicts would be wrong by chance."""
    decided = [result for result in results if result.verdict in DECIDED and result.half_width > 0]
    text = (
        f"An interval errs in 5 % of cases on each side: if all true values were at their bounds, about "
        f"{ERROR_RATE * len(decided):.1f} of the {len(decided)} decided claims would be decided wrongly by chance."
    )
    if contradicted := sum(result.contradicted for result in results):
        text += f" COCO's mAP contradicts mAP50 on {contradicted}."
    return text


def tabulate_claims(results: Sequence[ClaimResult]) -> pd.DataFrame:
    """Return one row per claim, formatted for people."""
    rows = [
        (
            result.claim.id,
            f"{result.paper.short} {result.claim.section}".lstrip(),
            result.claim.claim,
            _format_reported(result),
            _format_measured(result),
            format_interval(result),
            _format_coco(result),
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


def render_page(results: Sequence[ClaimResult], scale: str, topics: Sequence[Topic] = ()) -> str:
    """Return all claims as a Markdown page: what a reader asks, then those with a verdict, then those without."""
    measured, not_run = _split_by_verdict(results)
    parts = [f"# The paper's claims at the {scale} scale", f"{count_verdicts(results, scale)} {count_chance(results)}"]
    if measured and topics:
        parts.append(to_markdown(answer_topics(results, topics)))
    parts.append(f"{HOW_TO_READ} {STAND_IN}")
    others = {result.paper.short: result.paper for result in results if result.paper.short}
    parts += [f"Claims of *{short}* are those of: {paper.title}." for short, paper in others.items()]
    if measured:
        parts += ["## Measured", _measured_table(measured)]
    if not_run:
        shown = tabulate_claims(not_run).filter(["section", "claim", "paper", "reason"])
        parts += ["## Not run at this scale", to_markdown(shown)]
    return "\n\n".join(parts) + "\n"


def answer_topics(results: Sequence[ClaimResult], topics: Sequence[Topic]) -> pd.DataFrame:
    """Return a row for each question of a reader: the problem, what we found, and how sure that is."""
    rows = []
    for topic in topics:
        mine = [result for result in results if _belongs(result, topic)]
        measured, _ = _split_by_verdict(mine)
        rows.append(
            (f"{topic.question}? ({topic.sections[0]})", _describe_found(measured, topic), _describe_sure(measured))
        )
    return pd.DataFrame(rows, columns=["problem", "what we found", "how sure"])


def _belongs(result: ClaimResult, topic: Topic) -> bool:
    return result.claim.paper == topic.paper and result.claim.section.startswith(tuple(topic.sections))


def _describe_found(measured: Sequence[ClaimResult], topic: Topic) -> str:
    """Return the number that answers best, and how many claims have which verdict."""
    if not measured:
        return "not run at this scale"
    counts = Counter(result.verdict for result in measured)
    listed = ", ".join(f"{counts[verdict]} × {verdict}" for verdict in WORDS if counts[verdict])
    best = next((result for result in measured if result.claim.id == topic.headline), measured[0])
    paper = "" if best.claim.reported is None else f" (paper: {format_number(best.claim.reported, best.claim.unit)})"
    number = f"{format_number(best.mean, best.claim.unit)}{paper}"
    return f"{best.claim.claim.rstrip('.')}: here {number}, *{best.verdict}*. {len(measured)} claims: {listed}."


def _describe_sure(measured: Sequence[ClaimResult]) -> str:
    """Return how wide the intervals are, and what they rest on."""
    widths = [result.half_width for result in measured if result.claim.unit == "points"]
    if not measured:
        return "–"
    runs = sorted({len(result.values) for result in measured})
    counted = f"{runs[0]} run{'s' * (runs[0] > 1)}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]} runs"
    assumed = sum(result.assumed for result in measured)
    text = f"{counted}" + (f"; 90 % intervals of about ± {median(widths):.1f} points" if widths else "")
    if fixed := sum("images not resampled" in result.source for result in measured):
        text += f"; {fixed} of {len(measured)} intervals from the noise of training alone"
    return text + (f"; {assumed} of {len(measured)} intervals assumed" if assumed else "")


def render_count(scale: str) -> str:
    """Return how many claims have which verdict at a scale, with a link to all of them."""
    results = evaluate_claims(scale)
    counts = f"{count_verdicts(results, scale)} {count_chance(results)}"
    return f"{counts} [results/{scale}/{PAGE}](results/{scale}/{PAGE}) lists all."


def write_page(scale: str) -> list[ClaimResult]:
    """Evaluate all claims at a scale and write `results/<scale>/claims.md`.

    Raises:
        ValueError: there is no such scale, or the results that it reads are damaged.
    """
    results = evaluate_claims(scale)
    page = render_page(results, scale, load_claims().topics)
    files.write_text_atomically(paths.results_root() / scale / PAGE, page)
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


def format_interval(result: ClaimResult) -> str:
    """Return the bounds of the 90 % interval, and whether it is assumed."""
    if not result.values:
        return "–"
    ends = (format_number(result.mean + sign * result.half_width, result.claim.unit) for sign in (-1, 1))
    return " to ".join(ends) + ASSUMED * result.assumed


def _format_coco(result: ClaimResult) -> str:
    """Return by how much COCO's mAP changes, with half its interval; marked where it contradicts mAP50."""
    if result.coco is None or not result.values:
        return "–"
    found, _ = result.coco
    return f"{format_number(found.mean, 'points')} ± {found.half_width:.1f}{' !' * result.contradicted}"


def _format_measured(result: ClaimResult) -> str:
    if not result.values:
        return "–"
    runs = len(result.values)
    return f"{format_number(result.mean, result.claim.unit)} ({runs} run{'s' * (runs > 1)})"
