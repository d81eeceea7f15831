"""Steps that were made on another machine and came without their weights (see `paperlib.store.archive`).

Such a step is finished: its history, its plan and its measurements are here. `imported.json` holds the metadata of each
file of weights that was left out, which describe the structure of the network.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from paperlib.store import contents

_log = logging.getLogger(__name__)


class MissingWeightsError(FileNotFoundError):
    """The weights were asked for of a step that was imported without them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder.name} was imported without its weights; `paperlib store export --weights` where it was made, or "
            f"`paperlib store prune {folder.name}` here, after which it is trained again"
        )


def require_weights(folder: Path) -> None:
    """Check that a finished step has its weights.

    Raises:
        MissingWeightsError: it was imported without them.
    """
    if contents.read_omitted(folder):
        raise MissingWeightsError(folder)


def read_network_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file of weights in the folder of a step, also if the step was imported without it.

    Raises:
        FileNotFoundError: the step has no such file.
        ValueError: the file, or what describes it, is damaged.
    """
    if not path.is_file():
        try:
            return contents.read_omitted(path.parent)[path.name]
        except KeyError:
            raise FileNotFoundError(f"{path}: no such network file") from None
    try:
        with safe_open(path, framework="pt") as content:
            return content.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def complete_step(final: Path, made: Path) -> None:
    """Give an imported step the weights of the same step that was made again here, which one line says.

    If they are not the recorded ones, bit for bit, the step that was made here takes its place.

    Args:
        final: the folder of the imported step.
        made: the folder of the other; it is moved.
    """
    recorded, found = (contents.read_sealed(folder / contents.RECORD) for folder in (final, made))
    omitted = contents.read_omitted(final)
    if changed := [name for name in omitted if found["files"].get(name) != recorded["files"][name]]:
        machine = recorded["machine"]
        fault = f"{final.name}: {changed[0]} as made here differs from that made on {describe_processor(machine)}"
        contents.set_aside(final, fault, "the other steps that were imported with it keep the numbers of that machine")
        os.rename(made, final)
        return
    for name in omitted:
        os.replace(made / name, final / name)
    contents.write_imported(final, contents.read_sealed(final / contents.IMPORTED)["imported"], {})
    contents.remove_path(made)
    _log.warning("%s has its weights again: they are those of its record, bit for bit", final.name)


def describe_processor(machine: dict[str, object]) -> str:
    """Return the GPU or the processor of a machine, as `step.json` describes it."""
    return str(machine.get("gpu") or machine.get("processor") or "an unknown processor")
