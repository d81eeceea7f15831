"""`paperlib reproduce`: check everything, let Snakemake run what is not up to date, say where to look.

Three things that a person expects and that Snakemake alone does not give: nothing starts before every profile
is valid; a live line says how far the notebooks are; and of a run that was killed nothing survives that could
still write results. Snakemake is told not to lock the folder because its lock outlives a kill: ours does not.
"""

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from paperlib import paths
from paperlib.experiments.parameters import load_profile
from paperlib.progress import display, processes

MARK = "PAPERLIB_BATCH"
SCOREBOARD = "99_claims"
"""The notebook that reads what the others found, and so runs after them."""
EXPECTED_IF_UNKNOWN = 300.0
SECONDS_BETWEEN_LOOKS = 0.5
COST = re.compile(r"^# Cost:.*?(\d[\d.]*) *(s|min|hours?|h)\b", re.MULTILINE)
SECONDS_OF = {"s": 1, "min": 60, "h": 3600, "hour": 3600, "hours": 3600}
NOT_RUN_BY_NOTEBOOKS = {
    "__main__.py", "batch.py", "cli.py", "job.py", "watch.py",
    "delivery.py", "live.py", "readme.py", "report.py", "report_figures.py",
    "data_cli.py", "registry.py", "fetch.py", "unpack.py", "check.py",
}  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """What the batch needs to know of a profile: the seconds it should take and the cores it keeps busy."""

    expected: float
    cores: int


def reproduce(names: list[str], profile: str, *, cores: int | None = None, force: bool = False) -> int:
    """Bring the results of the notebooks `names` (default: all) at scale `profile` up to date.

    Returns the exit status: 0 all is up to date, 1 a notebook failed, 130 interrupted. Raises ValueError or
    FileNotFoundError, before anything is started, for an unknown notebook or profile, for a profile that does
    not fit its notebook, for data or weights that are missing or damaged, and if the same results are being
    reproduced by another process.
    """
    batch = _Batch(paths.repository_root(), paths.results_root(), profile, cores or _available_cores())
    names = batch.check(names)
    with batch.alone():
        pending = names if force else batch.pending(names)
        if not pending:
            print(f"Nothing to do: {len(names)} of {len(names)} notebooks are up to date in {batch.shown}.")
            return 0
        batch.check_inputs(pending)
        return batch.run(names, pending, force)


def read_profile(notebook: str, path: Path) -> Profile:
    """Read what the comment `# Cost: about 4 min …` promises, and how many threads run at a time.

    Raises ValueError or FileNotFoundError for a profile that does not fit the notebook.
    """
    settings = load_profile(notebook, path)
    cost = COST.search(path.read_text(encoding="utf-8"))
    expected = float(cost[1]) * SECONDS_OF[cost[2]] if cost else EXPECTED_IF_UNKNOWN
    return Profile(expected, settings.cores)


def source_digest() -> str:
    """Return a digest of the package's source, less what only starts notebooks."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(package.rglob("*.py")):
        if path.name not in NOT_RUN_BY_NOTEBOOKS:
            digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def results_digest(folder: Path, besides: set[str]) -> str:
    """Return a digest of the `metrics.json` of all notebooks in `folder`, but those named."""
    found = [path for path in sorted(folder.glob("*/metrics.json")) if path.parent.name not in besides]
    return hashlib.sha256(b"".join(path.parent.name.encode() + path.read_bytes() for path in found)).hexdigest()


def relative(path: Path, folder: Path) -> Path:
    """Return `path` as seen from `folder` if it lies inside, else as it is."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path


