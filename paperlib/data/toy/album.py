"""The cache of the embedded data sets on disk: drawing takes half a minute, reading less than a second."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from types import ModuleType

import numpy as np
import PIL

from paperlib import files, paths
from paperlib.data.toy import aerial, scenes
from paperlib.data.toy.aerial import Scene, draw_split
from paperlib.store.code_digest import code_digest

_log = logging.getLogger(__name__)


def load_scenes(split: str) -> list[Scene]:
    """Return a split of `toy-aerial` as `draw_split` does; read it from the store if it was drawn before.

    Raises:
        ValueError: an unknown split.
    """

    def draw() -> dict[str, np.ndarray]:
        images, boxes, labels = zip(*draw_split(split), strict=True)
        counts = np.array([len(each) for each in labels])
        joined = {"boxes": np.concatenate(boxes), "labels": np.concatenate(labels)}
        return {"images": np.stack(images), **joined, "counts": counts}

    album = _load_or_draw("toy-aerial", aerial, split, draw)
    ends = album["counts"].cumsum()[:-1]
    boxes, labels = np.split(album["boxes"], ends), np.split(album["labels"], ends)
    return list(zip(album["images"], boxes, labels, strict=True))


def load_places(split: str) -> np.ndarray:
    """Return a split of `toy-scenes` as `scenes.draw_split` does; read it from the store if it was drawn before.

    Raises:
        ValueError: an unknown split.
    """
    return _load_or_draw("toy-scenes", scenes, split, lambda: {"images": scenes.draw_split(split)})["images"]


def _load_or_draw(
    name: str, module: ModuleType, split: str, draw: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the arrays of a split that the same code and libraries drew before, or draw and store them.

    A damaged file in the store is drawn again. If the store cannot be written to, the split is drawn every time.
    """
    drawn_by = "-".join([code_digest(module.__name__)[:16], np.__version__, PIL.__version__])
    file = paths.store_root() / name / f"{split}-{drawn_by}.npz"
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as album:
            return dict(album)
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged archive can raise anything, from zlib's own errors to MemoryError
        _log.warning("%s: not readable (%s); the scenes are drawn again", file, type(error).__name__)
    drawn = draw()
    with contextlib.suppress(OSError), files.replace_file(file) as album:
        np.savez(album, **drawn)  # pyright: ignore[reportArgumentType]  (its stub takes them for `allow_pickle`)
    return drawn
