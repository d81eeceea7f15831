"""Hand the jobs of a batch to Kubernetes by `kubectl`: submit one, ask for its state, cancel those of a batch.

    python -m paperlib.cli.kubernetes submit BATCH TEMPLATE THREADS MEGABYTES MINUTES GPUS SCRIPT
    python -m paperlib.cli.kubernetes status JOB

Snakemake's plug-in for Kubernetes allows no shared folder, so its generic plug-in calls these commands. `TEMPLATE` is a
manifest with the image and the shared volume of a cluster.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from paperlib import files
from paperlib.cli.errors import last_line

LABEL = "paperlib-batch"
"""By its value a later batch for the same results finds the jobs of an earlier one."""
PASSED = ("PAPERLIB_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""How the names of variables begin that jobs need."""


def render_job(
    template: dict[str, Any], batch: str, *, threads: int, megabytes: int, minutes: int, gpus: int, script: str
) -> dict[str, Any]:
    """Return the manifest of a job that runs a shell script.

    Args:
        template: a manifest of kind `Job` whose first container is the one to use.
        batch: the value of the label.
        threads, megabytes, minutes, gpus: what the job may use.
        script: the text of the script.
    """
    job = copy.deepcopy(template)
    job["metadata"] = job.get("metadata", {}) | {"name": f"{batch}-{uuid.uuid4().hex[:8]}"}
    job["metadata"]["labels"] = job["metadata"].get("labels", {}) | {LABEL: batch}
    # Snakemake decides whether a job is tried again, with more memory and time.
    job["spec"] |= {"backoffLimit": 0, "activeDeadlineSeconds": 60 * minutes}
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    pod["restartPolicy"] = "Never"
    container["command"] = ["/bin/sh", "-c", script]
    needed = {"cpu": str(threads), "memory": f"{megabytes}M"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    container["resources"] = {"requests": needed, "limits": needed}
    passed = [{"name": name, "value": value} for name, value in sorted(os.environ.items()) if name.startswith(PASSED)]
    container["env"] = container.get("env", []) + passed
    return job


def submit_job(batch: str, template: Path, threads: int, megabytes: int, minutes: int, gpus: int, script: Path) -> str:
    """Create a job and return its name.

    Raises:
        ValueError: Kubernetes refuses it, or the template cannot be read.
    """
    manifest = render_job(
        files.read_mapping(template), batch, threads=threads, megabytes=megabytes, minutes=minutes, gpus=gpus,
        script=script.read_text(encoding="utf-8"),
    )  # fmt: skip
    _call("create", "-f", "-", given=json.dumps(manifest))
    return manifest["metadata"]["name"]


def read_status(name: str) -> str:
    """Return `running`, `success` or `failed`, the words of Snakemake; a job that is gone has failed."""
    found = _call("get", "job", name, "--ignore-not-found", "-o", "json").strip()
    status = json.loads(found).get("status", {}) if found else {"failed": 1}
    return "success" if status.get("succeeded") else "failed" if status.get("failed") else "running"


def cancel_batch(batch: str) -> int:
    """Delete the jobs of a batch, wait until their processes have ended, and return how many there were."""
    deleted = _call("delete", "jobs", "-l", f"{LABEL}={batch}", "--cascade=foreground", "--wait", "-o", "name")
    return len(deleted.split())


def require_answer() -> None:
    """Check that the cluster answers. Raises ValueError with what `kubectl` says."""
    try:
        _call("get", "jobs", "-o", "name")
    except ValueError as error:
        raise ValueError(f"--executor kubernetes: Kubernetes does not answer: {error}") from None


def _call(*arguments: str, given: str | None = None) -> str:
    ended = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ValueError(f"kubectl {arguments[0]}: {last_line(ended.stderr)}")
    return ended.stdout


def main(command: str, *rest: str) -> None:
    """Submit a job and print its name, or print the state of one; while Kubernetes does not answer, it is running."""
    if command == "submit":
        batch, template, threads, megabytes, minutes, gpus, script = rest
        needs = (int(threads), int(megabytes), int(minutes), int(gpus))
        print(submit_job(batch, Path(template), *needs, Path(script)))
        return
    try:
        print(read_status(*rest))
    except ValueError as error:
        print(error, file=sys.stderr)
        print("running")


if __name__ == "__main__":
    main(*sys.argv[1:])
