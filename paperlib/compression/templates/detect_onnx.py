"""Detect on a picture with an ONNX file of paperlib; needs numpy, onnxruntime and Pillow, not paperlib.

python detect_onnx.py student.int8.onnx picture.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

GREY = 127


def load_square(path: str, side: int) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Return a picture scaled into a square, float32 `[1, 3, side, side]` in [0, 1], the scale, and its size."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    scale = side / max(picture.size)
    size = [max(1, round(length * scale)) for length in picture.size]
    square = np.full((side, side, 3), GREY, np.uint8)
    square[: size[1], : size[0]] = picture.resize(size, Image.Resampling.BILINEAR)
    return square.transpose(2, 0, 1)[None].astype(np.float32) / 255, scale, picture.size


def suppress(boxes: np.ndarray, scores: np.ndarray, limit: float) -> list[int]:
    """Return the indices of the boxes that no better one overlaps by more than `limit`, best first."""
    order, kept = np.argsort(-scores, kind="stable"), []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        sides = np.minimum(boxes[order, 2:], boxes[best, 2:]) - np.maximum(boxes[order, :2], boxes[best, :2])
        shared = sides.clip(0).prod(1)
        order = order[shared <= limit * (areas[order] + areas[best] - shared)]
    return kept


def select(boxes: np.ndarray, scores: np.ndarray, said: dict[str, str]) -> list[tuple[float, int, np.ndarray]]:
    """Return scores, labels and boxes of one image's detections, chosen as the file says."""
    limit, least = json.loads(said["nms_iou"]), json.loads(said.get("score_threshold", "0.005"))
    most = json.loads(said.get("max_detections", "100"))
    found = []
    for label in range(scores.shape[1]):
        rows = np.flatnonzero(scores[:, label] > least)
        rows = rows[suppress(boxes[rows], scores[rows, label], limit)]
        found += [(scores[row, label], label + 1, boxes[row]) for row in rows]
    found.sort(key=lambda each: -each[0])
    return found[:most]


def detect(model: str, path: str) -> list[tuple[str, float, list[float]]]:
    """Return (class, score, box in pixels of the picture) of each object that is found, best first."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    side = json.loads(said["image_size"])[0]
    square, scale, (width, height) = load_square(path, side)
    outputs = session.run(None, {"images": square})
    if len(outputs) == 2:
        found = select(outputs[0][0].clip(0, side), outputs[1][0], said)
    else:  # the file selects its detections itself
        boxes, labels, scores = outputs[:3]
        found = list(zip(scores, labels, boxes, strict=True))
    classes, least = json.loads(said["classes"]), json.loads(said.get("confidence", "0.25"))
    border = [width, height, width, height]
    return [
        (classes[label - 1], float(score), np.clip(box / scale, 0, border).round(1).tolist())
        for score, label, box in found
        if score >= least
    ]


if __name__ == "__main__":
    for name, score, box in detect(*sys.argv[1:3]):
        print(f"{name} {score:.2f} {box}")
