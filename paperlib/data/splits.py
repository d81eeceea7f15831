"""Splits, which the paper does not give: drawn once with a seed, stratified by class, stored in `data/splits`.

Splits that share an image are refused.

`python -m paperlib.data.splits NAME` draws one again from the data under `PAPERLIB_DATA`; a test compares the two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paperlib import paths
from paperlib.data.layouts import Layout, PublishedFolders, draw_command, split_path
from paperlib.data.records import Dataset, ImageRecord, Record
from paperlib.data.scene_folders import SceneLayout, scene_class
from paperlib.data.scenes import SceneDataset
from paperlib.files import shorten_text, write_text_atomically
from paperlib.progress.report import track_items

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
SEED = 0
Images = Dataset | SceneDataset


def draw_splits(
    records: Sequence[Record], num_classes: int, shares: Mapping[str, float] = SHARES, seed: int = SEED,
    content: Callable[[Record], bytes] = lambda record: hashlib.sha256(record.read_pixels().tobytes()).digest(),
) -> dict[str, list[str]]:  # fmt: skip
    """Distribute records so that each split gets its share of the boxes of every class.

    The rarest class comes first; each image goes to the split that lacks most boxes of that class. Images of equal
    content stay together, so no test image is also a training image under another name.

    Args:
        records: the images.
        num_classes: C; labels are 1..C.
        shares: of each split; they add up to 1.
        seed: of the order in which images are distributed.
        content: returns a digest that is equal for images of equal content.

    Returns:
        The record names of each split, sorted.
    """
    bundles = _shuffle_bundles(records, seed, content)
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
            # The small term decides ties: the split that lacks most images is preferred.
            want = images if rarest is None else lacking[:, rarest] + 1e-6 * images
            split = int(want.argmax())
            result[names[split]] += [record.name for record in bundles[index]]
            lacking[split] -= boxes[index]
            images[split] -= len(bundles[index])
        remaining &= ~chosen
    return {name: sorted(found) for name, found in result.items()}


def _shuffle_bundles(records: Sequence[Record], seed: int, content: Callable[[Record], bytes]) -> list[list[Record]]:
    """Bundle images of equal content, and return the bundles in a random order."""
    groups: dict[bytes, list[Record]] = {}
    for record in records:
        groups.setdefault(content(record), []).append(record)
    order = np.random.default_rng(seed).permutation(len(groups))
    return [list(groups.values())[i] for i in order]


def refuse_shared_images(*splits: Images) -> None:
    """Refuse data sets of which two share an image: the same file, or files of the same bytes.

    Raises:
        ValueError: names both data sets and both images.
    """

    def known_digests(data: Images) -> Iterator[bytes]:
        for record in data.records:
            # Equal bytes may be pixels of another shape.
            shape = repr(record.image.shape).encode() if isinstance(record.image, np.ndarray) else b""
            yield record.fingerprint() + shape

    for shared in _find_equal(splits, known_digests):
        raise ValueError(_shared_message(*shared))


def refuse_shared_pictures(*splits: Images, pictures: Callable[[Any], Iterable[np.ndarray]]) -> None:
    """Refuse data sets of which two share a picture, also where their files differ, as a PNG file and its BMP copy do.

    Blank pictures, all of one colour, are compared with none.

    Args:
        splits: the data sets.
        pictures: returns the pictures of a data set in order, as they are or scaled: equal ones stay equal. Those that
            agree are read and compared in full.

    Raises:
        ValueError: names both data sets and both images, or an image that does not decode.
    """

    def pixel_digests(data: Images) -> Iterator[bytes | None]:
        for pixels in pictures(data):
            blank = pixels.size == 0 or (pixels.max() == pixels.min())
            yield None if blank else hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()

    for shared in _find_equal(splits, pixel_digests):
        _, one, _, other = shared
        if np.array_equal(one.read_pixels(), other.read_pixels()):
            raise ValueError(_shared_message(*shared))


def _find_equal(
    splits: Sequence[Images], digests: Callable[[Images], Iterable[bytes | None]]
) -> Iterator[tuple[Images, ImageRecord, Images, ImageRecord]]:
    """Yield the pairs of records of different data sets whose digests are equal."""
    known: dict[bytes, tuple[Images, ImageRecord]] = {}
    for data in splits:
        found = {}
        for record, digest in zip(data.records, digests(data), strict=True):
            if digest is None:
                continue
            if digest in known:
                yield *known[digest], data, record
            found.setdefault(digest, (data, record))
        # Added only now: copies within one data set are allowed.
        known = found | known


def _shared_message(first: Images, one: ImageRecord, second: Images, other: ImageRecord) -> str:
    known, name = shorten_text(one.name, 100), shorten_text(other.name, 100)
    what = f"image {name} is also in" if one.name == other.name else f"image {name} is a copy of image {known} in"
    return f"{second.name}: {what} {first.name}; the two must not share images"


def _counts(bundle: Sequence[Record], num_classes: int) -> np.ndarray:
    labels = np.concatenate([record.labels for record in bundle])
    return np.bincount(labels, minlength=num_classes + 1)[1:]


def draw_split_file(layout: PublishedFolders, root: Path) -> dict[str, Any]:
    """Draw the content of `data/splits/<name>.json` from the data set in `root`.

    Where it is not there, but the names of its images are known, these are drawn from.
    """
    how = f"{draw_command(layout)}: stratified by class, "
    if isinstance(layout, SceneLayout) and layout.published_names and not root.is_dir():
        drawn = draw_scene_splits(layout.published_names, root, content=lambda record: record.name.encode())
        how += "from the names of the images alone"
    else:
        records = _labelled_records(layout, root)
        drawn = draw_splits(records, max(int(record.labels.max(initial=0)) for record in records))
        how += "images of equal content kept together"
    return {"how": how, "seed": SEED, "shares": SHARES, "splits": drawn}


def _labelled_records(layout: PublishedFolders, root: Path) -> list[Record]:
    """Return all images of a data set with the labels by which its split is stratified."""
    names = layout.image_names(root)
    if isinstance(layout, Layout):
        return [layout.read_record(root, name) for name in track_items(names, f"reading {layout.title}")]
    return _count_as_objects(names, root)


def _count_as_objects(names: Sequence[str], root: Path) -> list[Record]:
    """Return scenes as records in which each counts as one object of its class."""
    classes = sorted({scene_class(name) for name in names})
    labels = {name: np.array([number]) for number, name in enumerate(classes, 1)}
    return [Record(name, root / name, np.empty((0, 4)), labels[scene_class(name)]) for name in names]


def draw_scene_splits(
    names: Sequence[str], root: Path, content: Callable[[Record], bytes] = Record.fingerprint
) -> dict[str, list[str]]:
    """Distribute scenes as `draw_splits` does; files of equal content, by default of equal bytes, stay together."""
    records = _count_as_objects(names, root)
    classes = max(int(record.labels[0]) for record in records)
    return draw_splits(records, classes, content=content)


def redraw_split(name: str) -> None:
    """Draw a data set's split and write its file."""
    from paperlib.data import PUBLISHED

    layout = PUBLISHED[name]
    drawn = draw_split_file(layout, paths.data_root() / layout.folder)
    write_text_atomically(split_path(layout), json.dumps(drawn, indent=1) + "\n")
    print(split_path(layout))


if __name__ == "__main__":
    from paperlib.data import PUBLISHED

    parser = argparse.ArgumentParser(prog="python -m paperlib.data.splits", description="Draw a data set's split.")
    parser.add_argument("name", choices=PUBLISHED)
    redraw_split(parser.parse_args().name)
