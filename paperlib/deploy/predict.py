"""Detection on pictures: one image, or every picture, film and large scene of a list of sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from paperlib.data.pictures import decode_image
from paperlib.data.records import Dataset, Picture, Record
from paperlib.data.tiles import Tiling, cut_into_tiles
from paperlib.deploy.description import USUAL_CONFIDENCE, Description
from paperlib.deploy.runtime import OpenModel, open_model
from paperlib.evaluation.evaluate import detect, detect_full_images

Image = str | Path | np.ndarray | Picture
"""A picture's file, its pixels, uint8 `[H, W, 3]`, or an object that computes them."""


@dataclass(frozen=True)
class Prediction:
    """The objects found in one picture, best first.

    Attributes:
        boxes: float32 `[N, 4]` xyxy pixels of the picture.
        labels: int64 `[N]` in 1..C.
        scores: float32 `[N]`.
        classes: the C class names.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    classes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Return the class name of each object."""
        return [self.classes[label - 1] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.labels)


def predict(
    model: OpenModel | nn.Module | str | Path,
    image: Image,
    *,
    confidence: float | None = None,
    image_size: int | None = None,
    classes: Sequence[str] | None = None,
    tile: int | None = None,
) -> Prediction:
    """Find the objects in one picture.

    Args:
        model: a model file; what `open_model` returns, which is faster for more than one picture; or a detector, which
            needs `image_size`.
        image: the picture.
        confidence: the lowest score; by default what the model's file says, or `USUAL_CONFIDENCE`.
        image_size: side in pixels of the square that the picture is fitted into; by default what the file says.
        classes: names of labels 1..C; by default what the file says, or the numbers.
        tile: cut a large scene into overlapping tiles of this side, in pixels, and merge what is found in them.

    Raises:
        FileNotFoundError, ValueError: there is no such model or picture, or it is damaged; the model does not say its
            image size; an option is out of its range. One line names the fault.
    """
    if isinstance(model, str | Path):
        model = open_model(model)
    elif isinstance(model, nn.Module):
        model = OpenModel(type(model).__name__, model, None)
    return find_objects(model.detector, describe_use(model, confidence, image_size, classes), image, tile)


def describe_use(
    model: OpenModel, confidence: float | None, image_size: int | None, classes: Sequence[str] | None
) -> Description:
    """Return how a model is used: what its file says, where no value is given instead.

    Raises:
        ValueError: the image size is unknown, or a value is out of its range.
    """
    known, detector = model.description, model.detector
    size = image_size or (known.image_size if known else None)
    if size is None:
        raise ValueError(f"{model.name}: does not say for which image size it was trained; give the image size")
    if size != getattr(detector, "fixed_size", size):
        raise ValueError(f"{model.name}: is for images of {detector.fixed_size} pixels, not {size}")
    multiple = getattr(detector, "image_multiple", 1)
    if size < 1 or size % multiple:
        raise ValueError(f"{model.name}: image size {size} is not a multiple of {multiple} pixels")
    count = int(getattr(detector, "num_classes", 0))
    names = classes or (known.classes if known else [str(label) for label in range(1, count + 1)])
    if len(names) != count:
        raise ValueError(f"{model.name}: {len(names)} names of classes for a detector of {count}")
    threshold = known.confidence if known and confidence is None else confidence
    if threshold is None:
        threshold = USUAL_CONFIDENCE
    if not 0 <= threshold <= 1:
        raise ValueError(f"confidence {threshold:g} is not in [0, 1]")
    return Description(classes=tuple(names), image_size=size, confidence=threshold)


def find_objects(detector: nn.Module, use: Description, image: Image, tile: int | None = None) -> Prediction:
    """Find the objects in one picture with an open detector; see `predict`."""
    dataset = Dataset("picture", use.classes, [_record(image, tile)])
    if tile:
        tiles = cut_into_tiles(dataset, Tiling(side=tile, overlap=tile // 4))
        (found,) = detect_full_images(detector, tiles, image_size=use.image_size)
    else:
        (found,) = detect(detector, dataset, image_size=use.image_size)
    kept = found["scores"] >= (use.confidence or 0.0)
    return Prediction(found["boxes"][kept], found["labels"][kept], found["scores"][kept], use.classes)


def _record(image: Image, tile: int | None) -> Record:
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"the picture is {image.dtype} {list(image.shape)}, not uint8 [H, W, 3]")
        return Record("picture", image, *nothing)
    if isinstance(image, str | Path):
        path = Path(image)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such picture")
        # A scene that is cut into tiles is read part by part.
        return Record(path.name, path if tile else decode_image(path), *nothing)
    return Record("picture", image, *nothing)
