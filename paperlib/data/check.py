"""Check of a data set: every file is read, and the counts are compared with the published ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from paperlib import paths
from paperlib.data import LAYOUTS, PUBLISHED, SCENE_LAYOUTS
from paperlib.data.check_report import NAMED, ImageFindings, Report, read_images
from paperlib.data.check_scenes import check_scenes
from paperlib.data.folds import find_cut_folds, folds_path
from paperlib.data.layouts import Layout, not_in_split, require_file, split_of, split_path
from paperlib.data.overlap import find_cut_groups, load_groups
from paperlib.data.pictures import decode_image, read_header
from paperlib.data.registry import Entry, entry_folder
from paperlib.files import remembered_digest

FORMATS = {".jpg": "JPEG", ".png": "PNG"}


def check_entry(name: str, entry: Entry, folder: Path) -> Report:
    """Read all files of an entry of the registry in `folder`.

    Raises:
        FileNotFoundError: the folder, or one of its layout, is missing.
    """
    started = time.perf_counter()
    report = Report(entry.title, folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; `paperlib data fetch {name}` gets it, or says how")
    if name not in PUBLISHED:
        return _check_files(entry, report)
    for part in PUBLISHED[name].all_folders(folder):
        if not part.is_dir():
            raise FileNotFoundError(f"{part}: no such folder")
    if name in SCENE_LAYOUTS:
        counted = check_scenes(SCENE_LAYOUTS[name], entry, report)
    else:
        counted = _check_boxes(LAYOUTS[name], entry, report)
    report.summary = f"{counted} read in {time.perf_counter() - started:.1f} s"
    return report


def _check_boxes(layout: Layout, entry: Entry, report: Report) -> str:
    """Check a data set with boxes; return how many images and boxes were read."""
    folder = report.folder
    names = _all_names(layout, report)
    present = len(layout.image_names(folder))
    # If there is a split, each image of it that is missing becomes a fault of its own.
    if not split_path(layout).is_file() and present != entry.images:
        report.faults.append(f"{folder}: {present:,} of {entry.images:,} published images")
    images = read_images(names, lambda image: _read(layout, folder, image), entry.title)
    report.add_images(images, split_of(layout))
    _report_cut_groups(layout, report)
    total = sum((image.counts for image in images), Counter())
    report.table = _table(layout, entry, total, complete=len(images) == entry.images, report=report)
    return f"{len(images):,} images and {total.total():,} boxes"


def _report_cut_groups(layout: Layout, report: Report) -> None:
    """Report which splits cut a group of images that show the same ground; for the folds this is a fault."""
    if cut := find_cut_groups(load_groups(layout.name), split_of(layout)):
        examples = "; ".join(" ".join(group) for group in cut[:NAMED])
        report.remarks.append(f"the split cuts {len(cut)} groups of images that show the same ground: {examples}; …")
    if folds_path(layout.name).is_file() and (folds := find_cut_folds(layout.name)):
        report.faults.append(f"{folds_path(layout.name)}: cuts groups of images that show the same ground in {folds}")


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
    expected = split_of(layout).keys()
    if expected:
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


def _read(layout: Layout, root: Path, name: str) -> ImageFindings:
    image, annotation = layout.image_files(root, name)
    found = ImageFindings(name)
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


def _parse(layout: Layout, file: Path, found: ImageFindings) -> Any:
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
