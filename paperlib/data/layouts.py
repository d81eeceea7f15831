"""The common layout of published data sets: images and annotations in folders, and a split in `data/splits`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paperlib import paths
from paperlib.data.pictures import image_size
from paperlib.data.records import Dataset, Record, check_boxes, trim_boxes
from paperlib.files import quote_value, read_bytes, read_json

MAX_ANNOTATION_BYTES = 16 * 2**20
"""Largest file of the annotations of one image."""
Annotation = tuple[np.ndarray, np.ndarray]
"""Boxes float64 `[N, 4]` xyxy pixels and labels int64 `[N]` in 1..C."""


@dataclass(frozen=True)
class PublishedFolders(ABC):
    """The folders of a published data set, whatever its annotations are.

    Attributes:
        name: its name in `load_dataset`.
        title: its published name.
        folder: its folder under the data folder.
    """

    name: str
    title: str
    folder: str

    @abstractmethod
    def all_folders(self, root: Path) -> list[Path]:
        """Return every folder of the layout."""

    @abstractmethod
    def image_names(self, root: Path) -> list[str]:
        """Return the names of all images under `root`, sorted."""

    @abstractmethod
    def has_name(self, name: str) -> bool:
        """Return whether this can be the name of an image."""


@dataclass(frozen=True)
class Layout(PublishedFolders):
    """The files of a detection data set, and how one image of it is read.

    Attributes:
        classes: the C class names.
        parts: folders of images and of annotations, below `folder`; the key is a prefix of the image names, empty if
            there is only one part.
        image_suffix, annotation_suffix: the only difference between the names of an image and its annotation.
        parse: reads an annotation file; raises `ValueError` naming file, place and fault.
        overhang: pixels by which a box may stick out of its image; it is cut at the border.
    """

    classes: tuple[str, ...]
    parts: dict[str, tuple[str, str]]
    image_suffix: str
    annotation_suffix: str
    parse: Callable[[Path], Annotation]
    overhang: float = 0.0

    def all_folders(self, root: Path) -> list[Path]:
        """Return every folder of the layout."""
        return [root, *(root / folder for pair in self.parts.values() for folder in pair)]

    def image_names(self, root: Path) -> list[str]:
        """Return the names of all images under `root`, sorted."""
        return sorted(
            str(Path(prefix, file.stem))
            for prefix, (images, _) in self.parts.items()
            for file in (root / images).glob(f"*{self.image_suffix}")
        )

    def has_name(self, name: str) -> bool:
        """Return whether this can be the name of an image."""
        return name.rpartition("/")[0] in self.parts

    def image_files(self, root: Path, name: str) -> tuple[Path, Path]:
        """Return the image file and the annotation file of an image."""
        prefix, _, stem = name.rpartition("/")
        images, annotations = self.parts[prefix]
        return root / images / f"{stem}{self.image_suffix}", root / annotations / f"{stem}{self.annotation_suffix}"

    def read_record(self, root: Path, name: str) -> Record:
        """Read one image's annotation; its pixels are read later, on demand.

        Raises:
            FileNotFoundError: the image or its annotation is missing.
            ValueError: names the file, the place and the fault.
        """
        image, annotation = self.image_files(root, name)
        require_file(image)
        require_file(annotation)
        boxes, labels = self.parse(annotation)
        return Record(name, image, self.usable_boxes(boxes, image_size(image), annotation), labels)

    def usable_boxes(self, boxes: np.ndarray, size: tuple[int, int], annotation: Path) -> np.ndarray:
        """Return boxes `[N, 4]` as float32, cut at the border of their image, or raise `ValueError`."""
        boxes = trim_boxes(boxes, size, self.overhang)
        check_boxes(boxes, size, str(annotation))
        return boxes.astype(np.float32)


def load_split(layout: Layout, split: str, root: Path, splits: dict[str, list[str]] | None = None) -> Dataset:
    """Read one split of a published data set from `root`; `splits` replaces its usual ones.

    Raises:
        FileNotFoundError: a folder or file of the layout, or the split itself, is missing.
        ValueError: an unknown split, damaged files, or images that are in no split.
    """
    names = find_splits(layout, split, root, splits)
    return Dataset(f"{layout.name}/{split}", layout.classes, [layout.read_record(root, name) for name in names[split]])


def find_splits(
    layout: PublishedFolders, split: str, root: Path, splits: dict[str, list[str]] | None = None
) -> dict[str, list[str]]:
    """Return the image names of each split, after `split`, the folders and the images in them were checked.

    Raises:
        FileNotFoundError: a folder of the layout, or the split itself, is missing.
        ValueError: an unknown split, or images that are in no split.
    """
    names = stored_split(layout) if splits is None else splits
    if split not in names:
        raise ValueError(f"{layout.name} has no split {split!r}; it has {', '.join(names)}")
    for folder in layout.all_folders(root):
        if not folder.is_dir():
            remedy = f"`paperlib data fetch {layout.name}` gets it, or says how"
            raise FileNotFoundError(f"{folder}: no such folder; {layout.title} belongs there; {remedy}")
    unknown = sorted(set(layout.image_names(root)).difference(*names.values()))
    if unknown:
        raise ValueError(not_in_split(layout, root, unknown))
    return names


def not_in_split(layout: PublishedFolders, root: Path, names: list[str]) -> str:
    """Return the message about images that are in no split, with the remedy."""
    return (
        f"{root}: {len(names):,} images are in no split of {split_path(layout)} ({names[0]}, …); "
        f"remove them, or draw a new split: {draw_command(layout)}"
    )


def draw_command(layout: PublishedFolders) -> str:
    """Return the command that draws a split of the present data."""
    return f"python -m paperlib.data.splits {layout.name}"


def split_path(layout: PublishedFolders) -> Path:
    """Return the file of a data set's split."""
    return paths.source_root() / "data" / "splits" / f"{layout.name}.json"


