"""How far a measured value may lie from the true one: noise of training, pooled over all runs of a scale, and images.

Each notebook's values of a metric are a table with a row for each model and a column for each run. What remains after
the mean of its row is taken off is the noise of one value. What remains after the mean of its column is taken off, too,
is the noise of differences within a run. Both are pooled over all models and notebooks, so that they rest on many more
degrees of freedom than the runs of one claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np

STUDENT_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
"""95 % quantiles of Student's t for 1 to 9 degrees of freedom."""
NORMAL_95 = 1.644854
Table = Mapping[str, Mapping[int, float]]
"""By model and seed, the values of a metric in one notebook."""


@dataclass(frozen=True)
class Noise:
    """Noise of a metric from run to run, or of its logarithm.

    Attributes:
        variance: of one value, or of the difference of two models in a run.
        freedom: degrees of freedom of this estimate.
    """

    variance: float
    freedom: int


@dataclass(frozen=True)
class ImageNoise:
    """What the choice of the test images adds.

    Attributes:
        variance: of the value on one test split, by the bootstrap; 0 if it is not known, or nothing depends on images.
        folds: number of folds through which the runs go; None if all runs have the same test split.
    """

    variance: float = 0.0
    folds: int | None = None


def pool_noise(tables: Iterable[Table], *, paired: bool, relative: bool) -> Noise | None:
    """Estimate the noise of a metric from all notebooks of a scale; None if no model has two runs.

    Args:
        tables: the values, one table for each notebook. A model that occurs again with equal values counts once.
        paired: the noise of the difference of two models in a run; else that of one value.
        relative: take the logarithm of the values first, for ratios.
    """
    squares, count, freedom = 0.0, 0, 0
    seen: set[tuple[tuple[int, float], ...]] = set()
    for table in tables:
        values = _complete_rows(table, seen)
        if values is None or (relative and (values <= 0).any()):
            continue
        rest = np.log(values) if relative else values
        rest = rest - rest.mean(1, keepdims=True)
        models, runs = rest.shape
        if paired:
            rest = rest - rest.mean(0)
        squares += float((rest**2).sum())
        count += (models - paired) * (runs - 1)
        # Models of one run share its luck, so that single values have no more degrees of freedom than runs.
        freedom += (models - 1) * (runs - 1) if paired else runs - 1
    # The difference of two values has twice the variance of one.
    return Noise((1 + paired) * squares / count, freedom) if count else None


def _complete_rows(table: Table, seen: set[tuple[tuple[int, float], ...]]) -> np.ndarray | None:
    """Return `[models, runs]` of the models that have all runs and were not seen before; None without two runs."""
    seeds = sorted(set[int]().union(*(values.keys() for values in table.values())))
    rows = []
    for values in table.values():
        if len(values) == len(seeds) > 1 and (key := tuple(sorted(values.items()))) not in seen:
            seen.add(key)
            rows.append([values[seed] for seed in seeds])
    return np.array(rows) if rows else None


def interval_half_width(noise: Noise, runs: int, images: ImageNoise) -> float:
    """Return half the width of the 90 % interval of a mean over runs.

    The variance of the mean is that of one run divided by the number of runs, and that of the images divided by the
    number of test splits. If runs go through folds, the first contains the images once for each run already.
    """
    splits = min(runs, images.folds) if images.folds else 1
    contained = 1 / runs if images.folds else 0
    return student_95(noise.freedom) * sqrt(noise.variance / runs + images.variance * (1 / splits - contained))


def student_95(freedom: int) -> float:
    """Return the 95 % quantile of Student's t: from the table, or by an expansion that is exact to 0.001 beyond it."""
    if freedom <= len(STUDENT_95):
        return STUDENT_95[freedom - 1]
    z = NORMAL_95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
