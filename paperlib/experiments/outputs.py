"""The folder that a notebook's figures, tables and detections go to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paperlib import figures, files
from paperlib.evaluation.bootstrap import MatchedDetections
from paperlib.experiments.run import Run
from paperlib.figures import tables
from paperlib.store.results import METRICS


class Outputs:
    """What a notebook writes, under names that claims and the site read.

    Attributes:
        folder: where it is written.
        written: the names of the files so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: set[str] = set()

    def save_figure(self, figure: Figure, name: str) -> Figure:
        """Write `figure_<name>.svg` and `.png` into the results."""
        for suffix in ("svg", "png"):
            with files.replace_file(self._place(f"figure_{name}.{suffix}")) as target:
                figures.write_figure(figure, target)
        return figure

    def save_page(self, page: str, name: str) -> None:
        """Write `figure_<name>.html` into the results: an interactive figure."""
        files.write_text_atomically(self._place(f"figure_{name}.html"), page)

    def save_table(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write `table_<name>.csv`, `.md` and `.tex` into the results."""
        for suffix, text in tables.render_table(table).items():
            files.write_text_atomically(self._place(f"table_{name}.{suffix}"), text)
        return table

    def save_detections(self, runs: Iterable[Run]) -> None:
        """Write the detections of all runs into `detections.npz`, under keys such as `baseline|0|scores`."""
        kept = {f"{run.name}|{run.seed}": run.detections for run in runs if run.detections}
        if kept:
            arrays = {
                f"{name}|{field}": values
                for name, path in kept.items()
                for field, values in asdict(MatchedDetections.load(path)).items()
            }
            with files.replace_file(self._place("detections.npz")) as target, target.open("wb") as file:
                np.savez_compressed(file, **arrays)

    def _place(self, name: str) -> Path:
        """Return the path of a result; from the first one until `finish`, the notebook does not count as done."""
        # Half of the results may be new from here on.
        (self.folder / METRICS).unlink(missing_ok=True)
        self.written.add(name)
        return self.folder / name
