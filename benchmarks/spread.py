"""Medians with their quartiles, as the benchmarks print them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def show_quartiles(values: Iterable[float], digits: int = 2) -> str:
    """Return the median and, in parentheses, the quartiles as text."""
    low, middle, high = np.quantile(list(values), [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
