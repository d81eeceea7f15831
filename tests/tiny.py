"""Data and detectors that train in seconds: eight images of 64 pixels, a tenth of the usual channels."""

import json
from functools import cache
from multiprocessing import get_context

import numpy as np
import torch
from PIL import Image

from paperlib.classifiers import build_classifier
from paperlib.data import Dataset, Record, SceneDataset, SceneRecord
from paperlib.data.toy.aerial import CLASSES, draw_split
from paperlib.detectors import build_detector, usual_anchors
from paperlib.training.recipe import Recipe

torch.set_num_threads(1)  # sums depend on it
SIDE = 64
SCENE_SIDE = 32
ANCHORS = ((2, 3), (5, 6), (9, 14), (15, 15), (24, 30), (50, 46))
processes = get_context("forkserver")
"""Processes that start at once, because they are forked from one that has imported everything."""
# By its name from the root of the repository, because the process looks for modules there and not among the tests.
processes.set_forkserver_preload(["paperlib.experiments.study", "paperlib.pruning.surgery", "tests.preloaded"])


@cache
def drawn(split, count, side=SIDE):
    """Draw scenes once in a process: a test that changes one has to copy it."""
    return draw_split(split, count=count, side=side)


def dataset(split="train", count=8, side=SIDE):
    records = [Record(f"{index}", *scene) for index, scene in enumerate(drawn(split, count, side))]
    return Dataset(f"tiny/{split}", CLASSES, records)


def scenes(split="train", count=12):
    """Draw images of three classes, each of a colour of its own with some noise."""
    generator = np.random.default_rng([len(split), count])
    noise = generator.integers(0, 100, (count, SCENE_SIDE, SCENE_SIDE, 3), dtype=np.uint8)
    colours = 120 * np.eye(3, dtype=np.uint8)
    records = [SceneRecord(f"{split}-{i}", pixels + colours[i % 3], i % 3) for i, pixels in enumerate(noise)]
    return SceneDataset(f"tiny-scenes/{split}", ("red", "green", "blue"), records)


def classifier(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_classifier("yolov4-tiny-trunk", 3, **{"width": 0.1, **options})


def detector(seed=0, *, width=0.1, anchors=ANCHORS, num_classes=None):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_detector("yolov4-tiny", num_classes or len(CLASSES), width=width, anchors=anchors)


def two_stage(seed=0):
    """Build a detector that draws a random sample of its proposals at every step."""
    anchors = [(w / 2, h / 2) for w, h in usual_anchors("faster-rcnn-resnet101")]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_detector("faster-rcnn-resnet101", len(CLASSES), width=0.05, depth=0.05, anchors=anchors)


def recipe(**changes):
    return Recipe(**{"epochs": 2, "batch_size": 4, "image_size": SIDE, "validate_every": 2, **changes})


def equal(one, other):
    """Return whether two modules hold the same bits."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


QUICK = {
    "yolov3": (0.125, 0.25),
    "yolov3-spp": (0.125, 0.25),
    "yolov4": (0.0625, 0.25),
    "yolov4-tiny": (0.25, 1.0),
    "centernet-resnet50": (0.125, 0.3),
    "faster-rcnn-resnet101": (0.125, 0.1),
}
"""Width and depth at which each detector trains in seconds."""


def quick(name, num_classes, seed=0, side=SIDE):
    """Build one of the six detectors at that width, with anchors for images of `side` pixels."""
    width, depth = QUICK[name]
    anchors = usual_anchors(name)
    options = {"anchors": tuple((w * side / 416, h * side / 416) for w, h in anchors)} if anchors else {}
    options |= {"depth": depth} if depth != 1.0 else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_detector(name, num_classes, width=width, **options)


def of_classes(*splits):
    """Return the same images with only those classes that occur in every split."""
    names = [name for name in splits[0].classes if all(split.box_counts()[name] for split in splits)]
    new = {splits[0].classes.index(name) + 1: label for label, name in enumerate(names, 1)}

    def narrowed(record):
        stay = [place for place, label in enumerate(record.labels.tolist()) if label in new]
        labels = np.array([new[label] for label in record.labels[stay].tolist()], dtype=np.int64)
        return Record(record.name, record.image, record.boxes[stay], labels)

    return [Dataset(split.name, names, [narrowed(record) for record in split.records]) for split in splits]


def of_one_class(data):
    """Return the same images with all boxes of one class."""
    records = [Record(each.name, each.image, each.boxes, np.ones_like(each.labels)) for each in data.records]
    return Dataset(data.name, ["object"], records)


def write_coco(folder, name, data, images="images"):
    """Write a data set: images to `folder/images`, boxes to `folder/<name>.json`."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": label, "name": each} for label, each in enumerate(data.classes, 1)]
    for number, record in enumerate(data.records):
        file = f"{name}-{number}.png"
        Image.fromarray(record.read_pixels()).save(folder / images / file)
        content["images"].append({"id": number, "file_name": file})
        for (left, top, right, bottom), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
            box = {"bbox": [left, top, right - left, bottom - top], "category_id": label, "image_id": number}
            content["annotations"].append({"id": len(content["annotations"]), **box})
    (folder / f"{name}.json").write_text(json.dumps(content))
