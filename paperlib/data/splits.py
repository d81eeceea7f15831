"""Splits, which the paper does not give: drawn once with a seed, stratified by class, stored in `data/splits`.

`python -m paperlib.data.splits NAME` draws one again from the data under `PAPERLIB_DATA`; a test compares the two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paperlib import paths
from paperlib.data.layouts import Layout, draw_command, split_path
from paperlib.data.records import Record
from paperlib.files import write_text_atomically
from paperlib.progress.report import track_items

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
SEED = 0


def draw_splits(
    records: Sequence[Record], num_classes: int, shares: Mapping[str, float] = SHARES, seed: int = SEED
) -> dict[str, list[str]]:
    """Distribute records so that each split gets its share of the boxes of every class.

    The rarest class comes first; each image goes to the split that lacks most boxes of that class. Images of equal
    content stay together, so no test image is also a training image under another name.

    Returns:
        The record names of each split, sorted.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(hashlib.sha256(record.read_pixels().tobytes()).hexdigest(), []).append(record)
    order = np.random.default_rng(seed).permutation(len(groups))
    bundles = [list(groups.values())[i] for i in order]
    boxes = np.array([_counts(bundle, num_classes) for bundle in bundles])
    names = list(shares)
    lacking = np.outer([shares[name] for name in names], boxes.sum(0))
    images = np.array([shares[name] * len(records) for name in names])
    result: dict[str, list[str]] = {name: [] for name in names}
    remaining = np.ones(len(bundles), dtype=bool)
    while remaining.any():
        left = boxes[remaining].sum(0)
        # Images without boxes come last; they only even out the numbers of images.
        rarest = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin()) if left.any() else None
        chosen = remaining if rarest is None else remaining & (boxes[:, rarest] > 0)
        for index in np.flatnonzero(chosen):
            want = images if rarest is None else lacking[:, rarest] + 1e-6 * images
            split = int(want.argmax())
            result[names[split]] += [record.name for record in bundles[index]]
            lacking[split] -= boxes[index]
            images[split] -= len(bundles[index])
        remaining &= ~chosen
    return {name: sorted(found) for name, found in result.items()}


def _counts(bundle: Sequence[Record], num_classes: int) -> np.ndarray:
    labels = np.concatenate([record.labels for record in bundle])
    return np.bincount(labels, minlength=num_classes + 1)[1:]


def draw_split_file(layout: Layout, root: Path) -> dict[str, Any]:
    """Draw the content of `data/splits/<name>.json` from the data set in `root`."""
    records = [
        layout.read_record(root, name) for name in track_items(layout.image_names(root), f"reading {layout.title}")
    ]
    how = f"{draw_command(layout)}: stratified by class, images of equal content kept together"
    drawn = draw_splits(records, len(layout.classes))
    return {"how": how, "seed": SEED, "shares": SHARES, "splits": drawn}


def redraw_split(name: str) -> None:
    """Draw a data set's split and write its file."""
    from paperlib.data import LAYOUTS

    layout = LAYOUTS[name]
    drawn = draw_split_file(layout, paths.data_root() / layout.folder)
    write_text_atomically(split_path(layout), json.dumps(drawn, indent=1) + "\n")
    print(split_path(layout))


if __name__ == "__main__":
    from paperlib.data import LAYOUTS

    parser = argparse.ArgumentParser(prog="python -m paperlib.data.splits", description="Draw a data set's split.")
    parser.add_argument("name", choices=LAYOUTS)
    redraw_split(parser.parse_args().name)
