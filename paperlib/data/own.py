"""Anyone's own data: which reader reads them, and which splits they have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from paperlib.data.annotated import AS_IT_IS, ReadOptions
from paperlib.data.coco_folder import SPLIT_MARK as SPLIT_MARK
from paperlib.data.coco_folder import coco_splits, is_coco, load_coco_split
from paperlib.data.dota_folder import dota_splits, is_dota, load_dota
from paperlib.data.draw_own import draw_split, read_fractions
from paperlib.data.records import Dataset
from paperlib.data.split_names import SPLITS
from paperlib.data.voc import is_voc, load_voc, voc_splits
from paperlib.data.yolo import is_yolo, load_yolo, yolo_splits
from paperlib.files import quote_value


class SplitLoader(Protocol):
    """The reader of one format."""

    def __call__(
        self,
        path: Path,
        split: str,
        /,
        images: Path | None = None,
        options: ReadOptions = AS_IT_IS,
        *,
        learn: bool = True,
    ) -> Dataset:
        """Read one split; see the formats' own readers."""
        ...


@dataclass(frozen=True)
class Format:
    """A format of own data.

    Attributes:
        title: its name for people.
        form: what stands after its prefix.
        load: reads one split.
        find_splits: returns which of train, val and test there are; none if the data are one split.
        is_folder: returns whether a folder is of this format.
        lists_classes: its annotations list the names of classes apart from the objects.
    """

    title: str
    form: str
    load: SplitLoader
    find_splits: Callable[[Path], tuple[str, ...]]
    is_folder: Callable[[Path], bool]
    lists_classes: bool = True


FORMATS = {
    "coco": Format("COCO", "<annotations.json>", load_coco_split, coco_splits, is_coco),
    "yolo": Format("YOLO", "<data.yaml>", load_yolo, yolo_splits, is_yolo),
    "voc": Format("Pascal VOC", "<folder>", load_voc, voc_splits, is_voc, lists_classes=False),
    "dota": Format("DOTA", "<folder>", load_dota, dota_splits, is_dota, lists_classes=False),
}
FORMS = ", ".join(f"{name}:{kind.form}" for name, kind in FORMATS.items())
"""The names of own data, for messages."""
RECOGNISED = (
    "a COCO file (.json) or a folder with one, a YOLO data.yaml or its folder, a Pascal VOC folder (Annotations/*.xml) "
    "and a DOTA folder (labelTxt/*.txt)"
)


def is_own(name: str) -> bool:
    """Return whether the name of a data set says that it is someone's own."""
    return name.partition(":")[0] in FORMATS and ":" in name


def is_own_place(name: str) -> bool:
    """Return whether a name looks like own data: it has a prefix, there is such a file or folder, or it is a path."""
    place = Path(split_name(name)[0])
    return is_own(name) or place.exists() or bool(place.suffix) or len(place.parts) > 1


def name_own(path: str) -> str:
    """Return the name of the data set in a file or folder, whose content tells the format, or of one named already.

    Raises:
        ValueError: a folder of no format, or of several.
    """
    if is_own(path):
        return path
    place = Path(split_name(path)[0])
    if not place.is_dir():
        if place.suffix.lower() in (".xml", ".txt"):
            raise ValueError(f"{place}: name the folder of the data instead, or its data.yaml")
        return f"{'yolo' if place.suffix.lower() in ('.yaml', '.yml') else 'coco'}:{path}"
    found = folder_formats(place)
    if not found:
        raise ValueError(f"{place}: no data of a known format; known are {RECOGNISED}")
    if len(found) > 1:
        titles = " and ".join(FORMATS[name].title for name in found[:2])
        raise ValueError(
            f"{place}: holds data in {titles} format; say which, with {found[0]}: or {found[1]}: before it"
        )
    return f"{found[0]}:{path}"


def folder_formats(folder: Path) -> list[str]:
    """Return the prefixes of the formats that a folder is of; several only if it holds labels of each."""
    return [name for name, kind in FORMATS.items() if kind.is_folder(folder)]


def split_name(path: str) -> tuple[str, str]:
    """Return a path and what stands after its `#`: the name of a split, or fractions; empty without one."""
    place, mark, chosen = path.rpartition("#")
    return (path, "") if not mark or Path(path).exists() else (place, chosen)


def find_own_splits(name: str) -> tuple[str, ...]:
    """Return which of train, val and test own data have, named as in `load_dataset`; empty if they are one split."""
    prefix, _, path = name.partition(":")
    place, chosen = split_name(path)
    present = FORMATS[prefix].find_splits
    if not chosen:
        return present(Path(place))
    fractions = read_fractions(chosen)
    return _splits_after_drawing(present(Path(place)), fractions) if fractions else ()


def _splits_after_drawing(present: Sequence[str], fractions: Sequence[float]) -> tuple[str, ...]:
    """Return the splits of data that have those of `present`, after their images for training were distributed."""
    drawn = {split for split, fraction in zip(SPLITS, fractions, strict=True) if fraction}
    return tuple(split for split in SPLITS if split in drawn.union(present))


def load_own(
    name: str, split: str, root: Path | None = None, options: ReadOptions = AS_IT_IS, *, learn: bool | None = None
) -> Dataset:
    """Load one split of own data, named as in `load_dataset`; its `remarks` tell what was repaired or left out.

    Args:
        name: a prefix of `FORMATS` and a path. After a `#` may stand the split that is read whatever `split` says, or
            the fractions of train, val and test: data that are one split are then distributed by a fixed seed, and so
            are the images for training of data that have no other of the splits to be drawn.
        split: `train`, `val` or `test`.
        root: the folder of the images, if it is not the one that the data imply.
        options: what becomes of bad boxes, and which classes are read.
        learn: the data are for training, so that a category without boxes is no class; by default those of `train`.

    Raises:
        FileNotFoundError, ValueError: see the reader of the format.
    """
    prefix, _, path = name.partition(":")
    place, chosen = split_name(path)
    kind = FORMATS[prefix]
    learn = split == "train" if learn is None else learn
    fractions = read_fractions(chosen)
    if not fractions:
        return kind.load(Path(place), chosen or split, root, options, learn=learn)
    if split not in SPLITS:
        raise ValueError(f"{name} has no split {quote_value(split)}; it has {', '.join(SPLITS)}")
    present = kind.find_splits(Path(place))
    _check_distribution(place, present, chosen, fractions)
    if split in present and split != "train":
        return kind.load(Path(place), split, root, options, learn=learn)
    return draw_split(kind.load(Path(place), "train", root, options, learn=learn), split, fractions)


def _check_distribution(place: str, present: Sequence[str], chosen: str, fractions: Sequence[float]) -> None:
    """Refuse to draw a split that the data have already, or any from data without images for training."""
    if not present:
        return
    drawn = {split for split, fraction in zip(SPLITS, fractions, strict=True) if fraction}
    if "train" not in present or drawn.intersection(present) != {"train"}:
        raise ValueError(f"{place}: is split into {', '.join(present)} already; leave out #{chosen}")
