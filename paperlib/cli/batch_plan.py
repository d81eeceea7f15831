"""The jobs that a batch hands to a cluster: those of its notebooks, without what an earlier batch has done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from paperlib import files, paths
from paperlib.cli.executors import Executor, estimate_seconds
from paperlib.experiments.settings import Common
from paperlib.progress.display import NotebookRun

PLAN = "jobs.json"
"""The file in the state folder that the workflow reads."""
FOLDER = "jobs"
"""The folder beside it, with a report, a log and a file `<job>.done` of each."""
READING_SECONDS = 60.0
"""What a notebook takes whose steps are in the store."""


def write_plan(state: Path, settings: Mapping[str, Common], executor: Executor) -> list[NotebookRun]:
    """Plan the jobs of notebooks, write them for the workflow, and return what is to be shown of each.

    What an earlier batch has done stays done, as long as its steps are in the store.

    Raises:
        ValueError, FileNotFoundError: data or weights are missing or do not fit.
    """
    # This import brings torch, which a batch on one machine does not need.
    from paperlib.experiments.jobs import plan_jobs

    jobs, left, done = plan_jobs(settings), [], set()
    for job in jobs:
        if set(job.after) <= done and _is_done(done_file(state, job.name), job.trainings):
            done.add(job.name)
        else:
            done_file(state, job.name).unlink(missing_ok=True)
            left.append(asdict(job) | {"after": [name for name in job.after if name not in done]})
    files.write_json_atomically(state / PLAN, left)
    runs = [NotebookRun(job["name"], state / FOLDER / job["name"], _expect(job, executor)) for job in left]
    return [*runs, *(NotebookRun(name, state / name, READING_SECONDS) for name in settings)]


def done_file(state: Path, name: str) -> Path:
    """Return the path of the file that says that a job is done."""
    return state / FOLDER / f"{name}.done"


def _expect(job: dict, executor: Executor) -> float:
    return READING_SECONDS / 2 + estimate_seconds(job, executor.gpu)


def _is_done(done: Path, trainings: Sequence[str]) -> bool:
    try:
        found = files.read_json(done)
        has_steps = [(paths.store_root() / step).is_dir() for step in found["steps"]]
        return found["trainings"] == list(trainings) and all(has_steps)
    except (OSError, ValueError, KeyError, TypeError):
        return False
