"""Why a finished step or the results of a notebook are out of date: what changed since they were made."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from paperlib import files
from paperlib.store import provenance
from paperlib.store.code_digest import Code, code_of
from paperlib.store.imported import describe_processor
from paperlib.store.inspect import StoredStep, find_steps, format_count
from paperlib.store.store import CODE, installed_libraries

SHOWN = 5
"""So many definitions of a unit are named, the others are counted."""


class UnknownStepError(ValueError):
    """No finished step has a name or digest that begins as asked."""


def find_step(store: Path, name: str) -> StoredStep:
    """Return the finished step whose digest or folder's name begins with `name`.

    Raises:
        UnknownStepError: there is none.
        ValueError: there is more than one.
    """
    steps = find_steps(store)
    digest = name[:16]
    found = [step for step in steps if step.folder.name.startswith(name) or step.key.startswith(digest)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name}: {len(found)} steps begin like this, such as {found[0].folder.name}")
    kinds = Counter(step.kind for step in steps)
    known = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    raise UnknownStepError(f"{name}: no step in {store} has a name or digest that begins so; finished steps: {known}")


def explain_step(store: Path, name: str) -> list[str]:
    """Return in plain lines whether a step is up to date and, if not, what changed since it was made.

    Raises:
        UnknownStepError: there is no such step.
        ValueError: there is more than one.
    """
    step = find_step(store, name)
    by_key = {each.key: each for each in find_steps(store)}
    lines = find_step_changes(store, step)
    # A step names its parents by their digests. So it is up to date only if they, and theirs, still would be the same.
    ancestors, missing = _find_ancestors(step.parents, by_key)
    for parent in ancestors:
        changes = find_step_changes(store, parent)
        if changes:
            lines.append(f"it rests on {parent.folder.name}, which is itself stale:")
            lines += [f"  {change}" for change in changes]
    lines += [f"it rests on step {key}, which is missing from the store" for key in missing]
    verdict = "is stale:" if lines else "is up to date."
    made = f"made {step.finished:%Y-%m-%d %H:%M} UTC{_describe_origin(step)}"
    headline = f"{step.folder.name}, {made}, {verdict}"
    return [headline, *(f"  {line}" for line in lines), *_compare_with_newest(step, list(by_key.values()))]


def explain_notebook(store: Path, certificate: dict[str, Any], settings: dict[str, Any], code: Code) -> list[str]:
    """Return in plain lines what changed since the results of a notebook were made; no line if nothing did.

    Args:
        store: where the steps of the results are kept.
        certificate: the `provenance.json` of the results.
        settings: the settings of the profile as it is now.
        code: the code that the notebook imports, as it is now.
    """
    lines = [f"setting {each}" for each in compare_values(certificate["settings"], provenance.hide_folders(settings))]
    lines += [f"library {each}" for each in compare_values(certificate["versions"], provenance.installed_versions())]
    # Certificates written before the digest was recorded name the commit only.
    made_by = certificate["code"].get("digest")
    if made_by is None:
        lines.append(f"which code made it is not recorded beyond its commit, {certificate['code']['commit']}")
    elif made_by != code.digest:
        lines += _compare_code(store, made_by, code)
    by_key = {step.key: step for step in find_steps(store)}
    steps, missing = _find_ancestors([digest[:16] for digest in certificate["steps"]], by_key)
    # Hundreds of steps may be stale for one reason, so each reason is told once.
    reasons = Counter(change for step in steps for change in find_step_changes(store, step))
    lines += [f"{format_count(number, 'step')} of those behind it: {change}" for change, number in reasons.items()]
    if missing:
        lines.append(
            f"{format_count(len(missing), 'step')} of those behind it missing from the store: {', '.join(missing)}"
        )
    return lines


def compare_values(old: Any, new: Any, place: str = "") -> list[str]:
    """Return where two nested values differ: "recipe.epochs: 12 -> 18"."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in dict.fromkeys([*old, *new]):
            inner = f"{place}.{key}" if place else str(key)
            if key not in new:
                lines.append(f"{inner}: {old[key]} -> none")
            elif key not in old:
                lines.append(f"{inner}: none -> {new[key]}")
            else:
                lines += compare_values(old[key], new[key], inner)
        return lines
    return [] if old == new else [f"{place}: {old} -> {new}"]


