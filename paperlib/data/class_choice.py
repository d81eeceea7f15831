"""The classes of someone's data set: which of its categories are learned, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from paperlib.data.remarks import Remarks
from paperlib.files import quote_value

NAMED = 10
"""Maximum number of categories that a remark names."""


def find_used(
    names: Sequence[str], counts: Sequence[int], groups: Collection[int], *, learn: bool, remarks: Remarks
) -> list[int]:
    """Return the indices of the categories that become classes.

    Args:
        names: the K categories.
        counts: the number of boxes of each.
        groups: indices of categories that only group others, as the root category of a Roboflow export.
        learn: the data are for training, so that every category without boxes is left out; of others, which need not
            hold every class, only groups without boxes.
        remarks: names what is left out.
    """
    unused = [index for index, count in enumerate(counts) if not count and (learn or index in groups)]
    # Without any box, none of the categories is less a class than another.
    if not unused or not any(counts):
        return list(range(len(names)))
    listed = shorten_names([names[index] for index in unused])
    remarks.add(f"categories without boxes are left out: {listed} (--classes, classes=, keeps those named)")
    return [index for index in range(len(names)) if index not in unused]


def select_named(
    names: Sequence[str], counts: Sequence[int], chosen: Sequence[str], *, complete: bool, place: str, remarks: Remarks
) -> list[int]:
    """Return the indices of the categories with the chosen names, in that order.

    Args:
        names: the K categories.
        counts: the number of boxes of each.
        chosen: the names of the classes.
        complete: boxes of other categories are a fault; else they are left out.
        place: the annotation file.
        remarks: gets the number of boxes that are left out.

    Raises:
        ValueError: a chosen name is given twice or is not listed, or `complete` does not hold.
    """
    listed = shorten_names(names)
    for position, name in enumerate(chosen):
        if name in chosen[:position]:
            raise ValueError(f"classes: {quote_value(name)} is given twice")
        if name not in names:
            raise ValueError(f"{place}: lists no category {quote_value(name)}; it lists {listed}")
    if not chosen:
        raise ValueError("classes: no class is named")
    for index, count in enumerate(counts):
        if count and names[index] not in chosen:
            if complete:
                fault = f"has boxes of {quote_value(names[index])}, which is none of {shorten_names(chosen)}"
                raise ValueError(f"{place}: {fault}; --classes (classes=) chooses the classes to read")
            remarks.count("boxes of other classes, left out", quote_value(names[index]), count)
    return [names.index(name) for name in chosen]


def renumber_labels(labels: np.ndarray, kept: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels `[N]` in 1..K as labels in 1..C of the kept categories, and a mask of those that remain."""
    table = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.int64)
    for label, index in enumerate(kept, 1):
        if index + 1 < len(table):
            table[index + 1] = label
    numbered = table[labels]
    return numbered[numbered > 0], numbered > 0


def shorten_names(names: Sequence[str]) -> str:
    """Return the names for a message, the first of them if there are many."""
    return ", ".join(map(quote_value, names[:NAMED])) + (", …" if len(names) > NAMED else "")
