"""The state of a training on disk, without pickle: tensors as safetensors, everything else as JSON.

A state is a folder with one safetensors file per part (detector, optimiser, running mean), copies of the history and
of the best weights, and `state.json`, which holds the plain values and the SHA-256 of every file. Nothing in it is ever
executed, and a state that was cut, emptied or changed in one bit is recognised before any of it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from paperlib import files

FACTS = "state.json"
KEPT_STATES = 2
"""The newest state and the one before it, to which a training falls back if the newest is damaged."""

Tensors = Mapping[str, Tensor]
_log = logging.getLogger(__name__)


class DamagedStateError(ValueError):
    """A state that is not what was written."""


def write_state(
    folder: Path, parts: Mapping[str, Tensors], facts: Mapping[str, Any], copied: Iterable[Path] = ()
) -> None:
    """Write a state as a whole: it appears under its name only once it is complete and on the disk.

    Args:
        folder: where the state goes, such as `state-00005`; an older one of that name is replaced.
        parts: tensors of each part by name; the part's name becomes the name of its file.
        facts: everything else, as JSON values.
        copied: files of which the state keeps a copy under their own names.
    """
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    contents = {path.name: path.read_bytes() for path in copied}
    for part, tensors in parts.items():
        contents[f"{part}.safetensors"] = save({name: _plain_copy(value) for name, value in tensors.items()})
    for name, content in contents.items():
        (partial / name).write_bytes(content)
    digests = {name: _digest_of(content) for name, content in contents.items()}
    listing = {"facts": dict(facts), "parts": sorted(parts), "files": digests}
    files.write_json_atomically(partial / FACTS, {**listing, "checksum": _checksum(listing)})
    files.sync_tree(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def read_state(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the parts and the facts of a state, every byte of them checked.

    Raises:
        DamagedStateError: a file is missing, cut or changed; the message names it.
    """
    try:
        listing = files.read_json(folder / FACTS)
        checksum = listing.pop("checksum")
        digests = listing["files"]
        names_of_parts = listing["parts"]
        facts = listing["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedStateError(f"{folder / FACTS} is missing or not readable") from error
    if checksum != _checksum(listing):
        raise DamagedStateError(f"{folder / FACTS} was changed after it was written")
    parts = {}
    for name, digest in digests.items():
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        if _digest_of(content) != digest:
            raise DamagedStateError(f"{path} is missing or was changed after it was written")
        if path.stem in names_of_parts:
            parts[path.stem] = load(content)
    return parts, facts


def read_newest_state(parent: Path) -> tuple[Path, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Return folder, parts and facts of the newest whole state below `parent`; damaged ones are set aside and told."""
    for folder in sorted(parent.glob("state-*[0-9]"), reverse=True):
        try:
            parts, facts = read_state(folder)
        except DamagedStateError as error:
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            _log.warning("%s; set aside as %s, the training continues from before it", error, aside.name)
        else:
            return folder, parts, facts
    return None


def drop_old_states(parent: Path) -> None:
    """Delete all states below `parent` except the newest `KEPT_STATES`."""
    for folder in sorted(parent.glob("state-*[0-9]"))[:-KEPT_STATES]:
        shutil.rmtree(folder)


def optimiser_tensors(optimiser: Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimiser's state, named `<index of the parameter>.<name>`, such as `12.exp_avg`."""
    by_parameter = optimiser.state_dict()["state"]
    return {f"{index}.{name}": value for index, state in by_parameter.items() for name, value in state.items()}


def optimiser_groups(optimiser: Optimizer) -> list[dict[str, Any]]:
    """Return the plain values of an optimiser's parameter groups, such as learning rate and betas."""
    return optimiser.state_dict()["param_groups"]


def load_optimiser(optimiser: Optimizer, tensors: Tensors, groups: list[dict[str, Any]]) -> None:
    """Put the state of `optimiser_tensors` and `optimiser_groups` into an optimiser over the same parameters."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # The fused step walks through memory, so moments must lie there as the parameter does (channels last).
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _plain_copy(value: Tensor) -> Tensor:
    """Return a copy of its own on the CPU: safetensors refuses tensors that share memory."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _checksum(listing: Mapping[str, Any]) -> str:
    return _digest_of(json.dumps(listing, sort_keys=True).encode())
