"""Names of splits, as files and folders of different tools spell them."""

from __future__ import annotations

from collections.abc import Collection

SPLITS = ("train", "val", "test")
SPELLINGS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


def find_split(split: str, present: Collection[str]) -> str | None:
    """Return how a split is spelled among the names that are present; None if it is not there."""
    return next((name for name in SPELLINGS.get(split, (split,)) if name in present), None)


def known_splits(present: Collection[str]) -> tuple[str, ...]:
    """Return which of train, val and test are present, in any spelling."""
    return tuple(split for split in SPLITS if find_split(split, present))


def missing_split(place: str, split: str, present: Collection[str]) -> str:
    """Return the message about a split that a data set lacks."""
    listed = ", ".join(sorted(present))
    return f"{place}: has no {split}; it has {listed} (#NAME after the path names another)"
