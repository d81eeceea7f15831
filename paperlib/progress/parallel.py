"""Several jobs at a time, each in a process of its own, their progress shown as one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from paperlib.progress import report as progress
from paperlib.progress.processes import die_with_parent

SECONDS_BETWEEN_LOOKS = 1.0
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"


def call_all(work: Callable[..., None], jobs: Sequence[tuple[Any, ...]], workers: int) -> None:
    """Call `work(*job)` for every job, `workers` at a time.

    `work` must be importable and its arguments picklable; its result is what it puts into the store. The processes
    die with this one. An exception in one of them is raised here, after the others were stopped.
    """
    with progress.reporting() as (place, in_batch):
        pool = ProcessPoolExecutor(workers, get_context("spawn"), die_with_parent)
        try:
            _watch([pool.submit(_call, work, *job) for job in jobs], place, in_batch)
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _call(work: Callable[..., None], *arguments: Any) -> None:
    gc.freeze()  # what is imported stays, and need not be looked through for garbage after each training
    try:
        work(*arguments)
    finally:
        progress.withdraw()


def _watch(jobs: list[Future], place: Path, in_batch: bool) -> None:
    """Show how far the jobs are until all are done; the first exception ends the watch at once."""
    with tqdm(total=1.0, desc=f"{len(jobs)} jobs", leave=False, disable=in_batch, bar_format=BAR) as bar:
        running: set[Future] = set(jobs)
        while running:
            done = len(jobs) - len(running)
            progress.report(f"job {done + 1} of {len(jobs)}", done, len(jobs))
            finished, running = wait(running, SECONDS_BETWEEN_LOOKS, FIRST_EXCEPTION)
            for job in finished:
                job.result()
            if not in_batch and (said := progress.read(place)):
                bar.set_postfix_str(said["detail"], refresh=False)
                bar.update(max(said["fraction"] - bar.n, 0.0))
