"""The smallest things that train: eight images of 64 pixels, a detector of a tenth of the usual channels."""

from multiprocessing import get_context

import torch

from paperlib.data import Dataset, Record
from paperlib.data.toy_aerial import CLASSES, draw_split
from paperlib.detectors import build_detector, usual_anchors
from paperlib.recipe import Recipe

torch.set_num_threads(1)  # sums depend on it
SIDE = 64
ANCHORS = ((2, 3), (5, 6), (9, 14), (15, 15), (24, 30), (50, 46))
processes = get_context("forkserver")
"""Processes that start in an instant, because they are forked from one that has everything imported."""
processes.set_forkserver_preload(["paperlib.study", "paperlib.pruning.surgery"])


def dataset(split="train", count=8):
    scenes = draw_split(split, count=count, side=SIDE)
    return Dataset(f"tiny/{split}", CLASSES, [Record(f"{index}", *scene) for index, scene in enumerate(scenes)])


def detector(seed=0, *, width=0.1, anchors=ANCHORS):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_detector("yolov4-tiny", len(CLASSES), width=width, anchors=anchors)


def two_stage(seed=0):
    """A detector that draws a random sample of its proposals at every step."""
    anchors = [(w / 2, h / 2) for w, h in usual_anchors("faster-rcnn-resnet101")]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_detector("faster-rcnn-resnet101", len(CLASSES), width=0.05, depth=0.05, anchors=anchors)


def recipe(**changes):
    return Recipe(**{"epochs": 2, "batch_size": 4, "image_size": SIDE, "validate_every": 2, **changes})


def equal(one, other):
    """Whether two modules hold the same bits."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
