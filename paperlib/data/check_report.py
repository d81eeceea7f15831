"""What a check of a data set finds: per image, and gathered in a report."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from paperlib.progress.report import track_items

NAMED = 5
"""Maximum number of files that a remark names; of the rest it gives the number."""


@dataclass
class ImageFindings:
    """The findings in one image and its annotation."""

    name: str
    counts: Counter[int] = field(default_factory=Counter)
    content: bytes | None = None
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def attempt(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of `action`, or None after an error, which becomes a fault."""
        try:
            return action(*arguments)
        except (ValueError, OSError) as error:
            self.faults.append(str(error))
            return None


@dataclass
class Report:
    """The result of a check.

    Attributes:
        title, folder: of the data set.
        table: rows for `tabulate`.
        summary: one line.
        faults: errors that make the set unusable, one line each.
        remarks: findings that do not, one line each.
    """

    title: str
    folder: Path
    table: list[dict[str, Any]] = field(default_factory=list)
    summary: str = ""
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """Return the report as text."""
        table = [tabulate(self.table, headers="keys", intfmt=",", missingval="")] if self.table else []
        faults = [f"FAULT  {fault}" for fault in self.faults]
        verdict = f"{len(faults)} faults" if faults else "no faults"
        remarks = [f"remark  {remark}" for remark in self.remarks]
        return "\n".join([f"{self.title}: {self.folder}", *table, *remarks, *faults, f"{self.summary}: {verdict}"])

    def add_images(self, images: list[ImageFindings], split_of: Mapping[str, str]) -> None:
        """Add the faults of all images, and their remarks by kind.

        Args:
            images: what was found in each.
            split_of: by image, its split; the same picture in two splits is a fault.
        """
        self.faults += [fault for image in images for fault in image.faults]
        kinds, contents = defaultdict(list), defaultdict(list)
        for image in images:
            for remark in image.remarks:
                kinds[remark].append(image.name)
            if image.content:
                contents[image.content].append(image.name)
        for names in (names for names in contents.values() if len(names) > 1):
            splits = sorted({split_of[name] for name in names if name in split_of})
            if len(splits) > 1:
                self.faults.append(f"the same picture in {' and '.join(splits)}: {', '.join(names)}")
            else:
                self.remarks.append(f"the same picture: {', '.join(names)}")
        for remark, names in kinds.items():
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            self.remarks.append(f"{remark}: {', '.join(names[:NAMED])}{more}")


def read_images(names: Sequence[str], read: Callable[[str], ImageFindings], title: str) -> list[ImageFindings]:
    """Read all images of the data set called `title`, several at a time."""
    # The decoders release the interpreter's lock, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(read, names)
        return [found for _, found in zip(track_items(names, f"checking {title}"), done, strict=True)]
