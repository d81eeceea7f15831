"""The cache of `toy-aerial` on disk: drawing the scenes takes half a minute, reading them less than a second."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import numpy as np
import PIL

from paperlib import files, paths
from paperlib.data.toy.aerial import Scene, draw_split
from paperlib.store.code_digest import code_digest

_log = logging.getLogger(__name__)


def load_scenes(split: str) -> list[Scene]:
    """Return a split as `draw_split` does; read it from the store if the same code and libraries drew it before.

    A damaged file in the store is drawn again. If the store cannot be written to, the split is drawn every time.

    Raises:
        ValueError: an unknown split.
    """
    drawn_by = "-".join([code_digest("paperlib.data.toy.aerial")[:16], np.__version__, PIL.__version__])
    file = paths.store_root() / "toy-aerial" / f"{split}-{drawn_by}.npz"
    try:
        return _read(file)
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged archive can raise anything, from zlib's own errors to MemoryError
        _log.warning("%s: not readable (%s); the scenes are drawn again", file, type(error).__name__)
    drawn = draw_split(split)
    with contextlib.suppress(OSError):
        _write(file, drawn)
    return drawn


def _read(file: Path) -> list[Scene]:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as album:
        ends = album["counts"].cumsum()[:-1]
        boxes, labels = np.split(album["boxes"], ends), np.split(album["labels"], ends)
        return list(zip(album["images"], boxes, labels, strict=True))


def _write(file: Path, drawn: list[Scene]) -> None:
    images, boxes, labels = zip(*drawn, strict=True)
    counts = np.array([len(each) for each in labels])
    with files.replace_file(file) as album:
        np.savez(
            album, images=np.stack(images), boxes=np.concatenate(boxes), labels=np.concatenate(labels), counts=counts
        )
