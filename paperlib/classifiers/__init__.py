"""Classifiers of scenes by name, for block-wise partner learning (BPL)."""

from __future__ import annotations

from pathlib import Path

import torch

from paperlib.classifiers.base import Classifier
from paperlib.classifiers.resnet import ResNet50, ResNet101
from paperlib.classifiers.vgg import Vgg16
from paperlib.classifiers.yolov4_tiny_trunk import YoloV4TinyTrunk
from paperlib.detectors import COCO_CLASSES, build_detector, load_darknet_weights
from paperlib.detectors.family import Family
from paperlib.structure import Structure, describe_structure

CLASSIFIERS: dict[str, type[Classifier]] = {
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "vgg16-bn": Vgg16,
    "yolov4-tiny-trunk": YoloV4TinyTrunk,
}
FAMILY = Family("classifier", "paperlib-classifier-1", CLASSIFIERS, {"width": 1.0, "depth": 1.0, "stem_stride": 4})


def build_classifier(
    name: str,
    num_classes: int,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    stem_stride: int = 4,
    structure: Structure | None = None,
) -> Classifier:
    """Build a classifier of scenes with fresh weights.

    Args:
        name: a key of `CLASSIFIERS`.
        num_classes: C; the classes are 0..C-1.
        width: multiplies the channel counts.
        depth: multiplies the numbers of repeated blocks, for the ResNets.
        stem_stride: by how much a ResNet reduces the image before its first stage: 4, or 2 for small images.
        structure: shapes of a pruned classifier (`paperlib.structure.describe_structure`), applied after building.

    Raises:
        ValueError: an unknown name, no or too many classes, a width or depth out of range, a depth or stem_stride for
            a classifier that has none, or a structure of another classifier.
    """
    options = {"width": width, "depth": depth, "stem_stride": stem_stride}
    return FAMILY.build(name, num_classes, structure=structure, **options)


def transfer_coco_weights(classifier: Classifier, path: str | Path) -> None:
    """Load the official COCO weights of YOLOv4-tiny into its trunk; the linear layer keeps its initial values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the classifier is another one, was pruned, or has a width that the file does not fit. It is
            unchanged then.
    """
    arguments = classifier.build_arguments
    if not isinstance(classifier, YoloV4TinyTrunk):
        raise ValueError(f"{path}: there are no COCO weights for {arguments['name']}; only for yolov4-tiny-trunk")
    if describe_structure(classifier) != describe_structure(FAMILY.build_without_weights(**arguments)):
        raise ValueError("official weights fit an unpruned classifier only; this one has been pruned")
    source = build_detector("yolov4-tiny", COCO_CLASSES, width=arguments["width"])
    load_darknet_weights(source, path)
    loaded = source.state_dict()
    with torch.no_grad():
        for name, value in classifier.state_dict().items():
            if name in loaded:
                value.copy_(loaded[name])


__all__ = ["CLASSIFIERS", "FAMILY", "Classifier", "build_classifier", "transfer_coco_weights"]
