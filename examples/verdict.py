"""Compute the interval of a claim again from the committed `metrics.json` files, with NumPy alone.

The claim is `takd-gain`: SCP + TAKD against SCP in `03_components`. The noise of differences is pooled over all
notebooks of the scale: what remains of each value after the mean of its model and the mean of its run are taken off.
"""

import json
import re
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent.parent / "results" / "laptop"
STUDENT_95 = [6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833]


def read_table(notebook: str, metric: str = "map50") -> dict[str, list[float]]:
    """Return the values of each trained model by name, in the order of the runs."""
    table: dict[str, list[float]] = {}
    for row in sorted(json.loads((RESULTS / notebook / "metrics.json").read_text())["models"], key=lambda r: r["seed"]):
        if metric in row and not re.search(r"(^|[ ,:])pruned( \d+%)?$", row["model"]):
            table.setdefault(row["model"], []).append(row[metric])
    return table


def read_replicates(notebook: str, model: str, metric: str = "map50") -> np.ndarray:
    """Return the metric on images drawn again, `[runs, 100]`; `[0]` of older results, which have none."""
    rows = json.loads((RESULTS / notebook / "metrics.json").read_text())["models"]
    return np.array([row["metrics"].get("resampled", {}).get(metric, 0) for row in rows if row["model"] == model])


# The noise of a difference, in about ten lines.
squares, freedom, seen = 0.0, 0, set()
for path in sorted(RESULTS.glob("0*/metrics.json")):
    table = read_table(path.parent.name)
    runs = max(map(len, table.values()), default=0)
    fresh = [tuple(values) for values in table.values() if len(values) == runs > 1 and tuple(values) not in seen]
    seen.update(fresh)
    if fresh:
        rest = np.array(fresh) - np.mean(fresh, 1, keepdims=True)
        squares += ((rest - rest.mean(0)) ** 2).sum()
        freedom += (len(fresh) - 1) * (runs - 1)
table = read_table("03_components")
change = 100 * (np.array(table["SCP + TAKD"]) - table["SCP"])
drawn = np.atleast_2d(read_replicates("03_components", "SCP + TAKD") - read_replicates("03_components", "SCP"))
folds = json.loads((RESULTS / "03_components" / "provenance.json").read_text())["settings"].get("folds")
rest = 1 / min(len(change), folds) - 1 / len(change) if folds else 1
images = (drawn.std(1, ddof=1) ** 2).mean() if drawn.shape[1] > 1 else 0.0
quantile = STUDENT_95[freedom - 1] if freedom <= 9 else 1.645 + 1.524 / freedom + 1.42 / freedom**2
half_width = 100 * quantile * np.sqrt(2 * squares / freedom / len(change) + images * rest)
print(f"takd-gain: {change.mean():+.2f} ± {half_width:.2f} points, {freedom} degrees of freedom")