@dataclass(frozen=True)
class _Batch:
    root: Path
    results: Path
    profile: str
    cores: int

    @property
    def folder(self) -> Path:
        """Locks, progress and Snakemake's log: of use while the batch runs."""
        return self.results / ".batch" / self.profile

    @property
    def shown(self) -> Path:
        return relative(self.results / self.profile, Path.cwd())

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **paths.as_environment(), MARK: str(self.folder)}

    def settings(self, name: str) -> Path:
        return self.root / "notebooks" / "profiles" / self.profile / f"{name}.yaml"

    def check(self, names: list[str]) -> list[str]:
        """Return the notebooks to reproduce, each known and with a valid profile."""
        notebooks = sorted(path.stem for path in (self.root / "notebooks").glob("*.ipynb"))
        if unknown := [name for name in names if name not in notebooks]:
            raise ValueError(f"no notebook {', '.join(unknown)}; there are {', '.join(notebooks) or 'none'}")
        profiles = sorted(path.name for path in (self.root / "notebooks" / "profiles").glob("*/"))
        if self.profile not in profiles:
            raise ValueError(f"no profile {self.profile}; there are {', '.join(profiles) or 'none'}")
        chosen = list(dict.fromkeys(names)) or [name for name in notebooks if self.settings(name).is_file()]
        if not chosen:
            raise ValueError(f"no notebook has a profile in {self.settings('x').parent}")
        for name in chosen:
            load_profile(name, self.settings(name))
        return chosen

    def check_inputs(self, names: list[str]) -> None:
        """Read the data and the weights that notebooks need; the first fault is raised before anything starts."""
        seen = set()
        for name in names:
            settings = load_profile(name, self.settings(name))
            if unseen := settings.inputs - {("toy-aerial", None)} - seen:
                # Imported only here: it brings torch, and most batches read no files.
                from paperlib.experiments.study import Study

                Study(name, settings).check_inputs()
                seen |= unseen

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Make sure that nobody else, dead or alive, writes these results."""
        lock = processes.hold_lock(self.folder / "batch.lock")
        if lock is None:
            raise ValueError(f"{self.shown} is being reproduced by another process; wait for it or stop it")
        try:
            self.stop_leftovers()
            yield
        finally:
            os.close(lock)

    def stop_leftovers(self) -> None:
        """Kill every process that a batch for these results started and that still runs."""
        mark = str(self.folder)
        leftovers = [process for process in psutil.process_iter() if _variable(process, MARK) == mark]
        for process in leftovers:
            process.kill()
        psutil.wait_procs(leftovers, timeout=10)

    def snakemake(self, names: list[str], *options: str, asked: list[str]) -> list[str]:
        """Return the command that makes the results of `names`, which are of those that were `asked` for."""
        workflow = self.root / "workflow"
        folder = relative(self.results, self.root) / self.profile
        targets = [str(folder / name / "metrics.json") for name in names]
        command = [sys.executable, "-m", "snakemake", *targets, "--cores", str(self.cores), "--nolock"]
        where = ["--snakefile", str(workflow / "Snakefile"), "--directory", str(self.root)]
        profile = ["--workflow-profile", str(workflow / "profiles" / "local")]
        return [*command, *where, *profile, "--config", f"notebooks={','.join(asked)}", *options]

    def pending(self, names: list[str]) -> list[str]:
        """Return which of `names` are not up to date."""
        command = self.snakemake(names, "--summary", asked=names)
        summary = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)
        if summary.returncode:
            raise ValueError(f"Snakemake: {summary.stderr.strip().splitlines()[-1]}")
        rows = csv.DictReader(summary.stdout.splitlines(), delimiter="\t")
        outdated = {Path(row["output_file"]).parent.name for row in rows if row["plan"] != "no update"}
        return [name for name in names if name in outdated]

    def run(self, names: list[str], pending: list[str], force: bool) -> int:
        runs = [self.watched(name) for name in pending]
        expected = display.format_duration(display.summarise_runs(runs, self.cores).total)
        print(f"Reproducing {', '.join(pending)} at the {self.profile} scale: about {expected}.", flush=True)
        began = time.monotonic()
        try:
            command = self.snakemake(pending, *["--force"] * force, asked=names)
            status = self.wait(command, display.BatchLine(runs, self.cores))
        except KeyboardInterrupt:
            self.stop_leftovers()
            print("\nInterrupted. The same command continues where this stopped.", flush=True)
            return 130
        failed = [run for run in runs if not self.folder_of(run.name).joinpath("metrics.json").is_file()]
        if status and not failed:
            print(f"FAILED: see {relative(self.folder / 'snakemake.log', Path.cwd())}")
        for run in failed:
            print(self.failure(run, len(failed) - 1))
        took, done = display.format_duration(time.monotonic() - began), len(pending) - len(failed)
        print(f"{done} of {len(pending)} notebooks done in {took}. Look in {self.shown}:")
        for name in names:
            print(self.listing(name))
        return 1 if status or failed else 0

    def watched(self, name: str) -> display.NotebookRun:
        profile = read_profile(name, self.settings(name))
        run = display.NotebookRun(name, self.folder / name, profile.expected, profile.cores)
        run.remove_traces()
        return run

    def wait(self, command: list[str], line: display.BatchLine) -> int:
        """Run Snakemake to its end, showing the live line. Raises KeyboardInterrupt on Ctrl-C and SIGTERM."""
        with open(self.folder / "snakemake.log", "wb") as log, _terminated_is_interrupted():
            # A session of its own: Ctrl-C reaches this process only, which then stops the others in order.
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=processes.die_with_parent,
            )
            while process.poll() is None:
                line.update_line()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            line.screen.clear_line()
            return process.returncode

    def folder_of(self, name: str) -> Path:
        return self.results / self.profile / name

    def failure(self, run: display.NotebookRun, others: int) -> str:
        """Say what went wrong in a notebook: its error, else the last line of the log that should tell."""
        if run.name == SCOREBOARD and run.started is None and others:
            return f"NOT RUN {run.name}: it waits for the notebooks that failed"
        executed, log = self.folder_of(run.name) / f"{run.name}.ipynb", self.folder / "snakemake.log"
        if run.started is not None:
            log = self.folder_of(run.name) / "papermill.log"
        error = _error_in(executed) if run.started is not None else None
        where = relative(executed if error else log, Path.cwd())
        return f"FAILED {run.name}: {error or _last_line(log)}\n  see {where}"

    def listing(self, name: str) -> str:
        """Name the figures, tables and the executed notebook in a results folder."""
        suffixes = {".svg", ".png", ".html", ".csv", ".md", ".json", ".ipynb"}
        files = sorted(path.name for path in self.folder_of(name).glob("*") if path.suffix in suffixes)
        return f"  {name}/  {'  '.join(files)}"


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except (psutil.Error, OSError):
        return None


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _error_in(executed: Path) -> str | None:
    if not executed.is_file():
        return None
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    errors = [out for cell in cells for out in cell.get("outputs", []) if out["output_type"] == "error"]
    return " ".join(f"{errors[0]['ename']}: {errors[0]['evalue']}".split()) if errors else None


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "ended without a word")
