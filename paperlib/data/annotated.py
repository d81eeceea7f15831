"""From what an annotation file says of each image to a data set: the checks that all formats of own data share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from paperlib.data.class_choice import find_used, renumber_labels, select_named
from paperlib.data.pictures import Header, read_header
from paperlib.data.records import Dataset, Record, check_boxes, trim_boxes, turn_boxes
from paperlib.data.remarks import Remarks
from paperlib.files import quote_value, shorten_text

BadBoxes = Literal["error", "clip", "skip"]
Size = tuple[int | None, int | None]
"""Width and height in pixels, None where a file does not state them."""
OVERHANG = 1.0
"""Pixels by which rounding in annotation tools lets a box stick out; they are cut off without a word."""
REMEDY = "--bad-boxes (bad_boxes=): clip cuts boxes at the border, skip leaves them out"
CUT = "boxes cut at the border of their image"
SKIPPED = "boxes left out, without area or outside of their image"
REPEATED = "boxes that are in their image twice, with the same class"


@dataclass(frozen=True)
class ReadOptions:
    """How someone's data set is read.

    Attributes:
        bad_boxes: what becomes of a box that has no area or is not inside its image: `error` refuses it, `clip` cuts
            it at the border and leaves it out if nothing remains, `skip` leaves it out.
        classes: names of the classes to read, in this order; None: all that have boxes.
        complete: with `classes`, refuse boxes of other classes, which else are left out.
        allow_outside: read images outside of the folder of images, too.
    """

    bad_boxes: BadBoxes = "error"
    classes: tuple[str, ...] | None = None
    complete: bool = False
    allow_outside: bool = False


AS_IT_IS = ReadOptions()


def make_options(bad_boxes: str, classes: str | Sequence[str] | None, *, allow_outside: bool) -> ReadOptions:
    """Return the options from what a user gave; `classes` may be one text, with commas between the names.

    Raises:
        ValueError: `bad_boxes` is none of its values.
    """
    for policy in get_args(BadBoxes):
        if bad_boxes == policy:
            return ReadOptions(policy, split_names(classes), allow_outside=allow_outside)
    raise ValueError(f"bad_boxes {quote_value(bad_boxes)}: not one of {', '.join(get_args(BadBoxes))}")


def split_names(names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names of classes that came as a list, or as one text with commas between them."""
    if isinstance(names, str):
        return tuple(name.strip() for name in names.split(","))
    return None if names is None else tuple(names)


@dataclass(frozen=True, eq=False)
class Annotated:
    """One image as its annotation file describes it.

    Attributes:
        name: unique within the data set.
        file: the image.
        boxes: float64 `[N, 4]` xyxy pixels.
        labels: int64 `[N]` in 1..K, the number of the category.
        place: names the image in messages, after the annotation file.
        stated: the size that the annotation states.
        turned: bool `[N]`: boxes around turned ones, which may stick out by any length.
        are_shares: the boxes are shares of the displayed image's width and height, not pixels.
    """

    name: str
    file: Path
    boxes: np.ndarray
    labels: np.ndarray
    place: str
    stated: Size = (None, None)
    turned: np.ndarray | None = None
    are_shares: bool = False


def build_dataset(
    name: str, source: Path, categories: Sequence[str], images: Sequence[Annotated], options: ReadOptions,
    remarks: Remarks, *, learn: bool, groups: Collection[int] = (),
) -> Dataset:  # fmt: skip
    """Check images, sizes and boxes, choose the classes, and return the data set with its remarks.

    Args:
        name: the name of the data set.
        source: the annotation file.
        categories: the K names that it lists.
        images: its images.
        options: how it is read.
        remarks: what the reader has found so far.
        learn: the data are for training (see `class_choice.find_used`).
        groups: indices of categories that only group others.

    Raises:
        ValueError: one line names the file, the place and the fault.
    """
    records = [_make_record(image, source, options, remarks) for image in images]
    counts = np.bincount(np.concatenate([record.labels for record in records]), minlength=len(categories) + 1)[1:]
    if options.classes is None:
        kept = find_used(categories, counts.tolist(), groups, learn=learn, remarks=remarks)
    else:
        kept = select_named(
            categories, counts.tolist(), options.classes, complete=options.complete, place=str(source), remarks=remarks
        )
    if kept != list(range(len(categories))):
        records = [_renumber(record, kept) for record in records]
    dataset = Dataset(name, [categories[index] for index in kept], records)
    dataset.remarks = remarks.lines()
    return dataset


