"""Networks of both tasks, detectors and classifiers of scenes, by name and on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from paperlib import classifiers, detectors
from paperlib.classifiers.base import Classifier
from paperlib.detectors.base import Detector
from paperlib.detectors.family import Family
from paperlib.detectors.files import read_network, write_network

Network = Detector | Classifier


def family_of(name: str) -> Family[Any]:
    """Return the detectors or the classifiers, whichever has a network of this name.

    Raises:
        ValueError: neither has.
    """
    for family in (detectors.FAMILY, classifiers.FAMILY):
        if name in family.kinds:
            return family
    known = ", ".join(detectors.DETECTORS), ", ".join(classifiers.CLASSIFIERS)
    raise ValueError(f"unknown detector {name!r}; known: {known[0]}; classifiers of scenes: {known[1]}")


def transfer_coco_weights(network: Network, path: str | Path) -> None:
    """Load official COCO weights into a detector, or into a classifier that has the trunk of one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit the network, which is unchanged then.
    """
    if isinstance(network, Classifier):
        classifiers.transfer_coco_weights(network, path)
    else:
        detectors.transfer_coco_weights(network, path)


def save_network(network: nn.Module, path: str | Path, *, use: Mapping[str, str] | None = None) -> None:
    """Write the weights and the structure of a detector or classifier to one `.safetensors` file, atomically.

    Args:
        network: made by `build_detector`, `build_classifier` or `load_network`.
        path: the file; equal networks give equal files.
        use: texts that say how the network is used (see `paperlib.deploy.description`).

    Raises:
        ValueError: the network has partners, or was made otherwise, so that no file could describe it; nothing is
            written.
    """
    family = classifiers.FAMILY if isinstance(network, Classifier) else detectors.FAMILY
    write_network(network, path, family, use=use)


def load_network(path: str | Path) -> Any:
    """Load a detector or a classifier, pruned shapes included, in evaluation mode; nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no network of this package, or was edited after it was written.
    """
    return read_network(path, detectors.FAMILY, classifiers.FAMILY)
