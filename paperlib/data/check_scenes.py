"""Check of a scene data set: every image is decoded and counted in its class and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from paperlib.data.check_report import ImageFindings, Report, read_images
from paperlib.data.layouts import draw_command, not_in_split, require_file, split_of
from paperlib.data.pictures import decode_image
from paperlib.data.registry import Entry
from paperlib.data.scene_folders import (
    SceneLayout,
    class_faults,
    common_classes,
    is_image_file,
    read_class_folders,
    scene_class,
)  # fmt: skip


def check_scenes(layout: SceneLayout, entry: Entry, report: Report) -> str:
    """Check the scenes in `report.folder`; return how many images and classes were read."""
    splits = split_of(layout)
    present = _list_images(layout, report)
    names = sorted(present | splits.keys())
    if not splits:
        report.remarks.append(f"no split has been drawn: {draw_command(layout)}")
    elif unknown := sorted(present - splits.keys()):
        report.faults.append(not_in_split(layout, report.folder, unknown))
    sizes: dict[str, tuple[int, int]] = {}
    images = read_images(names, lambda name: _read(report.folder, name, sizes), entry.title)
    _remark_on_sizes(images, sizes)
    report.add_images(images, splits)
    report.faults += _missing_classes(layout, splits)
    _count(entry, [image.name for image in images], splits, report)
    return f"{len(images):,} images of {len({scene_class(name) for name in names}):,} classes"


def _list_images(layout: SceneLayout, report: Report) -> set[str]:
    """Return the names of all images on disk; report folders that are no classes, and stray files."""
    names = set()
    for part in layout.all_folders(report.folder)[1:] or [report.folder]:
        prefix = "" if part == report.folder else f"{part.name}/"
        classes = read_class_folders(part)
        report.faults += class_faults(part, classes)
        names |= {f"{prefix}{folder}/{file}" for folder, files in classes.items() for file in files}
        stray = [path for folder in classes for path in sorted((part / folder).iterdir()) if not is_image_file(path)]
        report.remarks += [f"does not belong there: {path}" for path in stray]
    return names


def _read(root: Path, name: str, sizes: dict[str, tuple[int, int]]) -> ImageFindings:
    """Decode an image, and store its `(width, height)` in `sizes`."""
    found = ImageFindings(name)
    found.attempt(require_file, root / name)
    pixels = None if found.faults else found.attempt(decode_image, root / name)
    if pixels is None:
        return found
    # The shape enters, because pictures of different shapes can have the same bytes.
    found.content = sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    sizes[name] = pixels.shape[1], pixels.shape[0]
    if (pixels == pixels[:, :, :1]).all():
        found.remarks.append("grey, read as RGB")
    return found


def _remark_on_sizes(images: list[ImageFindings], sizes: Mapping[str, tuple[int, int]]) -> None:
    """Remark on images whose size is not the most common one."""
    if not sizes:
        return
    width, height = Counter(sizes.values()).most_common(1)[0][0]
    side = min(width, height)
    for image in images:
        size = sizes.get(image.name, (width, height))
        if size == (width, height):
            continue
        smaller = f"scaled up to {side} pixels" if min(size) < side else "scaled and cut to a square"
        image.remarks.append(f"not {width} x {height} pixels, {smaller}")


def _missing_classes(layout: SceneLayout, splits: Mapping[str, str]) -> list[str]:
    names = {split: [name for name in splits if splits[name] == split] for split in dict.fromkeys(splits.values())}
    try:
        common_classes(names, layout.name)
    except ValueError as error:
        return [str(error)]
    return []


def _count(entry: Entry, names: list[str], splits: Mapping[str, str], report: Report) -> None:
    """Fill the table of images per class; in a complete set a number that was not published is a fault."""
    complete = len(names) == entry.images
    if not complete:
        report.remarks.append(f"{entry.images:,} images were published: the numbers cannot be compared")
    total = Counter(scene_class(name) for name in names)
    per_split = Counter((scene_class(name), splits.get(name)) for name in names)
    for name in sorted(total):
        parts: dict[str, Any] = {split: per_split[name, split] for split in dict.fromkeys(splits.values())}
        report.table.append({"class": name, **parts, "images": total[name], "published": entry.per_class})
        if complete and entry.per_class and total[name] != entry.per_class:
            published = f"{entry.per_class:,} were published"
            report.faults.append(f"{report.folder}: {total[name]:,} images of class {name}, {published}")
