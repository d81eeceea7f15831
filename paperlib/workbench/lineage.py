"""The finished steps behind a result, found from parent to parent in their store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib import files
from paperlib.store.ancestry import step_folder
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


def training_seconds(folders: Iterable[Path]) -> float:
    """Return the seconds that all trainings behind finished steps took in total, validation included."""
    total = 0.0
    for folder, _ in steps_behind(folders):
        if (folder / HISTORY).exists():
            total += pd.read_json(folder / HISTORY, lines=True)["seconds"].to_numpy().sum()
    return float(total)
