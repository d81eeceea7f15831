"""Check of a data set: every file is read, and the counts are compared with the published ones."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from paperlib import paths
from paperlib.data import LAYOUTS
from paperlib.data.layouts import Layout, not_in_split, require_file, split_path, stored_split
from paperlib.data.pictures import decode_image, read_header
from paperlib.data.registry import Entry, entry_folder
from paperlib.files import remembered_digest
from paperlib.progress.report import track_items

FORMATS = {".jpg": "JPEG", ".png": "PNG"}
NAMED = 5
"""Maximum number of files that a remark names; of the rest it gives the number."""


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


@dataclass
class _Image:
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


def check_entry(name: str, entry: Entry, folder: Path) -> Report:
    """Read all files of an entry of the registry in `folder`.

    Raises:
        FileNotFoundError: the folder, or one of its layout, is missing.
    """
    started = time.perf_counter()
    report = Report(entry.title, folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; `paperlib data fetch {name}` gets it, or says how")
    if name not in LAYOUTS:
        return _check_files(entry, report)
    layout = LAYOUTS[name]
    for part in layout.all_folders(folder):
        if not part.is_dir():
            raise FileNotFoundError(f"{part}: no such folder")
    names = _all_names(layout, report)
    present = len(layout.image_names(folder))
    # If there is a split, each image of it that is missing becomes a fault of its own.
    if not split_path(layout).is_file() and present != entry.images:
        report.faults.append(f"{folder}: {present:,} of {entry.images:,} published images")
    # The decoders release the interpreter's lock, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda image: _read(layout, folder, image), names)
        images = [found for _, found in zip(track_items(names, f"checking {entry.title}"), done, strict=True)]
    _gather(images, report)
    total = sum((image.counts for image in images), Counter())
    report.table = _table(layout, entry, total, complete=len(images) == entry.images, report=report)
    seconds = time.perf_counter() - started
    report.summary = f"{len(images):,} images and {total.total():,} boxes read in {seconds:.1f} s"
    return report


def describe_registry(entries: Mapping[str, Entry]) -> str:
    """Return a table with one line for each entry of the registry."""
    rows = [
        {
            "name": name,
            "": entry.title,
            "images": entry.images,
            "download": f"{entry.size / 1e6:,.0f} MB" if entry.files else "by hand",
            "here": "yes" if _is_here(entry) else "no",
            "licence": entry.licence,
        }
        for name, entry in entries.items()
    ]
    return f"data folder: {paths.data_root()}\n{tabulate(rows, headers='keys', intfmt=',', missingval='')}"


def _is_here(entry: Entry) -> bool:
    """Return whether the folder and every file that is not unpacked are there."""
    folder = entry_folder(entry)
    return folder.is_dir() and all((folder / file.name).is_file() for file in entry.files if not file.unpack)


def _check_files(entry: Entry, report: Report) -> Report:
    """Compare files that are not a data set with their SHA-256."""
    for file in entry.files:
        path = report.folder / file.name
        if not path.is_file():
            report.faults.append(f"{path}: no such file")
        elif remembered_digest(path) != file.sha256:
            report.faults.append(f"{path}: {path.stat().st_size:,} bytes whose SHA-256 is not {file.sha256}")
    report.summary = f"{len(entry.files)} files compared with their SHA-256"
    return report


def _all_names(layout: Layout, report: Report) -> list[str]:
    """Return the names of all images on disk or in the split; report files that are in no split as faults.

    Many such files mean that the split was drawn from other data, which is one fault.
    """
    known = {}
    for name, file in _listed(layout, report):
        known.setdefault(name, file)
    expected = set()
    if split_path(layout).is_file():
        expected = {name for names in stored_split(layout).values() for name in names}
        unknown = sorted(known.keys() - expected)
        if len(unknown) > NAMED:
            report.faults.append(not_in_split(layout, report.folder, unknown))
        else:
            for name in unknown:
                report.faults.append(f"{known[name]}: is not part of the set, {split_path(layout)} does not list it")
    return sorted(known.keys() | expected)


def _listed(layout: Layout, report: Report) -> Iterator[tuple[str, Path]]:
    """Yield the name and file of every image and annotation of a layout; report other files as remarks."""
    suffixes = (layout.image_suffix, layout.annotation_suffix)
    for prefix, folders in layout.parts.items():
        for folder, suffix in zip(folders, suffixes, strict=True):
            for file in sorted((report.folder / folder).iterdir()):
                if file.suffix == suffix:
                    yield str(Path(prefix, file.stem)), file
                else:
                    report.remarks.append(f"does not belong there: {file}")


def _read(layout: Layout, root: Path, name: str) -> _Image:
    image, annotation = layout.image_files(root, name)
    found = _Image(name)
    pixels = found.attempt(_decode, image)
    parsed = found.attempt(_parse, layout, annotation, found)
    if pixels is not None:
        # The shape enters, because pictures of different shapes can have the same bytes.
        found.content = sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    if pixels is None or parsed is None:
        return found
    boxes, labels = parsed
    size = (pixels.shape[1], pixels.shape[0])
    found.counts.update(labels.tolist())
    settled = found.attempt(layout.usable_boxes, boxes, size, annotation)
    if settled is None:
        return found
    # Both in float32; otherwise rounding to float32 would look like a cut.
    if (settled != boxes.astype(np.float32)).any():
        found.remarks.append("boxes stick out of the image, cut at its border")
    rows = np.column_stack([labels, boxes])
    if len(np.unique(rows, axis=0)) < len(rows):
        found.remarks.append("the same box twice")
    if not len(labels):
        found.remarks.append("no objects")
    return found


def _decode(file: Path) -> np.ndarray:
    _check_file(file)
    pixels = decode_image(file)
    if (found := read_header(file).format) != FORMATS[file.suffix]:
        raise ValueError(f"{file}: has extension {file.suffix} but is {found}")
    return pixels


def _parse(layout: Layout, file: Path, found: _Image) -> Any:
    _check_file(file)
    content = file.read_bytes()
    if content.startswith(b"\xef\xbb\xbf"):
        found.remarks.append("byte order mark at the start, ignored")
    if b"\r\n" in content:
        found.remarks.append("lines end in CR LF, which is accepted")
    return layout.parse(file)


def _check_file(file: Path) -> None:
    require_file(file)
    if not file.stat().st_size:
        raise ValueError(f"{file}: is empty")


def _gather(images: list[_Image], report: Report) -> None:
    """Add the faults of all images to the report, and their remarks by kind."""
    report.faults += [fault for image in images for fault in image.faults]
    kinds, contents = defaultdict(list), defaultdict(list)
    for image in images:
        for remark in image.remarks:
            kinds[remark].append(image.name)
        if image.content:
            contents[image.content].append(image.name)
    duplicates = [names for names in contents.values() if len(names) > 1]
    report.remarks += [f"the same picture: {', '.join(names)}" for names in duplicates]
    for remark, names in kinds.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        report.remarks.append(f"{remark}: {', '.join(names[:NAMED])}{more}")


def _table(
    layout: Layout, entry: Entry, total: Mapping[int, int], *, complete: bool, report: Report
) -> list[dict[str, Any]]:
    """Compare the boxes per class with the published numbers; a difference in a complete set is a fault."""
    rows = []
    if not complete:
        report.remarks.append(f"{entry.images:,} annotated images were published: the numbers cannot be compared")
    for label, name in enumerate(layout.classes, 1):
        count, published = total.get(label, 0), entry.boxes.get(name)
        row = {"class": name, "boxes": count, "published": published, "": ""}
        if published and complete and count != published:
            row[""] = "as in the published files" if count == entry.differs.get(name) else "differs"
        if row[""] == "differs":
            report.faults.append(f"{report.folder}: {count:,} boxes of class {name}, {published:,} were published")
        rows.append(row)
    return rows
