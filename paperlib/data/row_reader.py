"""Reader of large image files, from top to bottom a few rows at a time, so that memory never holds a full image."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.data.value_range import value_range
from paperlib.files import shorten_text

ROWS_AT_A_TIME = 8
WHOLE_NUMBERS = ("char", "ushort", "short", "uint", "int")
FLOATS = ("float", "double")
# Each thread has its own strip: threads that shared one would move it away from each other's rows.
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


def read_rows(file: Path, height: int) -> np.ndarray:
    """Read all rows of an image file, uint8 `[height, W, 3]`; raise errors as `read_part` does."""
    return _Strip(file, _state(file)).read_rows(0, height)


def read_scaled(file: Path, size: tuple[int, int]) -> np.ndarray:
    """Read an image file scaled down to `(width, height)`, uint8 `[height, width, 3]`, a few rows at a time.

    Raises:
        ValueError: the file does not decode.
    """
    width, height = size
    with _refused(file):
        image = _open_rgb(file)
        scaled = image.resize(width / image.width, vscale=height / image.height, kernel="linear")
        # The library rounds sizes its own way, by up to a pixel.
        scaled = scaled.embed(0, 0, width, height, extend="copy")
        return np.frombuffer(scaled.write_to_memory(), dtype=np.uint8).reshape(height, width, 3).copy()


def displayed_size(file: Path) -> tuple[int, int]:
    """Return `(width, height)` of the displayed picture; raise `ValueError` if the file is not an image."""
    with _refused(file):
        image = _open_turned(file)
        return image.width, image.height


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

        self.file, self.state, self.top, self.read = file, state, 0, 0
        self.image = _open_rgb(file)
        self.region = pyvips.Region.new(self.image)
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
        with _refused(self.file):
            rows = self.region.fetch(0, top, self.image.width, count)
        return np.frombuffer(rows, dtype=np.uint8).reshape(count, self.image.width, 3)


def _open_turned(file: Path) -> Any:
    """Open a file as its picture is displayed."""
    import pyvips

    pyvips.cache_set_max(0)  # with a cache, a changed file would return its old pixels
    # By default the library fills the rows that a truncated file lacks, without an error.
    image = pyvips.Image.new_from_file(str(file), access="sequential", fail_on="truncated")
    orientation: Any = image.get("orientation") if image.get_typeof("orientation") else 1
    if orientation > 1:
        # Rows of a turned picture are columns of the file.
        image = pyvips.Image.new_from_file(str(file), access="random", fail_on="truncated").autorot()
    return image


def _open_rgb(file: Path) -> Any:
    """Open a file as RGB of 8 bits; deeper values are scaled by `value_range`."""
    with _refused(file):
        image = _open_turned(file)
        if image.format != "uchar":
            return _scaled_to_bytes(image, _state(file))
        if image.bands != 3 and image.interpretation != "multiband":
            image = image.colourspace("srgb").cast("uchar")
        return image[:3] if image.bands >= 3 else image[0].bandjoin([image[0], image[0]])


def _scaled_to_bytes(image: Any, state: tuple[Path, int, int]) -> Any:
    if image.format not in WHOLE_NUMBERS + FLOATS or image.interpretation == "cmyk":
        raise ValueError(f"{state[0]}: {image.format} values of kind {image.interpretation}; convert it to 8-bit RGB")
    black, white = _range_of(*state)
    # Rounded first, because `cast` cuts decimals off.
    scaled = ((_colours(image) - black) * (255 / (white - black))).rint().cast("uchar")
    return scaled if scaled.bands == 3 else scaled.bandjoin([scaled, scaled])


@lru_cache(maxsize=1024)
def _range_of(file: Path, changed: int, length: int) -> tuple[float, float]:
    """Return which values of a file become black and white, after one pass over all its rows."""
    image = _open_turned(file)
    statistics = _colours(image).stats()
    # Row 0 is for all bands together; its first columns are minimum, maximum and sum.
    low, high, total = (statistics.getpoint(column, 0)[0] for column in range(3))
    # Comparisons pass NaN over; a sum does not.
    low, high = (low, high) if math.isfinite(total) else (math.nan, math.nan)
    return value_range(low, high, is_float=image.format in FLOATS, place=str(file))


def _colours(image: Any) -> Any:
    """Return red, green and blue, or grey, without alpha and other bands."""
    return image[:3] if image.bands >= 3 else image[0]


@contextmanager
def _refused(file: Path) -> Iterator[None]:
    """Turn the library's errors into a `ValueError` of one line."""
    import pyvips

    try:
        yield
    except pyvips.Error as error:
        fault = shorten_text(" ".join(str(error).split()), 200)
        raise ValueError(f"{file}: the image does not decode ({fault})") from error
