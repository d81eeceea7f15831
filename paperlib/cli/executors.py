"""Where the jobs of a batch run: on this machine, in the queue of a SLURM cluster, or on Kubernetes.

This module is also read by the workflow on every node, so it imports nothing that takes long.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from paperlib.cli import kubernetes
from paperlib.cli.errors import last_line
from paperlib.extras import needs_extra
from paperlib.store.store import STEP_DEVICE

ExecutorName = Literal["local", "slurm", "kubernetes"]
COMMANDS = {"slurm": ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "srun"), "kubernetes": ("kubectl",)}
"""What each executor calls."""
PLUGINS = {"slurm": "slurm", "kubernetes": "cluster-generic"}
"""The plug-in of Snakemake by which it hands jobs on. The one for Kubernetes itself allows no shared folder."""
GPU_GMACS = 10_000.0
"""GMACs a second that a GPU is taken to do in training: 20 TFLOP/s, as in `benchmarks/paper.py`."""
CPU_GMACS = 25.0
"""The same for one core: a guess, low enough that jobs are not ended before they are done."""
SAFETY = 3
"""The time limit of a job is so many times what its multiply-accumulates should take."""
LEAST_MINUTES = 30
LEAST_MEGABYTES = 2000
"""For Python, PyTorch and a network."""
CPU_MEGABYTES = 2000
"""For the activations of a megapixel, where a processor trains; a guess, like the other estimates of memory."""
SECONDS_TO_CANCEL = 120


@dataclass(frozen=True)
class Executor:
    """Where jobs run, how many at a time, and whether those that train get a GPU."""

    name: ExecutorName = "local"
    jobs: int = 1
    gpu: bool = False

    @property
    def is_local(self) -> bool:
        """Return whether jobs run on this machine, one for each notebook."""
        return self.name == "local"

    def snakemake_arguments(self, state: Path, profile: Path) -> list[str]:
        """Return what Snakemake is told besides its `profile`, a folder; `state` is the folder of the batch."""
        prefix = job_prefix(state)
        if self.name == "local":
            return ["--cores", str(self.jobs)]
        if self.name == "slurm":
            chosen = ["--slurm-jobname-prefix", prefix, "--slurm-logdir", str(state / "slurm")]
        else:
            call = f"{shlex.quote(sys.executable)} -m paperlib.cli.kubernetes"
            place = shlex.quote(str(profile / "job.yaml"))
            needs = "{threads} {resources.mem_mb} {resources.runtime} {resources.gpu}"
            chosen = ["--cluster-generic-submit-cmd", f"{call} submit {prefix} {place} {needs}"]
            chosen += ["--cluster-generic-status-cmd", f"{call} status"]
        return ["--executor", PLUGINS[self.name], "--jobs", str(self.jobs), *chosen]

    def environment(self) -> dict[str, str]:
        """Return the variables by which all jobs agree on the device of the steps."""
        if self.is_local:
            return {}
        return {STEP_DEVICE: "cuda"} if self.gpu else {"CUDA_VISIBLE_DEVICES": ""}

    def cancel_jobs(self, state: Path) -> int:
        """End what an earlier batch left in the queue or running, wait until it is gone, and return how many jobs.

        Raises:
            TimeoutError: a job does not end.
        """
        if self.name == "kubernetes":
            return kubernetes.cancel_batch(job_prefix(state))
        if self.name == "local" or not (found := _find_jobs(state)):
            return 0
        subprocess.run(["scancel", *found], check=False, capture_output=True)
        deadline = time.monotonic() + SECONDS_TO_CANCEL
        while left := _find_jobs(state):
            if time.monotonic() > deadline:
                raise TimeoutError(f"SLURM job {left[0]} of an earlier batch does not end; scancel {' '.join(left)}")
            time.sleep(0.5)
        return len(found)


def choose_executor(name: ExecutorName, jobs: int | None, cores: int, gpu: bool | None) -> Executor:
    """Return the executor, after a check that it can work here.

    Args:
        name: which one.
        jobs: how many jobs run at a time; None: one for each core, or 16 on a cluster.
        cores: of this machine, that the batch may use.
        gpu: whether jobs that train ask for a GPU; None: if SLURM has some, and always on Kubernetes.

    Raises:
        ValueError: a command that it needs is missing, or the cluster does not answer.
        MissingExtraError: its plug-in is not installed.
    """
    if name == "local":
        return Executor(name, min(jobs or cores, cores))
    if missing := [command for command in COMMANDS[name] if not shutil.which(command)]:
        raise ValueError(
            f"--executor {name}: there is no {missing[0]} on the PATH; start it on a node where jobs can be submitted, "
            "or choose --executor local"
        )
    if name == "kubernetes":
        kubernetes.require_answer()
    elif fault := _ask_slurm("%N")[1]:
        raise ValueError(f"--executor slurm: SLURM does not answer: {fault}")
    with needs_extra("cluster"):
        metadata.distribution(f"snakemake-executor-plugin-{PLUGINS[name]}")
    if gpu is None:
        gpu = name == "kubernetes" or "gpu" in _ask_slurm("%G")[0]
    return Executor(name, jobs or 16, gpu)


def job_prefix(state: Path) -> str:
    """Return how the names of a batch's SLURM jobs begin, by which a later batch for the same results finds them."""
    return f"paperlib-{hashlib.sha256(os.fsencode(state.absolute())).hexdigest()[:12]}"


def estimate_seconds(job: dict[str, Any], gpu: bool) -> float:
    """Return about how long the trainings of a planned job take, given as a dictionary."""
    return job["gmacs"] / (GPU_GMACS if gpu else CPU_GMACS * job["threads"])


def estimate_minutes(job: dict[str, Any], gpu: bool) -> int:
    """Return the time limit of a planned job in minutes."""
    return LEAST_MINUTES + round(SAFETY * estimate_seconds(job, gpu) / 60)


def estimate_megabytes(job: dict[str, Any], gpu: bool) -> int:
    """Return the main memory of a planned job: the images twice, as they are read and as they are kept."""
    return LEAST_MEGABYTES + round(2 * job["megabytes"] + (0 if gpu else CPU_MEGABYTES * job["megapixels"]))


def _find_jobs(state: Path) -> list[str]:
    """Return the ids of the SLURM jobs of batches for the same results that are waiting or running."""
    command = ["squeue", "--me", "--noheader", "--format=%A %j"]
    listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    fields = [line.split() for line in listed.splitlines()]
    return [number for number, name, *_ in fields if name.startswith(job_prefix(state))]


def _ask_slurm(column: str) -> tuple[str, str]:
    """Return a column of what SLURM says of its partitions, or else the fault."""
    asked = subprocess.run(["sinfo", "--noheader", f"--format={column}"], check=False, capture_output=True, text=True)
    return (asked.stdout, "") if asked.returncode == 0 else ("", last_line(asked.stderr))
