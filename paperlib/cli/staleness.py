"""Which notebooks of a batch are not up to date, and why. Contents decide; the dates of files are never read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from paperlib import files
from paperlib.experiments.settings import Common
from paperlib.store.code_digest import notebook_digest
from paperlib.store.results import (
    CERTIFICATE,
    METRICS,
    SCOREBOARD,
    digest_read,
    digest_source,
    find_changes,
    find_faults,
)

NO_RESULTS = "it has no results yet"


def find_outdated(root: Path, results: Path, settings: Mapping[str, Common]) -> dict[str, list[str]]:
    """Return which notebooks are not up to date, each with the reasons: what is damaged, or what has changed.

    Args:
        root: the folder that holds `notebooks/`.
        results: the folder of results of the scale.
        settings: the settings of the notebooks in question, by name.

    Raises:
        ValueError: a notebook, or code that it imports, cannot be read.
    """
    outdated = {}
    for name, chosen in settings.items():
        if reasons := _find_reasons(root / "notebooks" / f"{name}.ipynb", results / name, chosen):
            outdated[name] = reasons
    if SCOREBOARD in settings and outdated:
        outdated.setdefault(SCOREBOARD, [f"it reads results that are made again: {', '.join(outdated)}"])
    return outdated


def _find_reasons(notebook: Path, folder: Path, settings: Common) -> list[str]:
    if not (folder / METRICS).is_file() and not (folder / CERTIFICATE).is_file():
        return [NO_RESULTS]
    if faults := find_faults(folder):
        return faults
    certificate = files.read_json(folder / CERTIFICATE)
    if notebook.name not in certificate["files"]:
        return [f"{CERTIFICATE}: has no digest of the executed notebook"]
    read = digest_read(folder, notebook.parent / "claims.yaml")
    return find_changes(certificate, settings.model_dump(), notebook_digest(notebook), digest_source(notebook), read)
