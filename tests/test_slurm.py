"""`paperlib reproduce --executor slurm` on real daemons: a job is cancelled, the head is killed, the node goes down."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "slurm"))
from daemons import NODE, find_missing, node_state, run_cluster, wait_until

from paperlib import files
from paperlib.experiments.jobs import plan_jobs
from paperlib.experiments.parameters import load_profile

pytest.importorskip("snakemake_executor_plugin_slurm", reason="snakemake-executor-plugin-slurm is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(find_missing()), reason=find_missing() or "all is here")]

PAPERLIB = [sys.executable, "-m", "paperlib"]
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "01_scale_factor"
PROFILE = """# Cost: about 10 s on 1 core (guessed)
profile: small
image_size: 64
width: 0.125
workers: 1
epochs: 8
sparsities: [0.001, 0.01]
proximal: [0.5]
"""
SETTING = {"slurm-init-seconds-before-status-checks": 1, "latency-wait": 5}
"""What makes Snakemake look more often than on a real cluster."""


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    shutil.copytree(ROOT / "workflow", root / "workflow")
    profile = root / "workflow" / "profiles" / "slurm" / "config.yaml"
    text = profile.read_text()
    for key, value in SETTING.items():
        text = re.sub(rf"^{key}:.*", f"{key}: {value}", text, flags=re.MULTILINE)
    profile.write_text(text)
    settings = root / "notebooks" / "profiles" / "small" / f"{NOTEBOOK}.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(PROFILE)
    shutil.copy(ROOT / "notebooks" / f"{NOTEBOOK}.ipynb", root / "notebooks")
    yield root
    while _heads:
        with _heads.pop() as head:
            head.kill()


_heads = []


def start(project, environment, *arguments):
    ours = {name: value for name, value in environment.items() if not name.startswith("PAPERLIB_")}
    ours |= {"PAPERLIB_ROOT": str(project), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*PAPERLIB, "reproduce", "--profile", "small", *arguments]
    with (project / "out.txt").open("w") as log:
        _heads.append(subprocess.Popen(command, cwd=project, env=ours, stdout=log, stderr=subprocess.STDOUT))
    return _heads[-1]


def queued(environment):
    """Return the state of every SLURM job that has not ended, by its id and its comment, which names the rule."""
    command = ["squeue", "--noheader", "--format=%A|%T|%k"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return {(number, rule): state for number, state, rule in (line.split("|") for line in listed.splitlines())}


def running(environment, experiment):
    """Return the ids of the running jobs of an experiment."""
    wanted = f"rule_job_{NOTEBOOK}_{experiment}_seed0"
    return [number for (number, rule), state in queued(environment).items() if (rule, state) == (wanted, "RUNNING")]


def is_training(project, experiment):
    """Return whether the job of an experiment has begun its first training."""
    log = project / "results" / ".batch" / "small" / "jobs" / f"{NOTEBOOK}.{experiment}.seed0.progress.log"
    return log.is_file() and "seed 0" in log.read_text()


def test_a_batch_survives_scancel_a_node_that_goes_down_and_a_killed_head(project, tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_ROOT", str(project))
    monkeypatch.delenv("PAPERLIB_STORE", raising=False)
    with run_cluster(tmp_path / "slurm") as environment:
        arguments = ("--executor", "slurm", "--jobs", "2")
        head = start(project, environment, *arguments)
        wait_until(lambda: is_training(project, "scale_factor") and is_training(project, "proximal_step"), 300)
        cancelled = running(environment, "proximal_step")
        [lost] = running(environment, "scale_factor")
        subprocess.run(["scancel", *cancelled], env=environment, check=True)
        down = ["scontrol", "update", f"nodename={NODE}", "state=down", "reason=test"]
        subprocess.run(down, env=environment, check=True)
        wait_until(lambda: node_state(environment).startswith("down"))
        assert not [each for each in queued(environment).values() if each == "RUNNING"]
        subprocess.run(["scontrol", "update", f"nodename={NODE}", "state=resume"], env=environment, check=True)
        # The one that was cancelled is submitted again. The one that lost its node is back in the queue, where SLURM
        # lets it wait for two minutes: the head is killed while one job runs and one waits.
        wait_until(lambda: running(environment, "proximal_step"), 300)
        assert running(environment, "proximal_step") != cancelled
        assert lost in {number for number, _ in queued(environment)}

        head.send_signal(signal.SIGKILL)
        head.wait()
        assert queued(environment)
        last = start(project, environment, *arguments)
        assert last.wait(240) == 0, (project / "out.txt").read_text()
        out = (project / "out.txt").read_text()
        assert "that an earlier run had left in the queue" in out and "1 of 1 notebooks done" in out
        assert not queued(environment)

    settings = load_profile(NOTEBOOK, project / "notebooks" / "profiles" / "small" / f"{NOTEBOOK}.yaml")
    certificate = files.read_json(project / "results" / "small" / NOTEBOOK / "provenance.json")
    # The steps are those that this process would make: the digests are the same as in a local run.
    planned = plan_jobs({NOTEBOOK: settings})
    assert set(certificate["steps"]) == {digest for job in planned for digest in job.trainings}
    verify = [*PAPERLIB, "store", "verify", "--store", project / ".store"]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