def stored_split(layout: PublishedFolders) -> dict[str, list[str]]:
    """Read the image names of each split.

    Raises:
        FileNotFoundError: none has been drawn.
        ValueError: it is not such a file, or a name is given twice; names the file and the fault.
    """
    path = split_path(layout)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no split of {layout.title} has been drawn; with the data in place, {draw_command(layout)}"
        )
    content = read_json(path)
    splits = content.get("splits") if isinstance(content, dict) else None
    if not (isinstance(splits, dict) and all(isinstance(names, list) for names in splits.values())):
        raise ValueError(f"{path}: expected an object with `splits`: a list of image names for each split")
    known: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if not isinstance(name, str) or not layout.has_name(name):
                raise ValueError(f"{path}: {quote_value(name)} in split {split} is not the name of an image")
            if name in known:
                raise ValueError(f"{path}: image {quote_value(name)} is in {known[name]} and in {split}; keep one")
            known[name] = split
    return splits


def split_of(layout: PublishedFolders) -> dict[str, str]:
    """Return the split of each image; empty if none has been drawn. Errors as in `stored_split`."""
    if not split_path(layout).is_file():
        return {}
    return {name: split for split, names in stored_split(layout).items() for name in names}


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Return the number and text of each line of a file that is not blank."""
    # A byte that is not text becomes a character that does not parse, so it is reported with its line.
    text = read_bytes(path, MAX_ANNOTATION_BYTES).decode("utf-8-sig", errors="replace")
    return ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def require_file(file: Path) -> None:
    """Raise a one-line error if there is no file of that name."""
    if file.is_dir():
        raise ValueError(f"{file}: is a folder, a file belongs there")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")


def as_annotation(boxes: list[list[float]], labels: list[int]) -> Annotation:
    """Convert lists of boxes and labels, also empty ones, to arrays."""
    return np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(labels, dtype=np.int64)
