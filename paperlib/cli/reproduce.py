"""`paperlib reproduce`: check everything, let Snakemake run what is not up to date, and name the results.

`paperlib.cli.staleness` decides what is out of date, and Snakemake in which order it runs. This module adds what a
person expects besides: nothing starts before every profile is valid; a live line shows how far the notebooks are; and
of a run that was killed no process survives that could still write results. Snakemake's own lock of the folder outlives
a kill, so it is switched off and replaced by one that does not.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import psutil

from paperlib import paths
from paperlib.cli.batch_plan import PLAN, done_file, write_plan
from paperlib.cli.executors import Executor, ExecutorName, choose_executor
from paperlib.cli.run_notebook import FAILED, find_failure, shorten_reason
from paperlib.cli.staleness import NO_RESULTS, find_outdated
from paperlib.experiments.parameters import load_profile
from paperlib.experiments.settings import Common, Settings
from paperlib.extras import needs_extra
from paperlib.progress import group
from paperlib.progress.display import SECONDS_BETWEEN_LOOKS, NotebookRun, ProgressLine, format_duration, summarise_runs
from paperlib.progress.processes import die_with_parent, hold_lock
from paperlib.progress.slots import VARIABLE, describe_slots
from paperlib.store.results import SCRATCH

MARK = "PAPERLIB_BATCH"
"""The variable by which the processes of a batch are found; it holds the batch's state folder."""
SHOWN_REASONS = 3
"""So many reasons why a notebook is out of date are told, the others are counted."""
NOT_A_SCALE = (SCRATCH, "reported")
"""Folders in `results/` that belong to no profile."""
ERROR = re.compile(r"^(\w*(Error|Exception)\b.*)", re.MULTILINE)
MESSAGE = re.compile(r"^ *message: (?!None$)(.+)$", re.MULTILINE)
"""How Snakemake says why a job on a cluster failed."""
COST = re.compile(r"^# Cost:.*?(\d[\d.]*) *(s|min|hours?|h)\b", re.MULTILINE)
SECONDS_OF = {"s": 1, "min": 60, "h": 3600, "hour": 3600, "hours": 3600}
EXPECTED_IF_UNKNOWN = 300.0
LISTED = {".svg", ".png", ".html", ".csv", ".md", ".json", ".ipynb"}
"""Suffixes of the files that are results."""


@dataclass(frozen=True)
class Batch:
    """The places of a batch, and where its jobs run."""

    profile: str
    executor: Executor
    root: Path = field(default_factory=paths.repository_root)
    source: Path = field(default_factory=paths.source_root)
    results: Path = field(default_factory=paths.results_root)

    @property
    def state(self) -> Path:
        """Return the folder of locks, progress and Snakemake's log, which are used while the batch runs."""
        return self.results / ".batch" / self.profile

    @property
    def log(self) -> Path:
        """Return the file that gets what Snakemake prints."""
        return self.state / "snakemake.log"

    @property
    def shown(self) -> Path:
        """Return the folder of results as a person would write it."""
        return relative_path(self.results / self.profile, Path.cwd())

    def settings_file(self, notebook: str) -> Path:
        """Return the path of a notebook's profile."""
        return self.source / "notebooks" / "profiles" / self.profile / f"{notebook}.yaml"

    def done_file(self, name: str) -> Path:
        """Return the path of the file that tells Snakemake that a notebook or a job of this batch is done."""
        return done_file(self.state, name) if "." in name else self.state / f"{name}.done"

    def result_path(self, notebook: str, file: str) -> Path:
        """Return the path of a file among a notebook's results."""
        return self.results / self.profile / notebook / file


def reproduce(
    names: Sequence[str], profile: str, *, cores: int | None = None, force: bool = False,
    executor: ExecutorName = "local", jobs: int | None = None, gpu: bool | None = None,
) -> int:  # fmt: skip
    """Bring the results of the notebooks `names` (default: all) at scale `profile` up to date.

    Args:
        names: the notebooks.
        profile: the scale.
        cores: of this machine, that the batch may use; default: all.
        force: whether notebooks that are up to date run again.
        executor: where jobs run. On a cluster each experiment is a job of its own for each case and seed.
        jobs: how many run at a time.
        gpu: whether jobs on a cluster that train ask for a GPU; default: if it has some.

    Returns:
        The exit status: 0 all is up to date, 1 a notebook failed, 130 interrupted.

    Raises:
        ValueError, FileNotFoundError: before anything is started: an unknown notebook or profile, a profile that does
            not fit its notebook, missing or damaged data or weights, or another process that reproduces the same
            results.
        MissingExtraError: what runs notebooks, or hands jobs to a cluster, is not installed.
    """
    group.refuse_several_processes("a batch", "start it once: --jobs and --executor say how much runs at a time")
    require_batch_packages()
    batch = Batch(profile, choose_executor(executor, jobs, cores or _available_cores(), gpu))
    settings = load_settings(batch, names)
    with hold_results(batch):
        outdated = find_outdated(batch.source, batch.results / profile, settings)
        if force:
            outdated = {name: outdated.get(name, []) for name in settings}
        if not outdated:
            print(f"Nothing to do: {len(settings)} of {len(settings)} notebooks are up to date in {batch.shown}.")
            return 0
        chosen = {name: settings[name] for name in outdated}
        check_inputs(chosen)
        runs = _prepare_runs(batch, chosen)
        try:
            return run_notebooks(batch, list(settings), runs, outdated)
        except KeyboardInterrupt:
            stop_leftovers(batch)
            print("\nInterrupted. The same command continues where this stopped.", flush=True)
            return 130


