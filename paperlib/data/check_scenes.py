"""Check of a scene data set: every image is decoded and counted in its class and split."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from paperlib.data.check_report import ImageFindings, Report, read_images
from paperlib.data.layouts import draw_command, not_in_split, require_file, split_of
from paperlib.data.own_scenes import split_folders
from paperlib.data.pictures import decode_image
from paperlib.data.registry import Entry
from paperlib.data.scene_folders import (
    SCENES_PREFIX,
    SceneLayout,
    class_faults,
    common_classes,
    is_image_file,
    read_class_folders,
    scene_class,
)
from paperlib.data.splits import draw_scene_splits


def check_scenes(layout: SceneLayout, entry: Entry, report: Report) -> str:
    """Check published scenes in `report.folder`; return how many images and classes were read."""
    splits = split_of(layout)
    present: set[str] = set()
    for part in layout.parts or ("",):
        present |= {str(PurePosixPath(part, name)) for name in _list_images(report.folder / part, report)}
    if not splits:
        report.remarks.append(f"no split has been drawn: {draw_command(layout)}")
    elif unknown := sorted(present - splits.keys()):
        report.faults.append(not_in_split(layout, report.folder, unknown))
    files = {name: report.folder / name for name in sorted(present | splits.keys())}
    if len(files) != entry.images:
        report.remarks.append(f"{entry.images:,} images were published: the numbers cannot be compared")
    counted = _check_files(files, splits, report)
    _count(files, splits, report, entry)
    return counted


def check_own_scenes(name: str) -> Report:
    """Check your own scenes, named as in `load_dataset`: `scenes:FOLDER`, with or without `{split}`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    started = time.perf_counter()
    place = name.removeprefix(SCENES_PREFIX)
    report = Report("your scenes", Path(place))
    files: dict[str, Path] = {}
    splits: dict[str, str] = {}
    for split, root in split_folders(place).items():
        found = _list_images(root, report)
        # With a folder for each split, two images may have the same class and file name.
        prefix = f"{split}/" if split else ""
        files |= {f"{prefix}{image}": root / image for image in found}
        splits |= {f"{prefix}{image}": split for image in found if split}
    if not splits and not report.faults:
        drawn = draw_scene_splits(sorted(files), report.folder)
        splits = {image: split for split, images in drawn.items() for image in images}
    counted = _check_files(files, splits, report)
    _count(files, splits, report)
    report.summary = f"{counted} read in {time.perf_counter() - started:.1f} s"
    return report


def _check_files(files: Mapping[str, Path], splits: Mapping[str, str], report: Report) -> str:
    """Decode all images; return how many images and classes there are.

    Args:
        files: by name of the image.
        splits: by name of the image, its split; empty if there are none.
        report: gets what is found.
    """
    sizes: dict[str, tuple[int, int]] = {}
    images = read_images(list(files), lambda name: _read(name, files[name], sizes), report.title)
    _remark_on_sizes(images, sizes)
    report.add_images(images, splits)
    report.faults += _missing_classes(splits, str(report.folder))
    return f"{len(images):,} images of {len({scene_class(name) for name in files}):,} classes"


def _list_images(root: Path, report: Report) -> list[str]:
    """Return the names of all images in the class folders below `root`; report faults of these, and stray files."""
    classes = read_class_folders(root)
    report.faults += class_faults(root, classes)
    stray = [path for folder in classes for path in sorted((root / folder).iterdir()) if not is_image_file(path)]
    report.remarks += [f"does not belong there: {path}" for path in stray]
    return [f"{folder}/{file}" for folder, found in classes.items() for file in found]


def _read(name: str, file: Path, sizes: dict[str, tuple[int, int]]) -> ImageFindings:
    """Decode an image, and store its `(width, height)` in `sizes`."""
    found = ImageFindings(name)
    found.attempt(require_file, file)
    pixels = None if found.faults else found.attempt(decode_image, file)
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


def _missing_classes(splits: Mapping[str, str], place: str) -> list[str]:
    names = {split: [name for name in splits if splits[name] == split] for split in dict.fromkeys(splits.values())}
    try:
        common_classes(names, place)
    except ValueError as error:
        return [str(error)]
    return []


def _count(
    files: Mapping[str, Path], splits: Mapping[str, str], report: Report, published: Entry | None = None
) -> None:
    """Fill the table of images per class; in a complete set a number that was not published is a fault."""
    total = Counter(scene_class(name) for name in files)
    per_split = Counter((scene_class(name), splits.get(name)) for name in files)
    for name in sorted(total):
        row: dict[str, Any] = {"class": name}
        row |= {split: per_split[name, split] for split in dict.fromkeys(splits.values())}
        report.table.append(row | {"images": total[name]})
        if published and published.per_class:
            report.table[-1]["published"] = published.per_class
            if len(files) == published.images and total[name] != published.per_class:
                count = f"{total[name]:,} images of class {name}, {published.per_class:,} were published"
                report.faults.append(f"{report.folder}: {count}")
