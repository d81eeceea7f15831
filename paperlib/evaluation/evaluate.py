"""Detectors run on data sets: detections in the images' own pixels, merged over tiles, judged as in Section 4.2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from paperlib.data.corruptions import CORRUPTIONS, corrupt_dataset
from paperlib.data.records import Dataset, Letterboxed
from paperlib.data.slices import all_images, slices_of
from paperlib.data.tiles import Tiles, cut_into_tiles, merge_detections
from paperlib.evaluation.metrics import Metrics, compute_metrics, compute_slice_metrics, require_boxes
from paperlib.progress.report import track_items

Detections = list[dict[str, Tensor]]


def evaluate(
    detector: nn.Module,
    dataset: Dataset,
    *,
    image_size: int | None = None,
    confidence: float | None = None,
    batch_size: int = 16,
    whole: bool = False,
    slices: bool = False,
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
        slices: also judge each slice of `paperlib.data.slices` and, by detecting once more for each, the changes of
            `paperlib.data.corruptions` (Section 4.5.4, Fig. 13); whole images are judged by slices alone.

    Raises:
        ValueError: the data set has no box to find, or is not made of tiles although `whole` images are asked for.
    """
    require_boxes(dataset)
    image_size = image_size or 32 * -(-dataset.longest_side() // 32)
    how = {"image_size": image_size, "batch_size": batch_size}
    if whole:
        found, dataset = detect_full_images(detector, dataset, **how), dataset.full_images
    else:
        found = detect(detector, dataset, **how)
    metrics = compute_metrics(found, dataset, confidence)
    if not slices:
        return metrics
    parts = {part.name: compute_slice_metrics(found, dataset, part, metrics.confidence) for part in slices_of(dataset)}
    if not whole:
        for change in CORRUPTIONS:
            view = corrupt_dataset(dataset, change)
            seen = detect(detector, view, **how)
            parts[change] = compute_slice_metrics(seen, view, all_images(view), metrics.confidence)
    return replace(metrics, slices={name: part for name, part in parts.items() if part})


def detect(detector: nn.Module, dataset: Dataset, *, image_size: int, batch_size: int = 16) -> Detections:
    """Detections on every image, `boxes` in the original image's pixels and inside it, on the CPU."""
    boxed = dataset.letterboxed(image_size)
    with _evaluating(detector):
        return _back_to_images(
            [found for images in boxed.images.split(batch_size) for found in _answers_to(detector, images)], boxed
        )


def detect_full_images(detector: nn.Module, tiles: Tiles, *, image_size: int, batch_size: int = 16) -> Detections:
    """Detections on every image that was cut into tiles, merged (see `paperlib.data.tiles.merge_detections`).

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
            for boxed in cut_into_tiles(tiles.full_images, tiles.tiling).letterboxed_batches(image_size, batch_size)
            for answer in _back_to_images(_answers_to(detector, boxed.images), boxed)
        )
        for record in track_items(tiles.full_images.records, f"detecting in {tiles.name}"):
            parts = tiles.tiling.tile_bounds(*record.size())
            merged.append(merge_detections([next(answers) for _ in parts], parts, record.size()))
    return merged


def _answers_to(detector: nn.Module, images: Tensor) -> Detections:
    parameter = next(detector.parameters())
    with torch.inference_mode():
        batch = images.to(parameter.device).to(parameter.dtype) / 255
        return detector(batch.to(memory_format=torch.channels_last))


def _back_to_images(found: Sequence[dict[str, Tensor]], boxed: Letterboxed) -> Detections:
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
