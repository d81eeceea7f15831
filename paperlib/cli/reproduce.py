"""`paperlib reproduce`: check everything, let Snakemake run what is not up to date, and name the results.

Snakemake decides what is out of date and in which order it runs. This module adds what a person expects besides:
nothing starts before every profile is valid; a live line shows how far the notebooks are; and of a run that was killed
no process survives that could still write results. Snakemake's own lock of the folder outlives a kill, so it is
switched off and replaced by one that does not.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from paperlib import paths
from paperlib.experiments.parameters import load_profile
from paperlib.experiments.settings import Common, Settings
from paperlib.progress.display import SECONDS_BETWEEN_LOOKS, NotebookRun, ProgressLine, format_duration, summarise_runs
from paperlib.progress.processes import die_with_parent, hold_lock

MARK = "PAPERLIB_BATCH"
"""The variable by which the processes of a batch are found; it holds the batch's state folder."""
SCOREBOARD = "99_claims"
"""The notebook that reads the results of the others, so it runs after them."""
DONE = "metrics.json"
"""The file that a notebook writes last."""
COST = re.compile(r"^# Cost:.*?(\d[\d.]*) *(s|min|hours?|h)\b", re.MULTILINE)
SECONDS_OF = {"s": 1, "min": 60, "h": 3600, "hour": 3600, "hours": 3600}
EXPECTED_IF_UNKNOWN = 300.0
LISTED = {".svg", ".png", ".html", ".csv", ".md", ".json", ".ipynb"}
"""Suffixes of the files that are results."""


@dataclass(frozen=True)
class Batch:
    """The places of a batch, and the cores that it may use."""

    profile: str
    cores: int
    root: Path = field(default_factory=paths.repository_root)
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
        return self.root / "notebooks" / "profiles" / self.profile / f"{notebook}.yaml"

    def result_path(self, notebook: str, file: str) -> Path:
        """Return the path of a file among a notebook's results."""
        return self.results / self.profile / notebook / file


def reproduce(names: Sequence[str], profile: str, *, cores: int | None = None, force: bool = False) -> int:
    """Bring the results of the notebooks `names` (default: all) at scale `profile` up to date.

    Returns:
        The exit status: 0 all is up to date, 1 a notebook failed, 130 interrupted.

    Raises:
        ValueError, FileNotFoundError: before anything is started: an unknown notebook or profile, a profile that does
            not fit its notebook, missing or damaged data or weights, or another process that reproduces the same
            results.
    """
    batch = Batch(profile, cores or _available_cores())
    settings = load_settings(batch, names)
    with hold_results(batch):
        outdated = list(settings) if force else find_outdated(batch, list(settings))
        if not outdated:
            print(f"Nothing to do: {len(settings)} of {len(settings)} notebooks are up to date in {batch.shown}.")
            return 0
        check_inputs({name: settings[name] for name in outdated})
        runs = [_prepare_run(batch, name, settings[name].cores) for name in outdated]
        try:
            return run_notebooks(batch, list(settings), runs, force)
        except KeyboardInterrupt:
            stop_leftovers(batch)
            print("\nInterrupted. The same command continues where this stopped.", flush=True)
            return 130


def load_settings(batch: Batch, names: Sequence[str]) -> dict[str, Common]:
    """Return the settings of the notebooks to reproduce, by name.

    Raises:
        ValueError: an unknown notebook or profile, or a profile that does not fit its notebook.
    """
    folder = batch.root / "notebooks"
    notebooks = sorted(path.stem for path in folder.glob("*.ipynb"))
    if unknown := [name for name in names if name not in notebooks]:
        raise ValueError(f"no notebook {', '.join(unknown)}; there are {', '.join(notebooks) or 'none'}")
    profiles = sorted(path.name for path in folder.glob("profiles/*/"))
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
    checked = {("toy-aerial", None)}  # drawn by the notebooks themselves
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
        stop_leftovers(batch)
        yield
    finally:
        os.close(lock)


def stop_leftovers(batch: Batch) -> None:
    """Kill every process that a batch for these results started and that still runs."""
    leftovers = [process for process in psutil.process_iter() if _read_mark(process) == str(batch.state)]
    for process in leftovers:
        process.kill()
    psutil.wait_procs(leftovers, timeout=10)


def find_outdated(batch: Batch, names: Sequence[str]) -> list[str]:
    """Return which of the notebooks `names` are not up to date.

    Raises:
        ValueError: Snakemake cannot read the workflow.
    """
    command = _snakemake(batch, names, "--summary", requested=names)
    summary = subprocess.run(command, cwd=batch.root, env=_environment(batch), capture_output=True, text=True)
    if summary.returncode:
        raise ValueError(f"Snakemake: {summary.stderr.strip().splitlines()[-1]}")
    rows = csv.DictReader(summary.stdout.splitlines(), delimiter="\t")
    outdated = {Path(row["output_file"]).parent.name for row in rows if row["plan"] != "no update"}
    return [name for name in names if name in outdated]


