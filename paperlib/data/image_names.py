"""Finding the image that an annotation file names, in the folder of images and nowhere else."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from paperlib.data.remarks import Remarks
from paperlib.files import quote_value, shorten_text

SPELLED = "images found under another spelling (case, backslash, URL encoding or Unicode form)"
REMEDY = "--allow-outside (allow_outside=True) permits it"


class ImageFinder:
    """Finds images by the names of an annotation file, each file once.

    Args:
        folder: the folder to which the names are relative.
        source: the annotation file, for messages.
        allow_outside: also find images outside of the folder.
        remarks: gets the number of images that were found under another spelling.
    """

    def __init__(self, folder: Path, source: Path, *, allow_outside: bool, remarks: Remarks) -> None:
        self._folder, self._source = folder, source
        self._allow_outside, self._remarks = allow_outside, remarks
        self._resolved = folder.resolve()
        self._names: dict[str, str] = {}
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path:
        """Return the file of an image.

        A name that was written on Windows, taken from an address, or that has another Unicode form or other capitals
        than the file is found, too.

        Raises:
            FileNotFoundError: there is no such image.
            ValueError: the name or a symbolic link leads out of the folder, or two names mean one file.
        """
        place = f"{self._source}, image {quote_value(name)}"
        for spelling in self._spellings(name):
            if not self._allow_outside and _leaves(spelling):
                raise ValueError(f"{place}: leads out of the folder of images, {self._folder}; {REMEDY}")
            if is_file(file := self._folder / spelling):
                if not self._allow_outside and not file.resolve().is_relative_to(self._resolved):
                    raise ValueError(f"{place}: is a link out of the folder of images, {self._folder}; {REMEDY}")
                self._check_unique(file, name, place)
                if spelling != name:
                    self._remarks.count(SPELLED, quote_value(name))
                return file
        raise FileNotFoundError(
            f"{shorten_text(str(self._folder / name), 200)}: no such image (listed in {self._source})"
        )

    def _spellings(self, name: str) -> Iterator[str]:
        yield from (spellings := _spellings(name))
        for spelling in spellings:
            if not _leaves(spelling) and (found := self._in_any_case(spelling)):
                yield found

    def _in_any_case(self, name: str) -> str:
        """Return the only name in the folder that differs from `name` in capitals; empty if there is none."""
        place = self._folder
        for part in PurePosixPath(name).parts:
            if place not in self._listed:
                self._listed[place] = {}
                for inner in place.iterdir() if place.is_dir() else ():
                    self._listed[place].setdefault(_fold(inner.name), []).append(inner)
            found = self._listed[place].get(_fold(part), [])
            if len(found) != 1:
                return ""
            place = found[0]
        return str(place.relative_to(self._folder))

    def _check_unique(self, file: Path, name: str, place: str) -> None:
        known = self._names.setdefault(os.path.normpath(file), name)
        if known != name:
            raise ValueError(f"{place}: is the same file as image {quote_value(known)}")


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _spellings(name: str) -> list[str]:
    """Return the names that a file may have: the name itself, and what other systems make of it."""
    found = {name: None}
    for decoded in (name, unquote(name)):
        for text in (decoded, decoded.replace("\\", "/")):
            # Python's normalisation leaves a name as it is where its form is the same.
            found |= dict.fromkeys([text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)])
    return list(found)


def _leaves(name: str) -> bool:
    """Return whether a path is absolute, on any system, or climbs out of the folder to which it is relative."""
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
    return absolute or PurePosixPath(os.path.normpath(name)).parts[:1] == ("..",)


def is_file(file: Path) -> bool:
    """Return whether there is such a file; False also for a name that no file can have."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        # It is too long for the file system, or has a zero character.
        return False
