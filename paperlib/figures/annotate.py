"""Boxes, class names and scores drawn on a picture in its own pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paperlib.deploy.predict import Prediction
from paperlib.figures.detections import CLASS_COLOURS

TEXT_SHARE = 0.018
"""Height of the text as a fraction of the picture's longer side."""


def annotate_picture(pixels: np.ndarray, found: Prediction) -> np.ndarray:
    """Return a copy of a picture, uint8 `[H, W, 3]`, with its objects drawn: the best one on top."""
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    height = max(10, round(TEXT_SHARE * max(pixels.shape[:2])))
    font = ImageFont.load_default(height)
    line = max(1, height // 7)
    for index in reversed(range(len(found))):
        box = found.boxes[index].tolist()
        colour = CLASS_COLOURS[(int(found.labels[index]) - 1) % len(CLASS_COLOURS)]
        # A white rim keeps dark colours visible on dark ground.
        draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline="white", width=line + 2)
        draw.rectangle(box, outline=colour, width=line)
        _write_label(draw, box, f"{found.names[index]} {float(found.scores[index]):.2f}", colour, font)
    return np.asarray(picture)


def _write_label(
    draw: ImageDraw.ImageDraw,
    box: list[float],
    text: str,
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write a text on a plate above a box, or inside it where there is no room above."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    margin = 2
    height = bottom - top + 2 * margin
    corner = (box[0], box[1] - height if box[1] >= height else box[1])
    draw.rectangle((corner[0], corner[1], corner[0] + right - left + 2 * margin, corner[1] + height), fill=colour)
    place = (corner[0] + margin - left, corner[1] + margin - top)
    draw.text(place, text, fill="black" if _is_light(colour) else "white", font=font)


def _is_light(colour: str) -> bool:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue > 150
