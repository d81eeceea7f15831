"""Section 4.2: precision and recall (Eq. 13), average precision and its mean over classes (Eq. 14).

pycocotools is the judge. `map50` is the paper's mAP: the area under each class's precision-recall curve at IoU 0.5,
averaged over the classes, with the curve read at COCO's 101 recall points.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from paperlib import progress
from paperlib.data.records import Dataset, Letterboxed
from paperlib.data.tiles import Tiles, cut, merge

PAPER_IOU = 0.5
IOU_INDEX = 0
"""COCO's thresholds run 0.50, 0.55, …: the paper's is the first."""
COCO_LIMIT = 100


@dataclass(frozen=True)
class Metrics:
    """How well a detector does on a data set; all in [0, 1].

    Attributes:
        map50: mean over classes of the average precision at IoU 0.5 (Eq. 14), the paper's mAP.
        map: COCO's mAP, over IoU 0.50-0.95.
        precision: mean over classes at `confidence` (Eq. 13).
        recall: likewise.
        confidence: the score threshold of precision and recall.
        per_class: average precision at IoU 0.5 of each class that occurs.
    """

    map50: float
    map: float
    precision: float
    recall: float
    confidence: float
    per_class: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def evaluate(
    detector: nn.Module,
    dataset: Dataset,
    *,
    image_size: int | None = None,
    confidence: float | None = None,
    batch_size: int = 16,
    whole: bool = False,
) -> Metrics:
    """Judge a detector on a data set, in the images' own pixels.

    Args:
        detector: in any mode; it is used in evaluation mode and handed back as it was.
        dataset: images and ground truth.
        image_size: side of the square that images are letterboxed to, in pixels; by default the longest side in the
            data set, rounded up to a multiple of 32.
        confidence: score threshold of precision and recall; by default the one that maximises the mean F1 on
            this very data set, so hand a test set the confidence that validation chose.
        batch_size: images at a time.
        whole: judge the tiles of large images by the whole images: detections are merged across the seams.

    Raises:
        ValueError: the data set has no box to find, or is not made of tiles although `whole` images are asked for.
    """
    _check_has_boxes(dataset)
    image_size = image_size or 32 * -(-dataset.longest_side() // 32)
    how = {"image_size": image_size, "batch_size": batch_size}
    if whole:
        return judge(detect_whole(detector, dataset, **how), dataset.whole, confidence)
    return judge(detect(detector, dataset, **how), dataset, confidence)


def detect(detector: nn.Module, dataset: Dataset, *, image_size: int, batch_size: int = 16) -> list[dict[str, Tensor]]:
    """Detections on every image, `boxes` in the original image's pixels and inside it, on the CPU."""
    boxed = dataset.letterboxed(image_size)
    with _evaluating(detector):
        return _back_to_images(
            [found for images in boxed.images.split(batch_size) for found in _answers_to(detector, images)], boxed
        )


def detect_whole(
    detector: nn.Module, tiles: Tiles, *, image_size: int, batch_size: int = 16
) -> list[dict[str, Tensor]]:
    """Detections on every image that was cut into tiles, merged (see `paperlib.data.tiles.merge`).

    Every tile is looked at, also those that training leaves out; a batch of them is in memory at a time.

    Raises:
        ValueError: the data set is not made of tiles.
    """
    if not isinstance(tiles, Tiles):
        raise ValueError(f"{tiles.name}: its images were not cut into tiles, so there is nothing to merge")
    merged = []
    with _evaluating(detector):
        answers = (
            answer
            for boxed in cut(tiles.whole, tiles.tiling).batches(image_size, batch_size)
            for answer in _back_to_images(_answers_to(detector, boxed.images), boxed)
        )
        for record in progress.bar(tiles.whole.records, f"detecting in {tiles.name}"):
            parts = tiles.tiling.parts(*record.size())
            merged.append(merge([next(answers) for _ in parts], parts, record.size()))
    return merged


