"""Check of someone's own data set: read as for a training, and every image decoded."""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path

import numpy as np

from paperlib.data.annotated import ReadOptions
from paperlib.data.check_report import ImageFindings, Report, read_images
from paperlib.data.own import load_own
from paperlib.data.records import Record


def check_own(name: str, images: Path | None, options: ReadOptions) -> Report:
    """Read own data, named as in `load_dataset`, with every image; tell of what a training would meet.

    Raises:
        FileNotFoundError, ValueError: they cannot be read; one line names file, place and fault.
    """
    started = time.perf_counter()
    dataset = load_own(name, "train", images, options)
    report = Report("own data", Path(name.partition(":")[2]), remarks=list(dataset.remarks))
    records = {record.name: record for record in dataset.records}
    found = read_images(list(records), lambda each: _read(records[each]), dataset.name)
    report.add_images(found, {})
    counts = dataset.box_counts()
    report.table = [{"class": each, "boxes": count} for each, count in counts.items()]
    seconds = time.perf_counter() - started
    report.summary = f"{len(records):,} images and {sum(counts.values()):,} boxes read in {seconds:.1f} s"
    return report


def _read(record: Record) -> ImageFindings:
    found = ImageFindings(record.name)
    pixels = found.attempt(record.read_pixels)
    if pixels is not None:
        # The shape enters, because pictures of different shapes can have the same bytes.
        found.content = sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    rows = np.column_stack([record.labels, record.boxes])
    if len(np.unique(rows, axis=0)) < len(rows):
        found.remarks.append("the same box twice")
    if not len(rows):
        found.remarks.append("no objects")
    return found
