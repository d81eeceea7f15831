"""Child processes: one command under a lock, or a pool of jobs; none outlives the process that started it.

    python -m paperlib.progress.processes STATE LOG COMMAND…

`STATE.lock` is held until the command ends, however it ends; `STATE.json` is where it reports its progress, and `LOG`
gets a line for each of its steps. The workflow starts every notebook this way: killed children of a killed batch would
otherwise go on writing.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import connection, forkserver, get_context, parent_process
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from paperlib.progress import report

PR_SET_PDEATHSIG = 1
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
SECONDS_BETWEEN_LOOKS = 1.0
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"


def die_with_parent() -> None:
    """Have the kernel kill this process, exec or not, when its parent ends (Linux; elsewhere do nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_memory() -> None:
    """Have this process keep the memory that it frees, instead of asking the kernel for it again (glibc).

    Large tensors otherwise go back to the kernel after each use, and their pages are made and zeroed again in every
    step of a training. No number depends on it. The process stays as large as it once was.
    """
    if platform.libc_ver()[0] == "glibc":
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_MAX, 0)
        allocator.mallopt(M_TRIM_THRESHOLD, -1)


def begin_worker(environment: Mapping[str, str]) -> None:
    """Prepare a process of the pool: it dies with its parent, keeps its memory, and has the caller's environment."""
    # The kernel's help reaches those that were forked from the helper only if that ends, which waits for them.
    threading.Thread(target=_end_with_caller, daemon=True).start()
    die_with_parent()
    keep_memory()
    os.environ.clear()
    os.environ.update(environment)


def _end_with_caller() -> None:
    """Kill this process when the one that asked for it has ended."""
    if caller := parent_process():
        connection.wait([caller.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


def _worker_context(work: Callable[..., None]) -> BaseContext:
    """Return how workers are started: forked from one process that has imported what they need.

    That process is started once and ends with this one. A process that was forked after a look for a GPU cannot use
    it, and imports may look; so where there is one, every worker imports for itself.
    """
    import torch  # whoever has work for several processes has imported it

    if torch.cuda.is_available():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    # Started before the caller sets variables for its workers: later processes inherit the environment of this one.
    forkserver.ensure_running()
    return context


def hold_lock(lock: Path) -> int | None:
    """Lock `lock` until this process ends and return its descriptor; None if another process holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_held(lock: Path) -> bool:
    """Return whether a process holds `lock`. A lock that does not exist is not held."""
    if not lock.exists():
        return False
    descriptor = hold_lock(lock)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def run_jobs(work: Callable[..., None], jobs: Sequence[tuple[Any, ...]], epochs: Sequence[float], workers: int) -> None:
    """Call `work(*job)` for every job, `workers` at a time, each in a process of its own.

    `work` must be importable and its arguments picklable; its result is what it puts into the store. The processes
    die with this one.

    Args:
        work: the function to call.
        jobs: its arguments, one tuple per call.
        epochs: how much work each job is expected to be, for the progress display.
        workers: how many processes there are.

    Raises:
        Exception: the first one that a job raised, after the other jobs were stopped.
    """
    context = _worker_context(work)
    with report.report_file() as (path, is_shown):
        pool = ProcessPoolExecutor(workers, context, begin_worker, (dict(os.environ),))
        try:
            futures = [pool.submit(_run_job, work, *pair) for pair in zip(jobs, epochs, strict=True)]
            _watch_jobs(dict(zip(futures, epochs, strict=True)), path, is_shown)
        except BaseException:
            # The executor has no public way to stop a job that runs.
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _run_job(work: Callable[..., None], job: tuple[Any, ...], epochs: float) -> float:
    """Do one job in a worker and return how many of its epochs were found finished."""
    gc.freeze()  # imported objects stay, so the garbage collector need not visit them after each training
    report.plan_work(epochs)
    try:
        work(*job)
    finally:
        found = report.withdraw_report()
    return min(found, epochs)


def _watch_jobs(jobs: dict[Future[float], float], path: Path, is_shown: bool) -> None:
    """Show how far the jobs are until all are done; the first exception ends the watch at once."""
    from tqdm.auto import tqdm

    report.plan_work(sum(jobs.values()))
    report.begin_step(f"{len(jobs)} jobs")
    with tqdm(total=1.0, desc=f"{len(jobs)} jobs", leave=False, disable=is_shown, bar_format=BAR) as bar:
        running = set(jobs)
        while running:
            finished, running = wait(running, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            for job in finished:
                report.end_step(jobs[job], found=job.result())
                report.begin_step(f"{len(jobs) - len(running)} of {len(jobs)} jobs done")
            if (now := report.read_report(path)) and now.total:
                bar.set_postfix_str(now.detail, refresh=False)
                bar.update(max(now.done / now.total - bar.n, 0.0))


def main(state: str, log: str, *command: str) -> None:
    """Become `command`, holding the lock. Exits with a message if the lock is held."""
    die_with_parent()
    lock = hold_lock(Path(f"{state}.lock"))
    if lock is None:
        sys.exit(f"{state}.lock is held: this notebook is being run by another process")
    os.set_inheritable(lock, True)
    os.environ[report.VARIABLE] = os.path.abspath(f"{state}.json")
    os.environ[report.LOG_VARIABLE] = os.path.abspath(log)
    report.begin_step("starting")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
