"""The results of a scale as claims read them: values by model and seed, their replicates, their pooled noise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from paperlib import files, paths
from paperlib.claims.noise import ImageNoise, Noise, pool_noise
from paperlib.evaluation.bootstrap import paired_error
from paperlib.store.results import CERTIFICATE, METRICS, SCOREBOARD

UNTRAINED = re.compile(r"(^|[ ,:])pruned( \d+%)?$")
"""Names of models that were cut and not trained again: their noise is not that of training."""


class Row(BaseModel):
    """A model's values in one run."""

    # The metrics of a row differ from notebook to notebook.
    model_config = ConfigDict(extra="allow")
    model: str
    seed: int


class _Metrics(BaseModel):
    models: list[Row]
    measured: list[Row] = []


class ScaleResults:
    """All results in `results/<scale>/`, each notebook read once."""

    def __init__(self, scale: str) -> None:
        self.root = paths.results_root() / scale
        self.load_rows = cache(self._load_rows)
        self.noise = cache(self._pool_noise)
        self._settings = cache(self._load_settings)

    def find_values(self, notebook: str, metric: str, model: str) -> dict[int, float]:
        """Return a metric by seed, a path such as `metrics.per_class.ship`.

        Raises:
            LookupError: the notebook has no such model, or no such metric of it.
        """
        mine = [row for row in self.load_rows(notebook) or [] if row.model == model]
        if not mine:
            raise LookupError(f"{notebook} has no model {model}")
        found = {row.seed: value for row in mine if (value := look_up(row.model_extra or {}, metric)) is not None}
        if not found:
            raise LookupError(f"{notebook} has no {metric} of {model}")
        return found

    def find_images(self, notebook: str, metric: str, models: tuple[str, ...], seeds: list[int]) -> ImageNoise:
        """Return what the choice of the test images adds to the value of a model, or of the difference of two."""
        drawn = [self._replicates(notebook, metric, model) for model in models]
        common = [[by_seed[seed] for by_seed in drawn] for seed in seeds if all(seed in by_seed for by_seed in drawn)]
        variance = fmean(paired_error(*_pair(values)) ** 2 for values in common) if common else 0.0
        return ImageNoise(variance, self._folds(notebook, models[0]))

    def _replicates(self, notebook: str, metric: str, model: str) -> dict[int, list[float]]:
        """Return by seed the metric on images drawn with replacement; older results have none."""
        found: dict[int, list[float]] = {}
        for row in self.load_rows(notebook) or []:
            # A model may have a second row, of what was measured besides, which has no replicates.
            resampled = (row.model_extra or {}).get("metrics", {}).get("resampled", {})
            if row.model == model and metric in resampled:
                found[row.seed] = resampled[metric]
        return found

    def _folds(self, notebook: str, model: str) -> int | None:
        """Return the number of folds of a model's case."""
        settings = self._settings(notebook)
        cases: Mapping[str, Mapping[str, Any]] = settings.get("cases") or {}
        named = [case for case in cases if case and model.startswith(f"{case} ")]
        changes = cases[max(named, key=len)] if named else {}
        return changes.get("folds", settings.get("folds"))

    def _pool_noise(self, metric: str, paired: bool, relative: bool) -> Noise | None:
        notebooks = sorted(path.parent.name for path in self.root.glob(f"*/{METRICS}"))
        tables = [self._tabulate(notebook, metric) for notebook in notebooks if notebook != SCOREBOARD]
        return pool_noise(tables, paired=paired, relative=relative)

    def _tabulate(self, notebook: str, metric: str) -> dict[str, dict[int, float]]:
        table: dict[str, dict[int, float]] = {}
        trained = [row for row in self.load_rows(notebook) or [] if not UNTRAINED.search(row.model)]
        for row in trained:
            if (value := look_up(row.model_extra or {}, metric)) is not None:
                table.setdefault(row.model, {})[row.seed] = value
        return table

    def _load_rows(self, notebook: str) -> list[Row] | None:
        """Return all rows of a `metrics.json`; None if the notebook has not run."""
        path = self.root / notebook / METRICS
        if not path.is_file():
            return None
        try:
            found = _Metrics.model_validate(files.read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{path}: {place}: {first['msg']}") from None
        return found.models + found.measured

    def _load_settings(self, notebook: str) -> dict[str, Any]:
        path: Path = self.root / notebook / CERTIFICATE
        return (files.read_json(path).get("settings") if path.is_file() else None) or {}


def look_up(values: Mapping[str, Any], metric: str) -> float | None:
    """Return the number at a dotted path such as `metrics.per_class.ship`, or None."""
    value: Any = values
    for key in metric.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _pair(values: list[list[float]]) -> tuple[list[float], list[float]]:
    """Return two lists of replicates; of one model, itself and zeros."""
    return (values[0], values[1]) if len(values) > 1 else (values[0], [0.0] * len(values[0]))