def require_batch_packages() -> None:
    """Check that what runs notebooks is installed, without importing it, because that takes seconds.

    Raises:
        MissingExtraError: a package is not installed.
    """
    with needs_extra("batch"):
        for name in ("snakemake", "papermill", "ipykernel"):
            metadata.distribution(name)


def load_settings(batch: Batch, names: Sequence[str]) -> dict[str, Common]:
    """Return the settings of the notebooks to reproduce, by name.

    Raises:
        ValueError: an unknown notebook or profile, or a profile that does not fit its notebook.
    """
    folder = batch.source / "notebooks"
    notebooks = sorted(path.stem for path in folder.glob("*.ipynb"))
    if unknown := [name for name in names if name not in notebooks]:
        raise ValueError(f"no notebook {', '.join(unknown)}; there are {', '.join(notebooks) or 'none'}")
    profiles = sorted(path.name for path in folder.glob("profiles/*/") if path.name not in NOT_A_SCALE)
    if batch.profile not in profiles:
        raise ValueError(f"no profile {batch.profile}; there are {', '.join(profiles) or 'none'}")
    chosen = list(dict.fromkeys(names)) or [name for name in notebooks if batch.settings_file(name).is_file()]
    if not chosen:
        raise ValueError(f"no notebook has a profile in {folder / 'profiles' / batch.profile}")
    return {name: load_profile(name, batch.settings_file(name)) for name in chosen}


def check_inputs(settings: dict[str, Common]) -> None:
    """Read the data and the weights that the notebooks need.

    Raises:
        ValueError, FileNotFoundError: the first fault that is found.
    """
    checked = {("toy-aerial", None), ("toy-scenes", None)}  # drawn by the notebooks themselves
    for name, chosen in settings.items():
        if isinstance(chosen, Settings) and chosen.inputs - checked:
            # This import brings torch, and most batches read no files.
            from paperlib.experiments.study import Study

            Study(name, chosen).check_inputs()
            checked |= chosen.inputs


@contextmanager
def hold_results(batch: Batch) -> Iterator[None]:
    """Make sure that no other process, running or left over, writes these results while the block runs.

    Raises:
        ValueError: another batch writes them.
    """
    lock = hold_lock(batch.state / "batch.lock")
    if lock is None:
        raise ValueError(f"{batch.shown} is being reproduced by another process; wait for it or stop it")
    try:
        if cancelled := stop_leftovers(batch):
            print(f"Cancelled {cancelled} jobs that an earlier run had left in the queue.", flush=True)
        yield
    finally:
        os.close(lock)


def stop_leftovers(batch: Batch) -> int:
    """End every process, and every job on a cluster, that a batch for these results started and that is not done.

    Returns:
        The number of jobs.
    """
    leftovers = [process for process in psutil.process_iter() if _read_mark(process) == str(batch.state)]
    for process in leftovers:
        process.kill()
    psutil.wait_procs(leftovers, timeout=10)
    return batch.executor.cancel_jobs(batch.state)


def run_notebooks(
    batch: Batch, names: Sequence[str], runs: Sequence[NotebookRun], reasons: Mapping[str, Sequence[str]]
) -> int:
    """Run the notebooks of `runs`, which are some of `names`, and print where the results of all `names` are.

    Args:
        batch: the batch.
        names: the notebooks that were asked for.
        runs: those that are to run.
        reasons: why each of them is out of date; printed first.

    Returns:
        The exit status: 0, or 1 if a notebook failed.

    Raises:
        KeyboardInterrupt: on Ctrl-C and SIGTERM.
    """
    expected = format_duration(summarise_runs(runs, batch.executor.jobs).total)
    outdated = list(reasons)
    queued = "" if batch.executor.is_local else f" in {len(runs)} jobs by {batch.executor.name}"
    print(f"Reproducing {', '.join(outdated)} in {batch.shown}{queued}: about {expected}.", flush=True)
    for name, found in reasons.items():
        if found and found != [NO_RESULTS]:
            more = f"; and {len(found) - SHOWN_REASONS} more" if len(found) > SHOWN_REASONS else ""
            print(f"  {name} again: {shorten_reason('; '.join(found[:SHOWN_REASONS]))}{more}", flush=True)
    began = time.monotonic()
    psutil.cpu_percent()  # the next call returns the share since this one
    status = _run_snakemake(batch, _snakemake(batch, outdated), runs)
    missing = [run for run in runs if not batch.done_file(run.name).is_file()]
    # What has not begun waits for what has failed; if nothing has, the fault is that of the first.
    failed = [run for run in missing if run.report] or missing[:1]
    # Every notebook is done, so the fault is Snakemake's own.
    if status and not failed:
        print(f"FAILED: {_last_reason(batch.log)}\n  see {relative_path(batch.log, Path.cwd())}")
    for run in failed:
        print(describe_failure(batch, run))
    if waiting := [run.name for run in missing if run not in failed]:
        reason = "they wait for jobs" if waiting[1:] else "it waits for the notebooks"
        print(f"NOT RUN {shorten_reason(', '.join(waiting))}: {reason} that failed")
    took = format_duration(time.monotonic() - began)
    share = psutil.cpu_percent()
    busy = f"; the processors of this machine were busy {share:.0f} % of the time" if batch.executor.is_local else ""
    done = len(outdated) - sum(run.name in reasons for run in missing)
    print(f"{done} of {len(outdated)} notebooks done in {took}{busy}. Look in {batch.shown}:")
    for name in names:
        files = sorted(path.name for path in batch.result_path(name, "").glob("*") if path.suffix in LISTED)
        print(f"  {name}/  {'  '.join(files)}")
    return 1 if status or failed else 0