def _describe_origin(step: StoredStep) -> str:
    """Return where an imported step was made, and whether its weights are here; nothing of a step made here."""
    if not step.imported:
        return ""
    weights = "" if step.has_weights else " without weights"
    return f" on {describe_processor(step.record.get('machine', {}))} and imported{weights}"


def find_step_changes(store: Path, step: StoredStep) -> list[str]:
    """Return in a few words what of the code and the libraries has changed since a step was made; none if nothing."""
    if not step.identity:
        return ["its step.json cannot be read"]
    lines = [f"library {each}" for each in compare_values(step.identity["libraries"], installed_libraries())]
    digest = step.identity["code"]
    try:
        parts = files.read_json(store / CODE / f"{digest}.json")["parts"]
    except (OSError, ValueError, KeyError):
        return [*lines, "which code made it is not recorded"]
    try:
        code = code_of(*parts)
    except ValueError as error:
        return [*lines, f"the code that made it cannot be found: {error}"]
    return lines if code.digest == digest else lines + _compare_code(store, digest, code)


def _find_ancestors(keys: list[str], by_key: dict[str, StoredStep]) -> tuple[list[StoredStep], list[str]]:
    """Return the steps of these keys and all steps behind them, and the keys of those that are missing."""
    pending = list(keys)
    found: dict[str, StoredStep] = {}
    missing: dict[str, None] = {}
    while pending:
        key = pending.pop(0)
        if key not in by_key:
            missing[key] = None
        elif key not in found:
            found[key] = by_key[key]
            pending += by_key[key].parents
    return list(found.values()), list(missing)


def _compare_code(store: Path, digest: str, now: Code) -> list[str]:
    """Return which definitions of which unit changed since the code had this digest."""
    try:
        then = files.read_json(store / CODE / f"{digest}.json")["units"]
    except (OSError, ValueError, KeyError):
        return ["the code changed; what it was is not recorded in this store"]
    lines = []
    for unit in sorted(then.keys() | now.units.keys()):
        if unit not in now.units:
            lines.append(f"paperlib/{unit}: no longer used")
        elif unit not in then:
            lines.append(f"paperlib/{unit}: used now, but not then")
        else:
            lines += [f"paperlib/{unit}: {change}" for change in _compare_definitions(then[unit], now.units[unit])]
    return lines


def _compare_definitions(old: dict[str, str], new: dict[str, str]) -> list[str]:
    both = old.keys() & new.keys()
    kinds = {
        "changed": [name for name in sorted(both) if old[name] != new[name]],
        "added": sorted(new.keys() - both),
        "removed": sorted(old.keys() - both),
    }
    lines = []
    for what, names in kinds.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines += [f"{', '.join(names[:SHOWN])}{more} {what}"] if names else []
    return lines


def _compare_with_newest(step: StoredStep, steps: list[StoredStep]) -> list[str]:
    """Return how the newest step of the same kind and seed differs in settings and data, if it is another one."""
    # Steps of other seeds differ on purpose.
    alike = [other for other in steps if other.kind == step.kind and other.identity and _seed(other) == _seed(step)]
    newest = max(alike, key=lambda other: other.finished, default=step)
    if newest.key == step.key or not step.identity:
        return []
    lines = compare_values(step.identity["settings"], newest.identity["settings"])
    if step.identity["data"] != newest.identity["data"]:
        lines.append("the data")
    intro = f"The newest {step.kind} step of this seed, {newest.folder.name}, differs in settings and data as follows:"
    return [intro, *(f"  {line}" for line in lines)] if lines else []


def _seed(step: StoredStep) -> Any:
    settings = step.identity.get("settings", {})
    return settings.get("recipe", settings).get("seed")
