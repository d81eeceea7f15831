"""Decoding of image files to 8-bit RGB, as the picture is displayed: turned by its EXIF orientation, scaled by depth.

Pictures of 8 bits keep their values. Deeper ones are scaled by the rule of `value_range`. Palettes, CMYK, grey and
bilevel pictures become RGB, an alpha channel and bands after the third are dropped, of several pages the first is read.
A file of up to `MAX_PIXELS` pixels is read; one beyond `LARGE` is decoded a few rows at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from paperlib.data import row_reader
from paperlib.data.value_range import scale_values
from paperlib.files import shorten_text

MAX_PIXELS = 500_000_000
"""Limit of width times height; DOTA's largest images have 400 megapixels."""
LARGE = 178_956_970
"""Pixels beyond which Pillow itself refuses a picture."""
ORIENTATION = 0x0112
# Pillow counts rotations anticlockwise, EXIF clockwise: hence 270 degrees for orientation 6.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation, how a stored picture is turned to be displayed."""
DEEP_FORMATS = ("PNG", "TIFF")
"""The formats whose deep pictures libvips reads with all their bits."""


@dataclass(frozen=True)
class Header:
    """What an image file says of itself.

    Attributes:
        size: `(width, height)` in pixels, as displayed.
        format: Pillow's name of the file format.
        orientation: the EXIF orientation, 1..8.
        deep: whether it has more than 8 bits a value.
    """

    size: tuple[int, int]
    format: str
    orientation: int = 1
    deep: bool = False

    def stored_size(self) -> tuple[int, int]:
        """Return `(width, height)` in pixels before the picture is turned."""
        return _turned_size(self.size) if self.orientation >= 5 else self.size


def read_header(file: Path) -> Header:
    """Read the header of an image file; no pixels are decoded.

    Raises:
        ValueError: the file is not an image, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with _open_image(file) as opened:
            header = _header(opened)
    except UnidentifiedImageError:
        header = _header_by_libvips(file)
    except Exception as error:  # noqa: BLE001 (a damaged header raises whatever its parser happens to do)
        raise ValueError(f"{file}: not an image ({_one_line(error)})") from error
    width, height = header.size
    if width * height > MAX_PIXELS:
        limit = f"at most {MAX_PIXELS / 1e6:,.0f} megapixels are read"
        raise ValueError(f"{file}: {width} x {height} pixels, {limit}; cut it into parts")
    return header


def image_size(file: Path) -> tuple[int, int]:
    """Return `(width, height)` of the displayed picture from the header of an image file; see `read_header`."""
    return read_header(file).size


def decode_image(file: Path) -> np.ndarray:
    """Decode an image file to uint8 `[H, W, 3]`, as displayed, by the rules of this module.

    Raises:
        ValueError: the file is damaged or ends early, is larger than `MAX_PIXELS`, or has values that are not finite.
    """
    header = read_header(file)
    width, height = header.size
    if header.format in DEEP_FORMATS and header.deep or width * height > LARGE:
        return row_reader.read_rows(file, height)
    try:
        with _open_image(file) as opened:
            if opened.mode == "P":
                # Pillow warns of transparent palettes; the colours are the same without.
                opened.info.pop("transparency", None)
            # Pillow turns TIFF files itself.
            turn = None if header.format == "TIFF" else TURNS.get(header.orientation)
            picture = opened if header.deep else opened.convert("RGB")
            values = np.array(picture if turn is None else picture.transpose(turn))
    except Exception as error:  # noqa: BLE001 (damaged data raise whatever their decoder happens to do)
        raise ValueError(f"{file}: the image does not decode ({_one_line(error)})") from error
    return scale_values(values, str(file)) if header.deep else values


def decode_scaled(file: Path, size: tuple[int, int]) -> Tensor:
    """Decode a large image file scaled down to `(width, height)`, uint8 `[3, H, W]`, never with all pixels in memory.

    Raises:
        ValueError: see `decode_image`.
    """
    return torch.from_numpy(row_reader.read_scaled(file, size)).permute(2, 0, 1)


def _header(opened: Image.Image) -> Header:
    kind = opened.format or ""
    # Of one frame `(codec, extents, offset, arguments)`; the arguments are the raw mode, or begin with it.
    arguments = [part[3] for part in getattr(opened, "tile", None) or ()]
    modes = [part[0] if isinstance(part, tuple) and part else part for part in arguments]
    # Modes that begin with "I" hold integers of 16 or 32 bits, those with "F" floats.
    deep = opened.mode[0] in "IF" or any(";16" in str(mode) for mode in modes if kind in DEEP_FORMATS)
    orientation = _orientation(opened)
    # Pillow gives the size of a TIFF file as displayed, and of others as stored.
    turned = orientation >= 5 and kind != "TIFF"
    return Header(_turned_size(opened.size) if turned else opened.size, kind, orientation, deep)


def _turned_size(size: tuple[int, int]) -> tuple[int, int]:
    return size[1], size[0]


def _orientation(opened: Image.Image) -> int:
    # For EXIF data behind the pixels, as a few PNG files have them, Pillow would decode every PNG file.
    if opened.format == "PNG" and "exif" not in opened.info:
        return 1
    try:
        found = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (damaged EXIF data say nothing; the picture is still good)
        return 1
    return found if found in TURNS else 1


def _header_by_libvips(file: Path) -> Header:
    """Return the header of a file that Pillow does not know, such as a TIFF file with six bands."""
    with file.open("rb") as opened:
        start = opened.read(4)
    # TIFF and BigTIFF, each little-endian and big-endian.
    if start not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        raise ValueError(f"{file}: not an image (of no format that is known)")
    return Header(row_reader.displayed_size(file), "TIFF", deep=True)


_limit_lock = threading.Lock()
_limit: dict[str, Any] = {"users": 0, "pixels": None}


@contextmanager
def _open_image(file: Path) -> Iterator[Image.Image]:
    """Open a file without Pillow's limit of pixels, which warns first; `MAX_PIXELS` stands for it.

    The limit is a global variable that belongs to the program: it is back once nothing is open here.
    """
    with _limit_lock:
        if not _limit["users"]:
            _limit["pixels"], Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _limit["users"] += 1
    try:
        with Image.open(file) as opened:
            yield opened
    finally:
        with _limit_lock:
            _limit["users"] -= 1
            if not _limit["users"]:
                Image.MAX_IMAGE_PIXELS = _limit["pixels"]


def _one_line(error: Exception) -> str:
    return shorten_text(" ".join(str(error).split()) or type(error).__name__, 200)