def settle_boxes(
    boxes: np.ndarray, size: tuple[int, int], policy: BadBoxes, place: str, remarks: Remarks,
    turned: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return boxes `[N, 4]` inside an image of `(width, height)` pixels, and which of the N they are.

    Raises:
        ValueError: a box has no area or is not inside its image, and the policy is `error`.
    """
    trimmed = trim_boxes(boxes, size, OVERHANG)
    if turned is not None:
        trimmed = np.where(turned[:, None], trim_boxes(boxes, size, np.inf), trimmed)
    if policy == "clip":
        cut = trim_boxes(trimmed, size, np.inf)
        if times := int((cut != trimmed).any(1).sum()):
            remarks.count(CUT, place, times)
        trimmed = cut
    settled = trimmed.astype(np.float32)
    if policy == "error":
        try:
            check_boxes(settled, size, place)
        except ValueError as error:
            raise ValueError(f"{error}; {REMEDY}") from None
    border = np.array([*size, *size], dtype=np.float32)
    inside = ((settled >= 0) & (settled <= border)).all(axis=1)
    good = np.logical_and(inside, (settled[:, 2:] > settled[:, :2]).all(axis=1))
    if not good.all():
        remarks.count(SKIPPED, place, int((~good).sum()))
    return settled[good], good


def _make_record(image: Annotated, source: Path, options: ReadOptions, remarks: Remarks) -> Record:
    header = read_header(image.file)
    # A folder of data says nothing itself: its annotation of the image does.
    stated_by = source / image.place if source.is_dir() else source
    as_stored = _check_size(image.stated, header, image.file, stated_by)
    size = header.stored_size() if as_stored else header.size
    boxes = image.boxes * [*size, *size] if image.are_shares else image.boxes
    try:
        boxes, good = settle_boxes(boxes, size, options.bad_boxes, image.place, remarks, image.turned)
    except ValueError as error:
        raise ValueError(f"{source}, {error}") from None
    if as_stored:
        boxes = turn_boxes(boxes, size, header.orientation)
    labels = image.labels[good]
    rows = zip(labels.tolist(), boxes.tolist(), strict=True)
    if repeated := len(labels) - len({(label, *box) for label, box in rows}):
        remarks.count(REPEATED, image.place, repeated)
    return Record(image.name, image.file, boxes, labels)


def _renumber(record: Record, kept: Sequence[int]) -> Record:
    labels, remaining = renumber_labels(record.labels, kept)
    return Record(record.name, record.image, record.boxes[remaining], labels)


def _check_size(stated: Size, header: Header, file: Path, source: Path) -> bool:
    """Compare the stated size with the displayed one, or with the one before the picture is turned.

    Returns:
        Whether only the second fits, so that the boxes are those of the picture as it is stored.
    """

    def fits(size: tuple[int, int]) -> bool:
        return all(value in (None, own) for value, own in zip(stated, size, strict=True))

    if fits(header.size):
        return False
    if fits(header.stored_size()):
        return True
    width, height = header.size
    said = " x ".join("?" if value is None else str(value) for value in stated)
    turn = ""
    if header.orientation > 1:
        turn = f" (as displayed; its EXIF orientation {header.orientation} turns the stored picture)"
    raise ValueError(f"{shorten_text(str(file), 200)}: is {width} x {height} pixels{turn}, {source} says {said}")
