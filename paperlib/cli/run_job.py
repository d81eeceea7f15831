"""Do one planned job of a batch: fill the store with the steps of an experiment, for one case and seed.

    python -m paperlib.cli.run_job PLAN JOB SETTINGS DONE

`PLAN` is the file of the batch's jobs, `SETTINGS` the YAML file of the notebook, and `DONE` the file that is written
when the job is done. The workflow starts every job on a cluster this way.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import cast

from paperlib import files
from paperlib.cli.run_notebook import FAILED, shorten_reason
from paperlib.experiments.jobs import read_plan, run_planned
from paperlib.experiments.parameters import load_profile
from paperlib.experiments.settings import Settings


def run_job(plan: Path, name: str, settings: Path, done: Path) -> None:
    """Do the job of this name and write down which steps it has made.

    Raises:
        Exception: whatever the job raises.
    """
    [job] = [each for each in read_plan(plan) if each.name == name]
    steps = run_planned(job, cast(Settings, load_profile(job.notebook, settings)))
    files.write_json_atomically(done, {"trainings": job.trainings, "steps": steps})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run_job(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:]))
    except Exception as error:
        logging.exception("the job failed")
        sys.exit(f"{FAILED}{shorten_reason(f'{type(error).__name__}: {error}')}")