def run_notebooks(batch: Batch, names: Sequence[str], runs: Sequence[NotebookRun], force: bool) -> int:
    """Run the notebooks of `runs`, which are some of `names`, and print where the results of all `names` are.

    Returns:
        The exit status: 0, or 1 if a notebook failed.

    Raises:
        KeyboardInterrupt: on Ctrl-C and SIGTERM.
    """
    expected = format_duration(summarise_runs(runs, batch.cores).total)
    outdated = [run.name for run in runs]
    print(f"Reproducing {', '.join(outdated)} at the {batch.profile} scale: about {expected}.", flush=True)
    began = time.monotonic()
    status = _run_snakemake(batch, _snakemake(batch, outdated, *["--force"] * force, requested=names), runs)
    failed = [run for run in runs if not batch.result_path(run.name, DONE).is_file()]
    if status and not failed:
        print(f"FAILED: see {relative_path(batch.log, Path.cwd())}")
    for run in failed:
        print(describe_failure(batch, run, others_failed=len(failed) > 1))
    took = format_duration(time.monotonic() - began)
    print(f"{len(runs) - len(failed)} of {len(runs)} notebooks done in {took}. Look in {batch.shown}:")
    for name in names:
        files = sorted(path.name for path in batch.result_path(name, "").glob("*") if path.suffix in LISTED)
        print(f"  {name}/  {'  '.join(files)}")
    return 1 if status or failed else 0


def describe_failure(batch: Batch, run: NotebookRun, *, others_failed: bool) -> str:
    """Return what went wrong in a notebook: its error, or else the last line of the log."""
    has_started = run.report is not None
    if run.name == SCOREBOARD and others_failed and not has_started:
        return f"NOT RUN {run.name}: it waits for the notebooks that failed"
    source = batch.result_path(run.name, f"{run.name}.ipynb")
    error = _find_error(source) if has_started else None
    if error is None:
        source = batch.result_path(run.name, "papermill.log") if has_started else batch.log
        lines = source.read_text(encoding="utf-8", errors="replace").split("\n")
        error = next((line.strip() for line in reversed(lines) if line.strip()), "no output in log")
    return f"FAILED {run.name}: {error}\n  see {relative_path(source, Path.cwd())}"


def expected_seconds(profile: Path) -> float:
    """Return how long a notebook should take, by the comment `# Cost: about 4 min …` in its profile."""
    cost = COST.search(profile.read_text(encoding="utf-8"))
    return float(cost[1]) * SECONDS_OF[cost[2]] if cost else EXPECTED_IF_UNKNOWN


def relative_path(path: Path, folder: Path) -> Path:
    """Return `path` as seen from `folder` if it lies inside, else as it is."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _prepare_run(batch: Batch, name: str, cores: int) -> NotebookRun:
    run = NotebookRun(name, batch.state / name, expected_seconds(batch.settings_file(name)), cores)
    run.remove_traces()
    return run


def _snakemake(batch: Batch, names: Sequence[str], *options: str, requested: Sequence[str]) -> list[str]:
    """Return the command that makes the results of `names`, which are some of those `requested`."""
    workflow = batch.root / "workflow"
    targets = [str(relative_path(batch.result_path(name, DONE), batch.root)) for name in names]
    return [
        *(sys.executable, "-m", "snakemake", *targets),
        *("--cores", str(batch.cores), "--nolock"),
        *("--snakefile", str(workflow / "Snakefile"), "--directory", str(batch.root)),
        *("--workflow-profile", str(workflow / "profiles" / "local")),
        *("--config", f"notebooks={','.join(requested)}", *options),
    ]


def _run_snakemake(batch: Batch, command: list[str], runs: Sequence[NotebookRun]) -> int:
    """Run Snakemake to its end, showing the live line, and return its exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    line = ProgressLine(expected=summarise_runs(runs, batch.cores).total)
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
            line.show_report(summarise_runs(runs, batch.cores), steps)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        line.clear_line()
        return process.returncode


def _environment(batch: Batch) -> dict[str, str]:
    return {**os.environ, **paths.as_environment(), MARK: str(batch.state)}


def _read_mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # it has ended, or belongs to another user
        return None


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _find_error(executed: Path) -> str | None:
    """Return the first error among the outputs of an executed notebook, in one line."""
    if not executed.is_file():
        return None
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return " ".join(f"{output['ename']}: {output['evalue']}".split())
    return None
