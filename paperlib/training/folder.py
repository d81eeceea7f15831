"""The folder of a training: which files it has, whose they are, and how it is emptied."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

from paperlib import files
from paperlib.training.callback import TOLD

HISTORY, BEST, LAST, IDENTITY = "history.jsonl", "best.safetensors", "last.safetensors", "training.json"


def identity_in(folder: Path) -> str | None:
    """Return the identity of the training in a folder; None if there is none, or if its file is damaged."""
    try:
        return files.read_json(folder / IDENTITY)["identity"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def restore_file(source: Path, target: Path) -> None:
    """Copy a file, unless the target has the same content already."""
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    with files.replace_file(target) as copy:
        shutil.copyfile(source, copy)


def delete_training(folder: Path) -> None:
    """Delete the files of a training, its identity last, and nothing else."""
    for state in [*folder.glob("state-*"), *folder.glob("damaged-state-*")]:
        shutil.rmtree(state)
    for name in (HISTORY, BEST, LAST, TOLD, IDENTITY):
        (folder / name).unlink(missing_ok=True)
