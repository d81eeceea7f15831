"""Distribution of own data over splits: by a seed, stratified by class, equal pictures kept together."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from paperlib.data.pictures import decode_image
from paperlib.data.records import Dataset, Record
from paperlib.data.split_names import SPLITS
from paperlib.progress.report import track_items


def read_fractions(text: str) -> tuple[float, ...] | None:
    """Return three fractions that were written as 0.7/0.15/0.15 or 70/15/15; None if the text is something else.

    Raises:
        ValueError: they are none, or do not add up to 1.
    """
    if not re.fullmatch(r"[\d.]+(/[\d.]+)+", text):
        return None
    try:
        values = [float(part) for part in text.split("/")]
    except ValueError:
        raise ValueError(f"fractions {text}: not numbers, as in 70/15/15") from None
    percent = max(values) > 1
    return check_fractions([value / 100 if percent else value for value in values])


def check_fractions(values: Sequence[float]) -> tuple[float, ...]:
    """Return the fractions of train, val and test.

    Raises:
        ValueError: these are not three numbers from 0 to 1 that add up to 1, or the first is 0.
    """
    given = " ".join(f"{value:g}" for value in values)
    if len(values) != len(SPLITS) or not all(0 <= value <= 1 for value in values) or not values[0]:
        raise ValueError(f"fractions {given}: not three numbers from 0 to 1, of train (more than 0), val and test")
    if not math.isclose(sum(values), 1, abs_tol=1e-6):
        raise ValueError(f"fractions {given}: they add up to {sum(values):g}, not to 1")
    return tuple(values)


def draw_split(dataset: Dataset, split: str, fractions: Sequence[float]) -> Dataset:
    """Return one split of a data set, as `distribute` draws it."""
    wanted = set(distribute(dataset, fractions)[split])
    chosen = dataset.subset(
        [index for index, record in enumerate(dataset.records) if record.name in wanted], f"{dataset.name}, {split}"
    )
    chosen.remarks = dataset.remarks
    return chosen


def distribute(dataset: Dataset, fractions: Sequence[float], seed: int = 0) -> dict[str, list[str]]:
    """Return the names of the records of each split.

    The result depends on pictures and labels alone, not on the names of the files or their order. Images whose decoded
    pixels are equal come into one split.

    Args:
        dataset: all images.
        fractions: of train, val and test.
        seed: of the order in which images are distributed.
    """
    # Imported here, because `python -m paperlib.data.splits` must not find its module imported already.
    from paperlib.data.splits import draw_splits

    digests = {
        record.name: picture_digest(record) for record in track_items(dataset.records, f"reading {dataset.name}")
    }
    ordered = sorted(dataset.records, key=lambda record: (digests[record.name], record.labels.tobytes(), record.name))
    shares: Mapping[str, float] = {name: share for name, share in zip(SPLITS, fractions, strict=True) if share}
    drawn = draw_splits(ordered, len(dataset.classes), shares, seed, content=lambda record: digests[record.name])
    return {name: drawn.get(name, []) for name in SPLITS}


def picture_digest(record: Record) -> bytes:
    """Return a digest that is equal for images of equal decoded pixels, remembered as long as a file stays as it is."""
    if isinstance(record.image, Path):
        state = record.image.stat()
        return _file_digest(record.image, state.st_mtime_ns, state.st_size)
    return digest_pixels(record.read_pixels())


@lru_cache(maxsize=100_000)
def _file_digest(file: Path, changed: int, length: int) -> bytes:
    return digest_pixels(decode_image(file))


def digest_pixels(pixels: np.ndarray) -> bytes:
    """Return a digest that is equal for equal pixels, uint8 `[H, W, 3]`."""
    # The shape enters, because pictures of different shapes can have the same bytes.
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
