"""Compare the time of computing average precision with that of pycocotools, on the same drawn detections.

    python benchmarks/judging.py --detections 500000 --rounds 3

Both read the same boxes, build their index of them and compute mAP at IoU 0.5 and 0.5 to 0.95; ours also computes
precision and recall (Eq. 13). They take turns; a time is the median over the rounds, with its quartiles, in seconds of
the processor, and a ratio that of a round. The digits of both are compared. pycocotools is installed by
`pip install -e .[dev]`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Sequence

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from spread import show_quartiles
from torch import Tensor

from paperlib.data.records import Dataset, Record
from paperlib.evaluation.evaluate import compute_metrics
from paperlib.store import provenance

CLASSES = tuple(f"class {number}" for number in range(10))
SIDE = 800
OBJECTS, DETECTIONS = 20, 100
"""In each image."""
Found = Sequence[dict[str, Tensor]]


def draw_case(images: int, detections: int = DETECTIONS, seed: int = 0) -> tuple[Dataset, Found]:
    """Draw images with objects, and detections of which about half lie near an object."""
    draw = np.random.default_rng(seed)
    records, found = [], []
    for number in range(images):
        corner, size = draw.uniform(0, SIDE - 120, (OBJECTS, 2)), draw.uniform(20, 120, (OBJECTS, 2))
        boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
        labels = draw.integers(1, len(CLASSES) + 1, OBJECTS)
        records.append(Record(str(number), np.zeros((SIDE, SIDE, 3), np.uint8), boxes, labels))
        near = draw.integers(0, OBJECTS, detections)
        moved = boxes[near] + draw.normal(0, 8, (detections, 4))
        guessed = np.where(draw.random(detections) < 0.8, labels[near], draw.integers(1, len(CLASSES) + 1, detections))
        # Two decimals, so that scores tie, as those of few detections never would.
        scores = draw.random(detections).round(2)
        found.append(
            {"boxes": torch.from_numpy(moved), "labels": torch.from_numpy(guessed), "scores": torch.from_numpy(scores)}
        )
    return Dataset("drawn", CLASSES, records), found


def judge_by_pycocotools(found: Found, dataset: Dataset) -> np.ndarray:
    """Return the average precision `[IoU, class]` by pycocotools; -1 for a class that does not occur."""
    with contextlib.redirect_stdout(io.StringIO()):
        truths = [{"boxes": record.boxes, "labels": record.labels} for record in dataset.records]
        coco_eval = COCOeval(_index(truths, dataset), _index(found, dataset), "bbox")
        coco_eval.params.maxDets = [100]
        coco_eval.params.areaRng, coco_eval.params.areaRngLbl = [[0, 1e10]], ["all"]
        coco_eval.evaluate()
        coco_eval.accumulate()
    return coco_eval.eval["precision"][:, :, :, 0, 0].mean(1)


def _index(objects: Sequence, dataset: Dataset) -> COCO:
    annotations = []
    for index, image in enumerate(objects):
        for row, (left, top, right, bottom) in enumerate(np.asarray(image["boxes"], np.float64).tolist()):
            entry = {"image_id": index, "category_id": int(image["labels"][row]), "iscrowd": 0, "area": 1.0}
            entry |= {"bbox": [left, top, right - left, bottom - top], "id": len(annotations) + 1}
            if "scores" in image:
                entry["score"] = float(image["scores"][row])
            annotations.append(entry)
    coco = COCO()
    categories = [{"id": label, "name": name} for label, name in enumerate(dataset.classes, 1)]
    images = [{"id": index} for index in range(len(dataset))]
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}  # pyright: ignore
    coco.createIndex()
    return coco


def main() -> None:
    """Time both and compare their digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    dataset, found = draw_case(max(options.detections // DETECTIONS, 1))
    contestants = {"paperlib": compute_metrics, "pycocotools": judge_by_pycocotools}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    results = {}
    for _ in range(options.rounds):
        for name, judge in contestants.items():
            started = time.process_time()
            results[name] = judge(found, dataset)
            seconds[name].append(time.process_time() - started)
    ours, oracle = results["paperlib"], results["pycocotools"]
    print(f"mAP: {ours.map50!r} and {ours.map!r}; pycocotools: {oracle[0].mean()!r} and {oracle.mean()!r}")
    print(f"{provenance.describe_machine()['processor']}, {options.detections} detections, {options.rounds} rounds")
    for name, values in seconds.items():
        print(f"{name}: {show_quartiles(values, 1)} s")
    ratios = [b / a for a, b in zip(seconds["paperlib"], seconds["pycocotools"], strict=True)]
    print(f"{show_quartiles(ratios, 1)} times as fast")


if __name__ == "__main__":
    main()
