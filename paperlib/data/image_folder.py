"""The images of a folder whose annotations are one file per image, found by the name without its suffix."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from paperlib.data.annotated import ReadOptions
from paperlib.data.image_names import ImageFinder
from paperlib.data.remarks import Remarks
from paperlib.files import quote_value, shorten_text

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
NO_LABELS = "images without a file of labels, read as images without objects"


def walk_files(folder: Path, suffixes: set[str]) -> list[str]:
    """Return the files below a folder that have one of the suffixes, in any case: relative to it, sorted."""
    found = []
    for place, folders, names in os.walk(folder):
        # Hidden files and folders belong to the operating system or to other programs.
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = PurePosixPath(Path(place).relative_to(folder).as_posix())
        found += [
            str(inner / name)
            for name in names
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".")
        ]
    return sorted(found, key=lambda name: name.split("/"))


def has_file(folder: Path, suffixes: set[str]) -> bool:
    """Return whether a folder itself holds a file with one of the suffixes, in any case."""
    return folder.is_dir() and any(path.suffix.lower() in suffixes for path in folder.iterdir())


def first_folder(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of the inner folders that is there, or the folder itself."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def collect_names(names: Iterable[str], options: ReadOptions, *, learn: bool) -> list[str]:
    """Return the classes of a format that has no list of them: the different names of objects, sorted.

    Classes that are known from elsewhere come first, because a validation set need not hold each of them.
    """
    known = options.classes if options.classes and (options.complete or not learn) else ()
    return [*known, *sorted(set(names).difference(known))]


class ImageFolder:
    """Finds the image that belongs to an annotation file.

    Args:
        folder: the folder of images.
        source: the data set, for messages.
        allow_outside: also read links to images outside of the folder.
        remarks: gets the number of images that were found under another spelling.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: Path, source: Path, *, allow_outside: bool, remarks: Remarks) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of images")
        self.folder = folder
        self.names = walk_files(folder, IMAGE_SUFFIXES)
        self._finder = ImageFinder(folder, source, allow_outside=allow_outside, remarks=remarks)
        self._by_path: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for name in self.names:
            path = PurePosixPath(name)
            self._by_path.setdefault(str(path.with_suffix("")), []).append(name)
            self._by_stem.setdefault(path.stem, []).append(name)

    def has(self, key: str) -> bool:
        """Return whether an image has this path, relative to the folder and without suffix."""
        return key in self._by_path

    def has_file(self, name: str) -> bool:
        """Return whether there is an image of this name, relative to the folder."""
        return name in self._by_path.get(str(PurePosixPath(name).with_suffix("")), ())

    def check(self, name: str) -> Path:
        """Return the file of one of `names`; raise `ValueError` if it is a link out of the folder."""
        return self._finder.find(name)

    def find(self, key: str, stated: str | None, annotation: Path) -> tuple[str, Path]:
        """Return the name, relative to the folder, and the file of the image of an annotation.

        Args:
            key: the path of the annotation, relative to its folder and without suffix.
            stated: the file name that the annotation states, if it does; it decides between images of one name.
            annotation: the annotation file, for messages.

        Raises:
            FileNotFoundError: there is no such image.
            ValueError: there are several, or it lies outside of the folder.
        """
        found = self._by_path.get(key) or self._by_stem.get(PurePosixPath(key).name) or []
        if len(found) > 1:
            found = [name for name in found if PurePosixPath(name).name == stated] or found
        if len(found) > 1:
            listed = " and ".join(map(quote_value, found[:2]))
            raise ValueError(f"{annotation}: two images could be meant, {listed} in {self.folder}; rename one of them")
        if not found and not stated:
            name = shorten_text(key, 100)
            raise FileNotFoundError(f"{annotation}: there is no image {quote_value(name)} in {self.folder}")
        name = found[0] if found else str(stated)
        try:
            return name, self._finder.find(name)
        except FileNotFoundError:
            raise FileNotFoundError(f"{annotation}: its image {quote_value(name)} is not in {self.folder}") from None
