"""Reader of large image files, from top to bottom a few rows at a time, so that memory never holds a full image."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

ROWS_AT_A_TIME = 8
_open = threading.local()


def read_part(file: Path, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """Read the pixels of a part of an image file, uint8 `[bottom - top, right - left, 3]`.

    Reading the parts of a file from top to bottom is fast: the rows of the last part are kept, and reading continues
    from there. For a part further up, or a file that was changed, reading starts again at the first row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not decode up to the last row of the part.
    """
    state = _state(file)
    strip = getattr(_open, "strip", None)
    if strip is None or strip.state != state or top < strip.top:
        _open.strip = strip = None  # frees the old band's memory before the new one is allocated
        _open.strip = strip = _Strip(file, state)
    try:
        return strip.read_rows(top, bottom)[:, left:right].copy()
    except BaseException:
        _open.strip = None  # its rows may be incomplete
        raise


def _state(file: Path) -> tuple[Path, int, int]:
    """Return a value that changes when the file is written again."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    found = file.stat()
    return file, found.st_mtime_ns, found.st_size


class _Strip:
    """A band of rows of a file that moves downwards."""

    def __init__(self, file: Path, state: tuple[Path, int, int]) -> None:
        import pyvips

        pyvips.cache_set_max(0)  # with a cache, a changed file would return its old pixels
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

    def read_rows(self, top: int, bottom: int) -> np.ndarray:
        """Return rows `top` to `bottom`; `top` must not be above that of the last call."""
        if bottom <= self.read:
            return self.kept[top - self.top : bottom - self.top]
        overlap = max(0, self.read - top)
        band = self.kept
        if len(band) != bottom - top:
            band = np.empty((bottom - top, self.image.width, 3), dtype=np.uint8)
        for start in range(0, overlap, ROWS_AT_A_TIME):  # in steps, because NumPy copies overlapping arrays twice
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
