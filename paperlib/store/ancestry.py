"""The line of models that a finished step comes from, found through the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paperlib import files
from paperlib.store.contents import ASIDE

FRESH = ("new", "adopt", "reset", "draw")
"""Kinds of steps whose channels are not those of their parent."""


def find_prunings(teacher: Path, student: Path) -> list[Path] | None:
    """Return the folders of all prunings that lead from a teacher's channels to those of a student, in order.

    Both come from a common model: the teacher itself, or the model that it was before a training, a fine-tuning or a
    distillation, none of which changes the channels.

    Args:
        teacher: folder of a finished step.
        student: likewise.

    Returns:
        The folders, none if both have the same channels; None if the student's channels are not some of the teacher's.

    Raises:
        FileNotFoundError: an ancestor is missing from the store.
    """
    teachers_line = dict(_line_of(teacher))
    prunings = []
    for folder, kind in _line_of(student):
        if folder in teachers_line:
            before = [*teachers_line.values()][: [*teachers_line].index(folder)]
            return None if "prune" in before else prunings[::-1]
        if kind == "prune":
            prunings.append(folder)
    return None


def step_folder(store: Path, digest: str) -> Path:
    """Return the folder in which a store keeps the step of a digest.

    Raises:
        FileNotFoundError: the store has no such step.
    """
    if (found := find_step_folder(store, digest)) is None:
        raise FileNotFoundError(f"{store}: no finished step {digest[:16]}")
    return found


def find_step_folder(store: Path, digest: str) -> Path | None:
    """Return the folder in which a store keeps the step of a digest; None if it has no such step."""
    found = (path for path in store.glob(f"*-{digest[:16]}") if path.is_dir() and not path.name.startswith(ASIDE))
    return next(found, None)


def _line_of(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folder and kind of a step, of the model that it starts from, of that model's, and so on."""
    while True:
        step = files.read_json(folder / "step.json")["step"]
        yield folder, step["kind"]
        if step["kind"] in FRESH or not step["parents"]:
            return
        # The first parent is the model; a teacher, or the original of a pruned model, stands behind it.
        folder = step_folder(folder.parent, step["parents"][0])