def _answers_to(detector: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    parameter = next(detector.parameters())
    with torch.inference_mode():
        batch = images.to(parameter.device).to(parameter.dtype) / 255
        return detector(batch.to(memory_format=torch.channels_last))


def _back_to_images(found: Sequence[dict[str, Tensor]], boxed: Letterboxed) -> list[dict[str, Tensor]]:
    """From the squares' pixels to the images' own."""
    return [
        {
            "boxes": clip_boxes_to_image(image["boxes"].cpu() / scale, size),
            "labels": image["labels"].cpu(),
            "scores": image["scores"].cpu(),
        }
        for image, scale, size in zip(found, boxed.scales.tolist(), boxed.sizes, strict=True)
    ]


@contextlib.contextmanager
def _evaluating(detector: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards, whatever happened, each module is in the mode it was in."""
    modes = {module: module.training for module in detector.modules()}
    detector.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def judge(found: Sequence[dict[str, Tensor]], dataset: Dataset, confidence: float | None = None) -> Metrics:
    """Metrics of given detections, one entry per image of the data set (see `evaluate`).

    Raises:
        ValueError: the data set has no box to find, or there are detections for another number of images.
    """
    _check_has_boxes(dataset)
    if len(found) != len(dataset):
        raise ValueError(f"{dataset.name}: detections for {len(found)} images, the data set has {len(dataset)}")
    verdict = _coco_eval(found, dataset)
    # [IoU, recall, class, area, max detections]; -1 marks a class that does not occur.
    precision = verdict.eval["precision"][:, :, :, 0, -1]
    occurs = precision[IOU_INDEX, 0] > -1
    average = precision.mean(1)
    per_class = {name: float(average[IOU_INDEX, k]) for k, name in enumerate(dataset.classes) if occurs[k]}
    curves = [curve for curve in _curves(verdict, len(dataset.classes)) if curve.positives]
    if confidence is None:
        confidence = _best_confidence(curves)
    points = np.array([curve.at(confidence) for curve in curves])
    return Metrics(
        map50=float(average[IOU_INDEX, occurs].mean()),
        map=float(average[:, occurs].mean()),
        precision=float(points[:, 0].mean()),
        recall=float(points[:, 1].mean()),
        confidence=float(confidence),
        per_class=per_class,
    )


def _check_has_boxes(dataset: Dataset) -> None:
    if not any(len(record.labels) for record in dataset.records):
        raise ValueError(f"{dataset.name}: no boxes, nothing to evaluate")


@dataclass(frozen=True)
class _Curve:
    """One class's detections at IoU 0.5, best first."""

    scores: np.ndarray
    hits: np.ndarray
    positives: int

    def at(self, confidence: float) -> tuple[float, float]:
        """Precision and recall (Eq. 13) of the detections that score at least `confidence`."""
        kept = self.hits[self.scores >= confidence]
        return float(kept.mean()) if len(kept) else 0.0, float(kept.sum()) / self.positives


def _best_confidence(curves: Sequence[_Curve]) -> float:
    grid = np.linspace(0.01, 0.99, 99)
    points = np.array([[curve.at(confidence) for curve in curves] for confidence in grid])
    precision, recall = points[..., 0], points[..., 1]
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    return float(grid[f1.mean(1).argmax()])


def _curves(verdict: COCOeval, num_classes: int) -> list[_Curve]:
    curves = []
    for label in range(1, num_classes + 1):
        entries = [entry for entry in verdict.evalImgs if entry and entry["category_id"] == label]
        scores = np.concatenate([np.asarray(entry["dtScores"]) for entry in entries] or [np.zeros(0)])
        hits = np.concatenate([entry["dtMatches"][IOU_INDEX] > 0 for entry in entries] or [np.zeros(0, bool)])
        positives = sum(len(entry["gtIds"]) for entry in entries)
        curves.append(_Curve(scores, hits, positives))
    return curves


def _coco_eval(found: Sequence[dict[str, Tensor]], dataset: Dataset) -> COCOeval:
    truth, answer = COCO(), COCO()
    images = [{"id": index} for index in range(len(dataset))]
    categories = [{"id": label, "name": name} for label, name in enumerate(dataset.classes, 1)]
    for coco, entries in ((truth, _truth(dataset)), (answer, _answers(found))):
        coco.dataset = {"images": images, "categories": categories, "annotations": entries}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        answer.createIndex()
        verdict = COCOeval(truth, answer, "bbox")
        verdict.params.maxDets = [_most_detections(found, dataset)]
        verdict.params.areaRng, verdict.params.areaRngLbl = verdict.params.areaRng[:1], ["all"]
        verdict.evaluate()
        verdict.accumulate()
    return verdict


def _most_detections(found: Sequence[dict[str, Tensor]], dataset: Dataset) -> int:
    """COCO's limit of 100 detections per image and class, but for images with more objects than that."""
    crowd = max(len(record.labels) for record in dataset.records)
    return COCO_LIMIT if crowd <= COCO_LIMIT else max(COCO_LIMIT, *(len(image["labels"]) for image in found))


def _truth(dataset: Dataset) -> list[dict[str, Any]]:
    annotations = [
        _annotation(index, box, label)
        for index, record in enumerate(dataset.records)
        for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True)
    ]
    return _numbered(annotations)


def _answers(found: Sequence[dict[str, Tensor]]) -> list[dict[str, Any]]:
    annotations = [
        {**_annotation(index, box, label), "score": score}
        for index, image in enumerate(found)
        for box, label, score in zip(*(image[key].tolist() for key in ("boxes", "labels", "scores")), strict=True)
    ]
    return _numbered(annotations)


def _annotation(image: int, box: Sequence[float], label: int) -> dict[str, Any]:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    form = {"bbox": [left, top, width, height], "area": width * height, "iscrowd": 0}
    return {"image_id": image, "category_id": label, **form}


def _numbered(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # COCOeval takes a match with id 0 for no match.
    return [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)]
