"""Check of someone's own data: every split read as for a training, every image decoded, and what to know before it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.data.annotated import ReadOptions
from paperlib.data.check_report import ImageFindings, Report, read_images
from paperlib.data.draw_own import digest_pixels
from paperlib.data.own import find_own_splits, load_own, split_name
from paperlib.data.records import Dataset, Record

FEW_BOXES = 20
"""Of a class with fewer training boxes little can be learned."""
SMALL_SIDE = 8
"""Pixels: the smallest stride of the detectors here; two objects closer than this share a cell."""
USUAL_SMALL = 0.25
"""The fraction of small boxes from which a class is named."""


def check_own(name: str, images: Path | None, options: ReadOptions, side: int) -> Report:
    """Read all splits of own data, named as in `load_own`, with every image; tell what a training would meet.

    Args:
        name: the data.
        images: the folder of the images, if it is not the one that the data imply.
        options: how the data are read.
        side: of the square that images are fitted into for training, in pixels.

    Raises:
        FileNotFoundError, ValueError: the data cannot be read; one line names file, place and fault.
    """
    started = time.perf_counter()
    data = _load_splits(name, images, options)
    report = Report("own data", Path(split_name(name.partition(":")[2])[0]))
    several = len(data) > 1
    records: dict[str, Record] = {}
    split_of: dict[str, str] = {}
    for split, dataset in data.items():
        report.remarks += [f"{split}: {remark}" if several else remark for remark in dataset.remarks]
        for record in dataset.records:
            # Two splits may have images of one name.
            title = f"{split}/{record.name}" if several else record.name
            records[title], split_of[title] = record, split
    found = read_images(list(records), lambda each: _read(each, records[each], split_of[each]), name)
    report.add_images(found, split_of)
    report.table = _tabulate(data, side)
    report.remarks += _advise(report.table, data, side)
    boxes = sum(len(record.labels) for record in records.values())
    seconds = time.perf_counter() - started
    report.summary = f"{len(records):,} images and {boxes:,} boxes read in {seconds:.1f} s"
    return report


def _load_splits(name: str, images: Path | None, options: ReadOptions) -> dict[str, Dataset]:
    """Return each split by its name; the classes of the first count for all. Data that are one split are `all`."""
    data: dict[str, Dataset] = {}
    for split in find_own_splits(name) or ("all",):
        if data:
            classes = next(iter(data.values())).classes
            how = replace(options, classes=classes, complete=options.classes is None)
            data[split] = load_own(name, split, images, how)
        else:
            data[split] = load_own(name, "train" if split == "all" else split, images, options, learn=True)
    return data


def _tabulate(data: Mapping[str, Dataset], side: int) -> list[dict[str, Any]]:
    """Return one row per class: boxes and images, and the sides of its boxes in images of `side` pixels."""
    records = [record for dataset in data.values() for record in dataset.records]
    sides = [np.empty(0), *(_box_sides(record, side) for record in records)]
    labels = np.concatenate([np.empty(0, dtype=np.int64), *(record.labels for record in records)])
    shown = np.concatenate([np.empty(0, dtype=np.int64), *(np.unique(record.labels) for record in records)])
    lengths = np.concatenate(sides)
    rows = []
    for label, name in enumerate(next(iter(data.values())).classes, 1):
        counts = {split: dataset.box_counts()[name] for split, dataset in data.items()}
        own = lengths[labels == label]
        row: dict[str, Any] = {"class": name, **{f"boxes, {split}": count for split, count in counts.items()}}
        row |= {"images": int((shown == label).sum())}
        if len(own):
            row[f"median side at {side} px"] = f"{np.median(own):.0f} px"
            row["smallest"] = f"{own.min():.1f} px"
            row[f"under {SMALL_SIDE} px"] = f"{100 * (own < SMALL_SIDE).mean():.0f} %"
        rows.append(row)
    return rows


def _box_sides(record: Record, side: int) -> np.ndarray:
    """Return the square root of each box's area, in pixels of an image whose longer side measures `side`."""
    extents = record.boxes[:, 2:] - record.boxes[:, :2]
    return np.sqrt(extents.prod(axis=1)) * side / max(record.size())


def _advise(table: list[dict[str, Any]], data: Mapping[str, Dataset], side: int) -> list[str]:
    """Return what a user should know before a training, one line for each kind."""
    first, *others = data
    lines = []
    few = [f"{row['class']} {row[f'boxes, {first}']}" for row in table if row[f"boxes, {first}"] < FEW_BOXES]
    if few:
        lines.append(f"classes with fewer than {FEW_BOXES} boxes to learn from: {', '.join(few)}")
    for split in others:
        if missing := [row["class"] for row in table if not row[f"boxes, {split}"]]:
            lines.append(f"classes without boxes in {split}, whose accuracy there is unknown: {', '.join(missing)}")
    column = f"under {SMALL_SIDE} px"
    small = [f"{row['class']} {row[column]}" for row in table if _percent(row.get(column)) >= 100 * USUAL_SMALL]
    if small:
        remedy = "a larger --image-size, or smaller pictures, shows more of them"
        lines.append(f"boxes under {SMALL_SIDE} pixels at {side} pixels: {', '.join(small)}; {remedy}")
    for split, dataset in data.items():
        if empty := sum(not len(record.labels) for record in dataset.records):
            lines.append(f"images without boxes in {split}: {empty:,} of {len(dataset):,}")
    return lines


def _percent(text: str | None) -> float:
    return float(text.removesuffix(" %")) if text else 0.0


def _read(title: str, record: Record, split: str) -> ImageFindings:
    found = ImageFindings(title)
    pixels = found.attempt(record.read_pixels)
    if pixels is not None:
        # Blank pictures, all of one colour, may occur in several splits.
        blank = pixels.size == 0 or pixels.max() == pixels.min()
        found.content = digest_pixels(pixels) + (split.encode() if blank else b"")
    return found
