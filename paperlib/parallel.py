"""Several seeds at a time, each in a process of its own, their progress shown as one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from paperlib import progress
from paperlib.job import die_with_parent

SECONDS_BETWEEN_LOOKS = 1.0
ELAPSED = "{l_bar}{bar}| {elapsed}<{remaining}"


def over_seeds(work: Callable[..., None], seeds: Sequence[int], workers: int, *arguments: Any) -> None:
    """Call `work(*arguments, seed)` for every seed, `workers` at a time.

    `work` must be importable, its arguments picklable; its result is what it puts into the store. The processes die
    with this one. An exception in one of them is raised here, after the others were stopped.
    """
    folder = Path(tempfile.mkdtemp(prefix="paperlib-"))
    places = [folder / f"{seed}.json" for seed in seeds]
    pool = ProcessPoolExecutor(workers, get_context("spawn"), die_with_parent)
    try:
        jobs = [pool.submit(_call, place, work, *arguments, seed) for place, seed in zip(places, seeds, strict=True)]
        _watch(jobs, places)
        for job in jobs:
            job.result()
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(folder, ignore_errors=True)


def _call(place: Path, work: Callable[..., None], *arguments: Any) -> None:
    os.environ[progress.VARIABLE] = str(place)
    work(*arguments)


def _watch(jobs: list[Future], places: list[Path]) -> None:
    batch = bool(os.environ.get(progress.VARIABLE))
    with tqdm(total=1.0, desc="all seeds", leave=False, disable=batch, bar_format=ELAPSED) as bar:
        while any(not job.done() for job in jobs):
            wait(jobs, SECONDS_BETWEEN_LOOKS, FIRST_EXCEPTION)
            if any(job.done() and job.exception() for job in jobs):
                return
            states = [state for place in places if (state := progress.read(place))]
            steps = " | ".join(f"{state['step']} {state['detail']}".strip() for state in states if state["fraction"] < 1)
            done, of = (sum(state[key] for state in states) for key in ("done", "of"))
            progress.report(steps, done, of * len(places) // max(len(states), 1))
            bar.update(sum(state["fraction"] for state in states) / len(places) - bar.n)
