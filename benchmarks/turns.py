"""Measure how many times faster ONNX files run than the first one, in ONNX Runtime on one thread.

    python benchmarks/turns.py original.onnx student.onnx student.int8.onnx

The files take turns on one image. A time is processor time, which other programs on the machine affect less than the
clock. The table has the least and the median of all turns; the ratio to the first file is that of a turn, its median
with the quartiles.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from spread import show_quartiles

from paperlib.deploy.onnx import INPUT, open_onnx_session
from paperlib.store import provenance


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
    runtime = f"onnxruntime {provenance.package_version('onnxruntime')}"
    print(f"{provenance.describe_machine()['processor']}, 1 thread, {runtime}, {options.turns} turns")
    for name in times:
        ratio = show_quartiles(times.iloc[:, 0] / times[name])
        least, median = times[name].min(), times[name].median()
        print(f"{name:32} least {least:7.2f} ms, median {median:7.2f} ms, {ratio} times as fast as the first")


if __name__ == "__main__":
    main()
