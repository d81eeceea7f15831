"""Networks run on data sets and judged: detections in the images' own pixels, merged over tiles; classes of scenes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, overload

from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from paperlib.data.corruptions import CORRUPTIONS, corrupt_dataset
from paperlib.data.interface import ImageSet
from paperlib.data.overlap import group_images
from paperlib.data.records import Dataset, Letterboxed
from paperlib.data.scenes import SceneDataset
from paperlib.data.slices import SliceGroup, all_images, shape_slices, slices_of
from paperlib.data.tiles import Tiles, cut_into_tiles, merge_detections
from paperlib.evaluation.bootstrap import match_detections, resample_matches
from paperlib.evaluation.forward import evaluation_mode, run_on_squares
from paperlib.evaluation.metrics import Metrics, compute_metrics, compute_slice_metrics, require_boxes
from paperlib.evaluation.scenes import SceneMetrics, evaluate_scenes
from paperlib.progress import group
from paperlib.progress.report import track_items

Detections = list[dict[str, Tensor]]


@overload
def evaluate(
    detector: nn.Module, dataset: Dataset, *, image_size: int | None = None, confidence: float | None = None,
    batch_size: int = 16, full_images: bool = False, slices: bool | Collection[SliceGroup] = False, whole: bool = False,
    keep: Path | str | None = None,
) -> Metrics: ...  # fmt: skip
@overload
def evaluate(
    detector: nn.Module, dataset: SceneDataset, *, image_size: int | None = None, batch_size: int = 16
) -> SceneMetrics: ...
@overload
def evaluate(
    detector: nn.Module, dataset: ImageSet, *, image_size: int | None = None, batch_size: int = 16
) -> Metrics | SceneMetrics: ...
def evaluate(
    detector: nn.Module,
    dataset: Any,
    *,
    image_size: int | None = None,
    confidence: float | None = None,
    batch_size: int = 16,
    full_images: bool = False,
    slices: bool | Collection[SliceGroup] = False,
    whole: bool = False,
    keep: Path | str | None = None,
) -> Metrics | SceneMetrics:
    """Evaluate a detector on a data set, in the images' own pixels (Section 4.2), or a classifier on scenes.

    Args:
        detector: in any mode; it is used in evaluation mode and its modes are restored.
        dataset: images and ground truth; a `SceneDataset` is evaluated by `paperlib.evaluation.scenes`, for which
            `image_size` and `batch_size` are the only options.
        image_size: side of the square to which images are letterboxed, in pixels; by default the longest side in the
            data set, rounded up to a multiple of 32.
        confidence: score threshold of precision and recall; by default the one that maximises the mean F1 on
            this same data set, so pass the confidence chosen on the validation set when you evaluate a test set.
        batch_size: number of images in a batch.
        full_images: evaluate tiles on the full images that they were cut from; detections are merged across the seams.
        slices: also evaluate the slices of `paperlib.data.slices` and, by detecting again for each, the corruptions of
            `paperlib.data.corruptions` (Section 4.5.4, Fig. 13), or only those of some groups; full images are
            evaluated without corruptions.
        whole: the former name of `full_images`.
        keep: a file for the detections and whether each finds an object, from which every metric can be computed again
            on any choice of the images (see `paperlib.evaluation.bootstrap`); the metrics' `resampled` is made from it.

    Raises:
        ValueError: the data set has no box, is not made of tiles although `full_images` is set, or a group of slices
            is unknown; scenes are given an option that they do not have.
    """
    if isinstance(dataset, SceneDataset):
        if confidence is not None or full_images or whole or slices:
            raise ValueError(f"{dataset.name}: scenes have no boxes: confidence, full_images and slices do not apply")
        if keep:
            raise ValueError(f"{dataset.name}: scenes have no detections to keep in {keep}")
        return evaluate_scenes(detector, dataset, image_size=image_size, batch_size=batch_size)
    require_boxes(dataset)
    groups = _slice_groups(slices)
    longest = 32 * -(-dataset.longest_side() // 32)
    return _evaluate_detector(
        detector, dataset, image_size or longest, confidence, batch_size, full_images or whole, groups, keep
    )


def _evaluate_detector(
    detector: nn.Module, dataset: Dataset, image_size: int, confidence: float | None, batch_size: int,
    full_images: bool, groups: Collection[SliceGroup], keep: Path | str | None,
) -> Metrics:  # fmt: skip
    if full_images:
        tiles = _require_tiles(dataset)
        found = detect_full_images(detector, tiles, image_size=image_size, batch_size=batch_size)
        dataset = tiles.full_images
    else:
        found = detect(detector, dataset, image_size=image_size, batch_size=batch_size)
    metrics = compute_metrics(found, dataset, confidence)
    if keep:
        matched = match_detections(found, dataset, group_images(dataset), metrics.confidence)
        matched.save(Path(keep))
        metrics = replace(metrics, resampled=resample_matches(matched, metrics.confidence))
    chosen = slices_of(dataset) if "edge cases" in groups else []
    chosen += shape_slices(dataset) if "shapes" in groups else []
    parts = {part.name: compute_slice_metrics(found, dataset, part, metrics.confidence) for part in chosen}
    for corruption in CORRUPTIONS if "corruptions" in groups and not full_images else ():
        corrupted = corrupt_dataset(dataset, corruption)
        found = detect(detector, corrupted, image_size=image_size, batch_size=batch_size)
        parts[corruption] = compute_slice_metrics(found, corrupted, all_images(corrupted), metrics.confidence)
    # A slice without any object has no metrics.
    return replace(metrics, slices={name: part for name, part in parts.items() if part})


def detect(detector: nn.Module, dataset: Dataset, *, image_size: int, batch_size: int = 16) -> Detections:
    """Detect objects in every image.

    Returns:
        Per image, on the CPU: `boxes` `[N, 4]` xyxy in the original image's pixels and inside it, `labels` `[N]` in
        1..C and `scores` `[N]`.
    """
    letterboxed = dataset.letterboxed(image_size)
    with evaluation_mode(detector):
        batches = group.map_items(partial(_detect_on_squares, detector), letterboxed.images.split(batch_size))
    return _scale_to_images([image for batch in batches for image in batch], letterboxed)


def detect_full_images(detector: nn.Module, tiles: Dataset, *, image_size: int, batch_size: int = 16) -> Detections:
    """Detect objects in every image that was cut into tiles, merged as by `paperlib.data.tiles.merge_detections`.

    All tiles are used, also those that training leaves out. Only one batch of them is in memory at a time.

    Raises:
        ValueError: the data set is not made of tiles.
    """
    tiles = _require_tiles(tiles)
    full_images, tiling = tiles.full_images, tiles.tiling
    merged = []
    with evaluation_mode(detector):
        # A generator, so that batches of tiles may cross the borders of images.
        tile_detections = (
            found
            for batch in cut_into_tiles(full_images, tiling).letterboxed_batches(image_size, batch_size)
            for found in _scale_to_images(run_on_squares(detector, batch.images), batch)
        )
        for record in track_items(full_images.records, f"detecting in {tiles.name}"):
            parts = tiling.tile_bounds(*record.size())
            merged.append(merge_detections([next(tile_detections) for _ in parts], parts, record.size()))
    return merged


def _slice_groups(slices: bool | Collection[SliceGroup]) -> Collection[SliceGroup]:
    known = get_args(SliceGroup)
    groups = (known if slices else ()) if isinstance(slices, bool) else slices
    if unknown := [group for group in groups if group not in known]:
        raise ValueError(f"unknown group of slices {unknown[0]!r}; known: {', '.join(known)}")
    return groups


def _require_tiles(dataset: Dataset) -> Tiles:
    if not isinstance(dataset, Tiles):
        raise ValueError(f"{dataset.name}: its images were not cut into tiles, so there is nothing to merge")
    return dataset


def _detect_on_squares(detector: nn.Module, images: Tensor) -> Detections:
    return [{name: values.cpu() for name, values in image.items()} for image in run_on_squares(detector, images)]


def _scale_to_images(found: Sequence[dict[str, Tensor]], letterboxed: Letterboxed) -> Detections:
    """Convert detections from the pixels of the squares to the pixels of the images."""
    return [
        {
            "boxes": clip_boxes_to_image(image["boxes"].cpu() / scale, size),
            "labels": image["labels"].cpu(),
            "scores": image["scores"].cpu(),
        }
        for image, scale, size in zip(found, letterboxed.scales.tolist(), letterboxed.sizes, strict=True)
    ]
