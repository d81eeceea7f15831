"""Writers of data sets in the formats that `paperlib.data.own` reads: what is read back is what was written.

Images are in their place already; a writer adds annotations. Coordinates keep all digits of their float32 values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import yaml

from paperlib.data.records import Record
from paperlib.files import quote_value, write_json_atomically
from paperlib.progress.report import track_items


@dataclass(frozen=True)
class Item:
    """An image to be written: its path relative to the target, unique before the suffix, too, and its record."""

    name: str
    record: Record


Splits = Mapping[str, Sequence[Item]]
"""The images of each split; the only key is empty if the data are one split."""


@dataclass(frozen=True)
class Writer:
    """How data are written in one format.

    Attributes:
        images: the folder of a split's images in the target; `{split}` stands for its name.
        write: writes the annotations of all splits below a folder, of classes in the order of their labels.
    """

    images: str
    write: Callable[[Path, Splits, Sequence[str]], None]

    def image_folder(self, split: str) -> str:
        """Return the folder of a split's images, relative to the target."""
        return self.images.replace("{split}", split).strip("/")


def _write_coco(folder: Path, splits: Splits, classes: Sequence[str]) -> None:
    for split, items in splits.items():
        images, annotations = [], []
        for number, item in enumerate(track_items(items, f"writing {split}"), 1):
            width, height = item.record.size()
            images.append({"id": number, "file_name": item.name, "width": width, "height": height})
            for label, (left, top, right, bottom) in _objects(item.record):
                box = [left, top, right - left, bottom - top]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box,
                     "area": box[2] * box[3], "iscrowd": 0}
                )  # fmt: skip
        categories = [{"id": label, "name": name} for label, name in enumerate(classes, 1)]
        content = {"images": images, "categories": categories, "annotations": annotations}
        write_json_atomically(folder / f"{split or 'annotations'}.json", content)


def _write_yolo(folder: Path, splits: Splits, classes: Sequence[str]) -> None:
    for split, items in splits.items():
        for item in track_items(items, f"writing {split}"):
            width, height = item.record.size()
            lines = [
                f"{label - 1} {(left + right) / 2 / width!r} {(top + bottom) / 2 / height!r} "
                f"{(right - left) / width!r} {(bottom - top) / height!r}\n"
                for label, (left, top, right, bottom) in _objects(item.record)
            ]
            _write_lines(folder / "labels" / split / f"{_stem(item)}.txt", lines)
    # There is no key for images that are not split.
    content = {split or "train": WRITERS["yolo"].image_folder(split) for split in splits}
    content |= {"names": dict(enumerate(classes))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _write_voc(folder: Path, splits: Splits, classes: Sequence[str]) -> None:
    for name in classes:
        if not name.isprintable():
            raise ValueError(f"classes: {quote_value(name)} has a character that XML does not hold")
    for split, items in splits.items():
        for item in track_items(items, f"writing {split}"):
            root = ElementTree.Element("annotation")
            _add(root, "folder", "JPEGImages")
            _add(root, "filename", PurePosixPath(item.name).name)
            size = _add(root, "size")
            for key, value in zip(("width", "height", "depth"), (*item.record.size(), 3), strict=True):
                _add(size, key, str(value))
            _add(root, "segmented", "0")
            for label, (left, top, right, bottom) in _objects(item.record):
                entry = _add(root, "object")
                _add(entry, "name", classes[label - 1])
                for key, value in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
                    _add(entry, key, value)
                corners = _add(entry, "bndbox")
                # Pixels count from 1, and the last one belongs to the box.
                for key, value in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
                    _add(corners, key, _format_number(value))
            ElementTree.indent(root)
            text = ElementTree.tostring(root, encoding="unicode")
            _write_lines(folder / "Annotations" / f"{_stem(item)}.xml", [text, "\n"])
        if split:
            names = [f"{_stem(item)}\n" for item in items]
            _write_lines(folder / "ImageSets" / "Main" / f"{split}.txt", names)


def _write_dota(folder: Path, splits: Splits, classes: Sequence[str]) -> None:
    # A class is one word there, as in small-vehicle.
    words = ["-".join(name.split()) for name in classes]
    for word in words:
        if words.count(word) > 1:
            raise ValueError(f"classes: two would be {quote_value(word)} in DOTA format, which has no blanks in names")
    for split, items in splits.items():
        for item in track_items(items, f"writing {split}"):
            lines = []
            for label, box in _objects(item.record):
                left, top, right, bottom = map(_format_number, box)
                lines.append(f"{left} {top} {right} {top} {right} {bottom} {left} {bottom} {words[label - 1]} 0\n")
            _write_lines(folder / split / "labelTxt" / f"{_stem(item)}.txt", lines)


WRITERS = {
    "coco": Writer("images/{split}", _write_coco),
    "yolo": Writer("images/{split}", _write_yolo),
    "voc": Writer("JPEGImages", _write_voc),
    "dota": Writer("{split}/images", _write_dota),
}


def _stem(item: Item) -> str:
    return PurePosixPath(item.name).stem


def _objects(record: Record) -> list[tuple[int, list[float]]]:
    """Return the label and the box xyxy of each object."""
    return list(zip(record.labels.tolist(), record.boxes.astype(float).tolist(), strict=True))


def _format_number(value: float) -> str:
    # Some tools read whole numbers only, so those stay whole.
    return str(int(value)) if value.is_integer() else repr(value)


def _add(parent: ElementTree.Element, tag: str, text: str | None = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag)
    child.text = text
    return child


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