def describe_failure(batch: Batch, run: NotebookRun) -> str:
    """Return what went wrong in a notebook or a job: its error, or else the last line of the log."""
    has_started = run.report is not None
    executed = batch.result_path(run.name, f"{run.name}.ipynb")
    own = run.state.with_name(f"{run.name}.log") if "." in run.name else batch.result_path(run.name, "papermill.log")
    log = own if has_started else batch.log
    failure = find_failure(executed) if has_started else None
    if failure is not None:
        cell, _, reason = failure.partition(": ")
        return f"FAILED {run.name}, {cell}: {reason}\n  see {relative_path(executed, Path.cwd())}"
    return f"FAILED {run.name}: {_last_reason(log)}\n  see {relative_path(log, Path.cwd())}"


def expected_seconds(profile: Path) -> float:
    """Return how long a notebook should take, by the comment `# Cost: about 4 min …` in its profile."""
    cost = COST.search(profile.read_text(encoding="utf-8"))
    return float(cost[1]) * SECONDS_OF[cost[2]] if cost else EXPECTED_IF_UNKNOWN


def relative_path(path: Path, folder: Path) -> Path:
    """Return `path` as seen from `folder` if it lies inside, else as it is."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _prepare_runs(batch: Batch, settings: Mapping[str, Common]) -> list[NotebookRun]:
    if batch.executor.is_local:
        runs = [
            NotebookRun(name, batch.state / name, expected_seconds(batch.settings_file(name)), chosen.cores)
            for name, chosen in settings.items()
        ]
    else:
        runs = write_plan(batch.state, settings, batch.executor)
    for run in runs:
        run.remove_traces()
    return runs


def _snakemake(batch: Batch, outdated: Sequence[str]) -> list[str]:
    """Return the command that runs notebooks."""
    workflow, executor = batch.source / "workflow", batch.executor
    chosen = workflow / "profiles" / executor.name
    planned = [] if executor.is_local else [f"plan={batch.state / PLAN}", f"gpu={int(executor.gpu)}"]
    return [
        *(sys.executable, "-m", "snakemake", *executor.snakemake_arguments(batch.state, chosen)),
        *("--snakefile", str(workflow / "Snakefile"), "--directory", str(batch.root)),
        *("--workflow-profile", str(chosen), "--nolock"),
        *("--config", f"profile={batch.profile}", f"outdated={','.join(outdated)}", *planned),
    ]


def _run_snakemake(batch: Batch, command: list[str], runs: Sequence[NotebookRun]) -> int:
    """Run Snakemake to its end, showing the live line, and return its exit status."""
    # SIGTERM then raises KeyboardInterrupt, and the batch ends as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    line = ProgressLine(expected=summarise_runs(runs, batch.executor.jobs).total)
    with open(batch.log, "wb") as log:
        # A session of its own: Ctrl-C reaches this process only, which then stops the others.
        process = subprocess.Popen(
            command, cwd=batch.root, env=_environment(batch), start_new_session=True, preexec_fn=die_with_parent,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        while process.poll() is None:
            for run in runs:
                run.look_again()
            steps = [(run.report.step if run.report else "", run.has_ended) for run in runs]
            line.show_report(summarise_runs(runs, batch.executor.jobs), steps)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        line.clear_line()
        return process.returncode


def _environment(batch: Batch) -> dict[str, str]:
    # Jobs on a cluster have their cores from its queue.
    slots = {VARIABLE: describe_slots(batch.executor.jobs, batch.state)} if batch.executor.is_local else {}
    return {**os.environ, **paths.as_environment(), **batch.executor.environment(), MARK: str(batch.state), **slots}


def _read_mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # it has ended, or belongs to another user
        return None


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _last_reason(log: Path) -> str:
    """Return what a log says of a failure, in one line: what the run of a notebook said last, or else an error."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if lines and lines[-1].startswith(FAILED):
        return lines[-1].removeprefix(FAILED)
    errors = [found[1] for found in MESSAGE.finditer(text)] or [found[1] for found in ERROR.finditer(text)]
    return shorten_reason(errors[-1] if errors else lines[-1] if lines else "no output in its log")
