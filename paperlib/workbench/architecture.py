"""The network of a finished step without its weights: all that size, compute and numbers of channels depend on."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from paperlib import classifiers, detectors
from paperlib.detectors.files import checksum
from paperlib.store.imported import read_network_metadata, require_weights

Load = TypeVar("Load", bound=Callable[..., Any])
FAMILIES = {family.file_format: family for family in (detectors.FAMILY, classifiers.FAMILY)}


def load_architecture(path: Path) -> Any:
    """Build the network of a file on the meta device, in evaluation mode; no weights are read.

    Args:
        path: the file in the folder of a finished step, which may have been imported without it.

    Raises:
        FileNotFoundError: the step has no such file.
        ValueError: what describes the structure is damaged, or is not of a network of this package.
    """
    metadata = read_network_metadata(path)
    family = FAMILIES.get(metadata.get("format", ""))
    if family is None or metadata.get("seal") != checksum(metadata):
        raise ValueError(f"{path}: its metadata do not describe a network of this package, or were edited")
    build, structure = (json.loads(metadata[name]) for name in ("build", "structure"))
    return family.build_without_weights(**build, structure=structure).eval()


def name_missing_weights(load: Load) -> Load:
    """Let a method that loads the network of a model say what to do if the step was imported without weights."""

    @wraps(load)
    def load_or_explain(model: Any) -> Any:
        require_weights(model.folder)
        return load(model)

    return cast(Load, load_or_explain)
