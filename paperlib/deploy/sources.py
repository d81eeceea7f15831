"""What to detect on: picture files, folders, patterns of names, and films frame by frame."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paperlib.extras import load_later

if TYPE_CHECKING:
    import av
else:
    av = load_later("runtimes", lambda: import_module("av"))

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FILMS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


@dataclass(frozen=True)
class Source:
    """A picture or a film.

    Attributes:
        path: its file.
        name: without a suffix and unique among the sources, for the files that are written.
    """

    path: Path
    name: str

    @property
    def is_film(self) -> bool:
        """Return whether the file holds frames."""
        return self.path.suffix.lower() in FILMS


def find_sources(places: Sequence[str]) -> list[Source]:
    """Find the pictures and films that are meant: files, all of a folder and of the folders in it, and glob patterns.

    Returns:
        Each file once, in the order of the places, and by name within one.

    Raises:
        FileNotFoundError: there is no such file or folder, or no file fits a pattern.
        ValueError: a folder holds neither pictures nor films.
    """
    paths: dict[Path, None] = {}
    for place in places:
        for path in _find_files(place):
            paths[path] = None
    taken: set[str] = set()
    return [Source(path, _unused_name(path.stem, taken)) for path in paths]


def read_frames(film: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a film, uint8 `[H, W, 3]` RGB.

    Raises:
        ValueError: it is no film, is damaged, or has no frame; one line names the file.
    """
    count = 0
    try:
        with av.open(str(film)) as opened:
            if not opened.streams.video:
                raise ValueError(f"{film}: has no frames")
            for frame in opened.decode(video=0):
                count += 1
                yield frame.to_ndarray(format="rgb24")
    except av.FFmpegError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise ValueError(f"{film}: not a film, or damaged after {count} frames ({error.strerror})") from error
    if not count:
        raise ValueError(f"{film}: has no frames")


def frame_rate(film: Path) -> float:
    """Return the frames per second of a film; 25 if it does not say."""
    with av.open(str(film)) as opened:
        return float(opened.streams.video[0].average_rate or 25)


class FilmWriter:
    """Writes frames of one size to an MP4 file."""

    def __init__(self, path: Path, rate: float) -> None:
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream("mpeg4", rate=round(rate))
        self._stream.bit_rate = 8_000_000
        self._started = False

    def write_frame(self, pixels: np.ndarray) -> None:
        """Append a frame, uint8 `[H, W, 3]`; its last line or column is left out where a side is odd."""
        height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
        if not self._started:
            self._stream.height, self._stream.width, self._started = height, width, True
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left and end the file."""
        if self._started:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def _find_files(place: str) -> list[Path]:
    path = Path(place)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.suffix.lower() in PICTURES + FILMS and each.is_file())
        if not found:
            raise ValueError(f"{place}: no pictures in this folder ({', '.join(PICTURES)})")
        return found
    matches = sorted(Path(each) for each in glob.glob(place, recursive=True))
    files = [match for match in matches if match.is_file()]
    if not files:
        raise FileNotFoundError(f"{place}: no such file or folder")
    return files


def _unused_name(stem: str, taken: set[str]) -> str:
    """Return a name that no other source has; two folders may hold pictures of one name."""
    name = stem
    number = 2
    while name in taken:
        name = f"{stem}-{number}"
        number += 1
    taken.add(name)
    return name
