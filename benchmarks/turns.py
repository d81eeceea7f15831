"""Measure how many times faster ONNX files run than the first one, in ONNX Runtime on one thread.

    python benchmarks/turns.py original.onnx student.onnx student.int8.onnx

The files take turns on one image. A time is processor time, which other programs on the machine affect less than the
clock; the table has the least and the median of all turns, and the ratios of both to those of the first file.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from paperlib.deploy.onnx import INPUT, open_onnx_session


def measure(files: list[Path], turns: int) -> pd.DataFrame:
    """Return the milliseconds of each turn `[turns]` by file."""
    sessions = [open_onnx_session(file, 1) for file in files]
    height, width = sessions[0].get_inputs()[0].shape[2:]
    pixels = {INPUT: np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)}
    rows = []
    for _ in range(turns + 1):
        row = []
        for session in sessions:
            started = time.process_time()
            session.run(None, pixels)
            row.append(1e3 * (time.process_time() - started))
        rows.append(row)
    return pd.DataFrame(rows[1:], columns=[file.name for file in files])  # the first turn warms up


def main() -> None:
    """Measure, and print a line per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="ONNX files of one image size")
    parser.add_argument("--turns", type=int, default=60, help="runs of each file (60)")
    options = parser.parse_args()
    times = measure(options.files, options.turns)
    for name in times:
        least, median = times[name].min(), times[name].median()
        first = times.iloc[:, 0]
        print(
            f"{name:32} least {least:7.2f} ms ({first.min() / least:.2f} times faster), "
            f"median {median:7.2f} ms ({first.median() / median:.2f} times faster)"
        )


if __name__ == "__main__":
    main()
