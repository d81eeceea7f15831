"""Large image files, read from top to bottom a few rows at a time, so that one never lies in memory whole."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

ROWS_AT_A_TIME = 8
_open = threading.local()


def read_part(file: Path, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """The pixels of a part of an image file, uint8 `[bottom - top, right - left, 3]`.

    Parts of one file are cheap when they are asked for from top to bottom: the rows of the last part are kept, and the
    file is read on from there. Going back up, or a file that was changed, is read from its start again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not decode, to the last row of the part.
    """
    state = _state(file)
    strip = getattr(_open, "strip", None)
    if strip is None or strip.state != state or top < strip.top:
        _open.strip = strip = None  # the old one's memory goes before the new one's comes
        _open.strip = strip = _Strip(file, state)
    try:
        return strip.rows(top, bottom)[:, left:right].copy()
    except BaseException:
        _open.strip = None  # its rows may be half moved
        raise


def _state(file: Path) -> tuple[Path, int, int]:
    """Another one once the file was written again."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    found = file.stat()
    return file, found.st_mtime_ns, found.st_size


class _Strip:
    """A band of rows of a file, which moves down."""

    def __init__(self, file: Path, state: tuple[Path, int, int]) -> None:
        import pyvips

        pyvips.cache_set_max(0)  # a file that was changed would be answered from its past
        self.file, self.state, self.top, self.read = file, state, 0, 0
        try:
            image = pyvips.Image.new_from_file(str(file), access="sequential", fail_on="truncated")
            if image.bands != 3 or image.format != "uchar":
                image = image.colourspace("srgb").cast("uchar")
            self.image = image[:3]
            self.region = pyvips.Region.new(self.image)
        except pyvips.Error as error:
            raise ValueError(f"{file}: the image does not decode ({_one_line(error)})") from error
        self.kept = np.empty((0, self.image.width, 3), dtype=np.uint8)

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom`; `top` may not be above that of the last call."""
        if bottom <= self.read:
            return self.kept[top - self.top : bottom - self.top]
        overlap = max(0, self.read - top)
        band = self.kept
        if len(band) != bottom - top:
            band = np.empty((bottom - top, self.image.width, 3), dtype=np.uint8)
        for start in range(0, overlap, ROWS_AT_A_TIME):  # bit by bit: of a copy onto itself NumPy makes a third one
            stop = min(start + ROWS_AT_A_TIME, overlap)
            band[start:stop] = self.kept[len(self.kept) - overlap + start : len(self.kept) - overlap + stop]
        for start in range(self.read, bottom, ROWS_AT_A_TIME):
            chunk = self._fetch(start, min(ROWS_AT_A_TIME, bottom - start))
            into = max(start, top)
            if into < start + len(chunk):
                band[into - top : start - top + len(chunk)] = chunk[into - start :]
        self.kept, self.top, self.read = band, top, bottom
        return band

    def _fetch(self, top: int, count: int) -> np.ndarray:
        import pyvips

        try:
            rows = self.region.fetch(0, top, self.image.width, count)
        except pyvips.Error as error:
            raise ValueError(f"{self.file}: the image does not decode ({_one_line(error)})") from error
        return np.frombuffer(rows, dtype=np.uint8).reshape(count, self.image.width, 3)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
