"""What a result rests on: the finished steps behind it, walked from parent to parent through their store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib import files
from paperlib.training.loop import HISTORY


def steps_behind(folders: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folder and identity of finished steps and of all their ancestors, each once.

    Raises:
        FileNotFoundError: an ancestor is no longer in the store.
    """
    waiting, seen = [*folders], set()
    while waiting:
        if (folder := waiting.pop()) in seen:
            continue
        seen.add(folder)
        step = files.read_json(folder / "step.json")["step"]
        yield folder, step
        waiting += [step_folder(folder.parent, parent) for parent in step["parents"]]


def step_folder(store: Path, digest: str) -> Path:
    """Where a store keeps the step of a digest.

    Raises:
        FileNotFoundError: it has none.
    """
    found = [path for path in store.glob(f"*-{digest[:16]}") if path.is_dir()]
    if not found:
        raise FileNotFoundError(f"{store}: no finished step {digest[:16]}")
    return found[0]


def training_seconds(folders: Iterable[Path]) -> float:
    """What all trainings behind finished steps took together, validations included, whenever that was."""
    histories = [folder / HISTORY for folder, _ in steps_behind(folders)]
    return float(sum(pd.read_json(path, lines=True)["seconds"].sum() for path in histories if path.exists()))
