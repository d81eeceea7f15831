"""The finished steps that notebooks ask for, found without training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from paperlib.experiments.case import Case
from paperlib.experiments.jobs import EXPERIMENTS, experiments_of
from paperlib.experiments.planning import SearchingStore, UnplannableError
from paperlib.experiments.settings import Common, Settings
from paperlib.experiments.study import Study
from paperlib.store.imported import MissingWeightsError
from paperlib.store.inspect import MEASUREMENTS, StoredStep, find_steps
from paperlib.store.staleness import find_step_changes
from paperlib.store.store import FinishedSteps


def find_finished(store: Path, settings: Mapping[str, Common]) -> list[StoredStep]:
    """Return the finished steps that notebooks with these settings ask for, and all measurements of their models.

    Args:
        store: the folder of the steps.
        settings: those of the notebooks, by name; notebooks that train nothing ask for no steps.

    Raises:
        ValueError, FileNotFoundError: data or weights are missing or do not fit.
    """
    threads = torch.get_num_threads()
    asked: set[str] = set()
    try:
        with tempfile.TemporaryDirectory(prefix="paperlib-search-") as folder:
            for notebook, chosen in settings.items():
                if notebook in EXPERIMENTS and isinstance(chosen, Settings):
                    torch.set_num_threads(chosen.threads)
                    for case in Study(notebook, chosen).cases.values():
                        case.require_inputs()
                        for seed in chosen.seeds:
                            asked |= {path.name for path in _search(store, notebook, case, seed, Path(folder))}
    finally:
        torch.set_num_threads(threads)
    steps = find_steps(store)
    keys = {name[-16:] for name in asked}
    measured = [each for each in steps if each.kind in MEASUREMENTS and keys & {*each.parents}]
    measured = [each for each in measured if each.folder.name in asked or not find_step_changes(store, each)]
    return [each for each in steps if each.folder.name in asked or each in measured]


def find_current(store: Path) -> list[StoredStep]:
    """Return all finished steps that the code and the libraries as they are now would make again."""
    current = {step.key: step for step in find_steps(store) if not find_step_changes(store, step)}
    # A step is asked for by the digests of those that it starts from, so they must be current, too.
    while stale := [key for key, step in current.items() if not current.keys() >= {*step.parents}]:
        for key in stale:
            del current[key]
    return list(current.values())


def _search(store: Path, notebook: str, case: Case, seed: int, folder: Path) -> Iterator[Path]:
    """Yield the folders of the finished steps of one seed."""
    for part in experiments_of(notebook, case, seed):
        with tempfile.TemporaryDirectory(dir=folder) as root:
            searching = SearchingStore(Path(root), folder / "networks", FinishedSteps(store))
            # What follows cannot be known before it is measured, or takes weights that are not here.
            with suppress(UnplannableError, MissingWeightsError):
                part(case.make_workbench(seed, searching), case.settings)
            yield from searching.found.values()
