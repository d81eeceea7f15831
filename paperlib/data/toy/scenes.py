"""`toy-scenes`, the embedded scene data set: twelve kinds of places, drawn from a seed by the painters of `toy-aerial`.

It stands in for scene photographs where nothing may be downloaded. A class is one painter. Each image is a function of
(seed, split, class, index) and of nothing else. Coast, shore and sea resemble each other, and so do suburb and town.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from paperlib.data.toy import places, scenery
from paperlib.data.toy.aerial import expose
from paperlib.data.toy.canvas import Canvas

PAINTERS: dict[str, Callable[[Canvas], object]] = {
    "coast": places.draw_coast,
    "sports ground": places.draw_sports_ground,
    "airport": places.draw_airport,
    "river": places.draw_river,
    "works": places.draw_works,
    "suburb": places.draw_suburb,
    "highway": places.draw_highway,
    "countryside": scenery.draw_countryside,
    "park": scenery.draw_park,
    "town": scenery.draw_town,
    "shore": scenery.draw_shore,
    "sea": scenery.draw_sea,
}
"""The classes in order, and who draws them."""
CLASSES = tuple(PAINTERS)
SIZES = {"train": 60, "val": 20, "test": 40}
"""Number of images of each class in each split."""
SIDE = 64
"""Side of an image in pixels."""


def draw_scene(seed: int, split: str, label: int, index: int) -> np.ndarray:
    """Draw one image of class `label` (0..11), uint8 `[SIDE, SIDE, 3]`.

    Raises:
        ValueError: an unknown split or class, or a negative seed or index.
    """
    if split not in SIZES:
        raise ValueError(f"toy-scenes: unknown split {split!r}, expected one of {', '.join(SIZES)}")
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"toy-scenes: class {label} is not in 0..{len(CLASSES) - 1}")
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise ValueError(f"toy-scenes: {name} must be at least 0, got {value}")
    # The split's position in SIZES is a part of the seed, so a new split may only be added at the end.
    stream = np.random.SeedSequence((seed, list(SIZES).index(split), label, index))
    # PCG64 by name, because NumPy may change the generator behind `default_rng`.
    generator = np.random.Generator(np.random.PCG64(stream))
    canvas = Canvas(SIDE, generator)
    PAINTERS[CLASSES[label]](canvas)
    image, owners = canvas.image_and_owners()
    return expose(image, owners, generator)


def draw_split(split: str, seed: int = 0) -> np.ndarray:
    """Draw the images of a split, class by class, uint8 `[C, SIZES[split], SIDE, SIDE, 3]`.

    Raises:
        ValueError: as `draw_scene`.
    """
    count = SIZES.get(split, 1)
    images = [[draw_scene(seed, split, label, index) for index in range(count)] for label in range(len(CLASSES))]
    return np.array(images)
