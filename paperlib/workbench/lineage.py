"""The finished steps behind a result, found from parent to parent in their store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib import files
from paperlib.store.ancestry import step_folder
from paperlib.store.contents import IMPORTED, RECORD
from paperlib.training.folder import HISTORY


def steps_behind(folders: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder and the identity of finished steps and of all their ancestors, each once.

    Raises:
        FileNotFoundError: an ancestor is missing from the store.
    """
    pending = [*folders]
    seen = set()
    while pending:
        folder = pending.pop()
        if folder not in seen:
            seen.add(folder)
            step = files.read_json(folder / "step.json")["step"]
            yield folder, step
            pending += [step_folder(folder.parent, parent) for parent in step["parents"]]


def describe_origins(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Return which machine made which of the steps behind finished ones, if some of them were imported, else nothing.

    Returns:
        For each machine its description (see `paperlib.store.provenance.describe_machine`), `precision` of the training
        steps, and the names of the steps: `imported`, and `steps` for those that were made in this store.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for folder, step in steps_behind(folders):
        machine = files.read_json(folder / RECORD)["machine"]
        made = {**machine, "precision": step["settings"].get("recipe", {}).get("precision")}
        group = grouped.setdefault(json.dumps(made, sort_keys=True), {**made, "steps": [], "imported": []})
        group["imported" if (folder / IMPORTED).exists() else "steps"].append(folder.name)
    if not any(group["imported"] for group in grouped.values()):
        return []
    names = ("steps", "imported")
    return [grouped[key] | {name: sorted(grouped[key][name]) for name in names} for key in sorted(grouped)]


def training_seconds(folders: Iterable[Path]) -> float:
    """Return the seconds that all trainings behind finished steps took in total, validation included."""
    total = 0.0
    for folder, _ in steps_behind(folders):
        if (folder / HISTORY).exists():
            total += pd.read_json(folder / HISTORY, lines=True)["seconds"].to_numpy().sum()
    return float(total)
