"""A SLURM cluster of one node with two CPUs on the loopback interface, in a folder of its own, without accounting.

    python tests/slurm/daemons.py FOLDER COMMAND…

starts `munged`, `slurmctld` and `slurmd`, runs the command with `SLURM_CONF` set, and stops them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
"""The commands of the packages `munge` and `slurm-wlm`."""
SEARCHED = f"{os.environ['PATH']}:/usr/sbin"
NODE = "one"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=1
MinJobAge=300
KillWait=1
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory} State=UNKNOWN
PartitionName=cpu Nodes={node} Default=YES MaxTime=INFINITE State=UP
"""


def find_missing() -> str:
    """Return why no cluster can be started here; nothing if it can."""
    if missing := [name for name in NEEDED if not shutil.which(name, path=SEARCHED)]:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmd starts jobs as other users, so it needs root"
    daemon = subprocess.run([shutil.which("slurmd", path=SEARCHED) or "", "-V"], capture_output=True, check=False)
    return "slurmd does not start here, as in a user namespace" if daemon.returncode else ""


@contextmanager
def run_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the environment by which SLURM's commands find a running cluster, whose files are in `folder`."""
    environment = {**os.environ, "PATH": f"{folder}/bin:{SEARCHED}", "SLURM_CONF": str(folder / "slurm.conf")}
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(parents=True)
    _write_configuration(folder)
    daemons = []
    try:
        for command in _commands(folder):
            with (folder / f"{command[0]}.out").open("wb") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if command[0] == "munged":
                wait_until((folder / "munge.socket").exists)
        wait_until(lambda: node_state(environment) == "idle")
        yield environment
    finally:
        subprocess.run(["scancel", "--me", "--signal=KILL"], env=environment, check=False, timeout=20)
        with suppress(TimeoutError):
            wait_until(lambda: not _list_jobs(environment), 30)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def node_state(environment: dict[str, str]) -> str:
    """Return the state of the node: idle, mixed, allocated, down, …"""
    command = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def _list_jobs(environment: dict[str, str]) -> str:
    command = ["squeue", "--me", "--noheader"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=20).stdout


def wait_until(condition, seconds: float = 180.0):
    """Wait until a condition holds and return what it gave; beside other programs that takes several times as long."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain")
        time.sleep(0.1)
    return found


def _write_configuration(folder: Path) -> None:
    host = socket.gethostname().partition(".")[0]
    controller, daemon = _free_ports(2)
    memory = int(0.9 * psutil.virtual_memory().total / 2**20)
    text = CONFIGURATION.format(
        host=host, controller=controller, daemon=daemon, folder=folder, node=NODE, memory=memory
    )
    (folder / "slurm.conf").write_text(text)
    # Snakemake's plug-in removes SLURM_CONF before it calls srun, and would look for a file in the default place.
    wrapper = folder / "bin" / "srun"
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun", path=SEARCHED)} "$@"\n')
    wrapper.chmod(0o755)
    # Nothing uses control groups here, but slurmd does not start without a plug-in for them.
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={_name_plugin()}\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)


def _name_plugin() -> str:
    """Return the plug-in for control groups: none of them, where SLURM knows that (since 23.02)."""
    daemon = shutil.which("slurmd", path=SEARCHED) or "slurmd"
    version = subprocess.run([daemon, "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]
    return "disabled" if tuple(map(int, version.split(".")[:2])) >= (23, 2) else "cgroup/v1"


def _commands(folder: Path) -> list[list[str]]:
    places = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log"}
    munge = [f"--{option}={folder / file}" for option, file in (places | {"seed-file": "munge.seed"}).items()]
    # Without --force munged refuses a socket in a folder that others may write to.
    return [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", NODE]]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


if __name__ == "__main__":
    if reason := find_missing():
        sys.exit(reason)
    place = Path(sys.argv[1]).absolute()
    with run_cluster(place) as found:
        sys.exit(subprocess.run(sys.argv[2:], env=found, check=False).returncode)
