"""Stores in which an experiment runs without training, to learn which steps it asks for and in which order."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from paperlib import files
from paperlib.store.contents import RECORD, write_imported
from paperlib.store.imported import read_network_metadata
from paperlib.store.store import FinishedSteps, Step, Store, UnfinishedError, canonical_json
from paperlib.workbench.steps import DETECTOR

TRAININGS = ("train", "distil")
"""Kinds of the steps that train."""


class UnplannableError(Exception):
    """What an experiment does next depends on a measured accuracy."""


class PlanningStore(Store):
    """A store in which nothing is computed: every model has the shape of the new network that its line began with.

    Attributes:
        trainings: the training steps by digest.
        folders: the folders of all steps by digest; they hold no weights.
    """

    def __init__(self, root: Path, networks: Path) -> None:
        super().__init__(root)
        self.networks = networks
        self.trainings: dict[str, Step] = {}
        self.folders: dict[str, Path] = {}

    def get_step(self, step: Step, make: Callable[[Path], None], code: object = None) -> Path:
        """Return the folder of a step that was not made. Raises `UnplannableError` for an evaluation."""
        if step.kind == "evaluate":
            raise UnplannableError
        folder = self.root / step.name
        if step.digest not in self.folders:
            files.write_json_atomically(folder / RECORD, {"step": asdict(step)})
            network = self.folders[step.parents[0]] if step.parents else self._build_once(step, make)
            write_imported(folder, "", {DETECTOR: read_network_metadata(network / DETECTOR)})
        self.folders[step.digest] = folder
        if step.kind in TRAININGS:
            self.trainings[step.digest] = step
        return folder

    def _build_once(self, step: Step, make: Callable[[Path], None]) -> Path:
        """Return the folder of a new network; those of other seeds have the same shape."""
        shape = {key: value for key, value in step.settings.items() if key != "seed"}
        folder = self.networks / re.sub(r"\W+", "_", canonical_json(shape))[:200]
        if not (folder / DETECTOR).is_file():
            folder.mkdir(parents=True)
            make(folder)
        return folder


class SearchingStore(PlanningStore):
    """A store that finds the finished steps of another one, and plans the others.

    Attributes:
        found: the folders of the finished steps by digest.
    """

    def __init__(self, root: Path, networks: Path, finished: FinishedSteps) -> None:
        super().__init__(root, networks)
        self.finished = finished
        self.found: dict[str, Path] = {}

    def get_step(self, step: Step, make: Callable[[Path], None], code: object = None) -> Path:
        """Return the folder of a step. Raises `UnplannableError` for an evaluation that is not finished."""
        try:
            finished = self.finished.get_step(step, make)
        except UnfinishedError:
            return super().get_step(step, make, code)
        # Steps look for those that they start from beside them.
        folder = self.folders[step.digest] = self.root / step.name
        if step.digest not in self.found:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(finished)
        self.found[step.digest] = finished
        return folder
