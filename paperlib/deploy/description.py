"""What a model file says of its own use: classes, image size, thresholds, preprocessing, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paperlib import limits
from paperlib.detectors.files import read_use

PREPROCESSING = (
    "RGB; scaled so that the longer side has image_size pixels; grey (127) added on the right or at the bottom; "
    "values divided by 255"
)
"""What happens to a picture before a detector sees it; the same for every detector of this package."""
SCENE_PREPROCESSING = (
    "RGB; scaled so that the shorter side has image_size pixels; cut to the square around its centre; "
    "values divided by 255"
)
"""What happens to a picture before a classifier of scenes sees it."""
USUAL_CONFIDENCE = 0.25
"""Threshold of models whose file names none."""
Share = Annotated[float, Field(ge=0, le=1)]


class Description(BaseModel):
    """How a detector is used; stored in its file.

    Attributes:
        classes: the names of labels 1..C.
        image_size: side in pixels of the square that pictures are fitted into.
        confidence: detections with a lower score are not shown; the value that maximises F1 on the validation data.
        selection: how detections are chosen among a one-stage detector's boxes: by non-maximum suppression, or as
            the peaks of a heat map.
        nms_iou: of two boxes of a class that overlap by more, only the one with the higher score stays.
        score_threshold: the selection starts from scores above this one; it is low, because average precision takes in
            the whole curve.
        max_detections: so many detections of an image are kept at most, highest scores first.
        preprocessing: see `PREPROCESSING`.
        training_data: digest of the training data.
        licence: what the licence of the training data or the initial weights asks for.
        version: of paperlib.
    """

    model_config = ConfigDict(frozen=True)

    classes: tuple[str, ...]
    image_size: Annotated[int, Field(ge=1, le=limits.LARGEST_SIDE)]
    confidence: Share | None = None
    selection: Literal["nms", "peaks"] = "nms"
    nms_iou: Share = 0.5
    score_threshold: Share = 0.005
    max_detections: Annotated[int, Field(ge=1, le=limits.LARGEST_COUNT)] = 100
    preprocessing: str = PREPROCESSING
    training_data: str = ""
    licence: str = ""
    version: str = ""

    def to_properties(self) -> dict[str, str]:
        """Return the fields as texts, all but `preprocessing` and plain texts as JSON."""
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in self.model_dump().items()
            if value not in ("", None)
        }


def describe_selection(detector: Any) -> dict[str, Any]:
    """Return the fields of a description that say how a detector's detections are selected."""
    usual = {"selection": "nms", "nms_iou": 1.0, "score_threshold": 0.005, "max_detections": 100}
    return {name: getattr(detector, name, value) for name, value in usual.items()}


def read_properties(properties: Mapping[str, str], path: Path) -> Description:
    """Return the description in the metadata of a model file.

    Raises:
        ValueError: the metadata hold none, or a damaged one; one line names the file and the field.
    """
    texts = {name: properties[name] for name in Description.model_fields if name in properties}
    try:
        plain = {name: text if _is_text(name) else json.loads(text) for name, text in texts.items()}
        return Description.model_validate(plain)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(f"{path}: does not say how it is used: {fault['loc'][0]}: {fault['msg']}") from None
    except ValueError:
        raise ValueError(f"{path}: its description is damaged") from None


def load_description(path: Path) -> Description | None:
    """Return what a `.safetensors` file says of the use of its detector; None if it says nothing.

    Raises:
        FileNotFoundError, ValueError: see `paperlib.detectors.files.read_use`.
    """
    use = read_use(path)
    return read_properties(use, path) if use else None


def _is_text(name: str) -> bool:
    return name in ("selection", "preprocessing", "training_data", "licence", "version")
