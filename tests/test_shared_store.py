"""One store, two machines: processes that see neither each other's numbers nor each other's host name."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

MAKE = """
import os, socket, sys, time
from pathlib import Path
from paperlib.store.store import Step, Store
host, store, log, seconds = sys.argv[1:]
socket.sethostname(host)

def make(folder):
    with open(log, "a") as file:
        file.write(f"{socket.gethostname()} {os.getpid()} begins\\n")
    (folder / "half").write_text("begun")
    time.sleep(float(seconds))
    (folder / "model").write_text("made by " + socket.gethostname())

folder = Store(Path(store)).get_step(Step("train", {"epochs": 1}, (), "", "code", {}), make)
print((folder / "model").read_text())
"""


def may_unshare():
    command = ["unshare", "--pid", "--uts", "--fork", "--mount-proc", "true"]
    return shutil.which("unshare") and subprocess.run(command, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not may_unshare(), reason="this system does not permit new namespaces (unshare)")


@pytest.fixture
def machine(tmp_path):
    """Return a function that starts a process on a machine of its own, by namespaces of process numbers and names."""
    started = []

    def start(host, seconds):
        arguments = [host, str(tmp_path / "store"), str(tmp_path / "log"), str(seconds)]
        command = ["unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*command, sys.executable, "-c", MAKE, *arguments], **pipes))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def wait_for(path, text):
    deadline = time.monotonic() + 30
    while not (path.is_file() and text in path.read_text()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_one_machine_makes_a_step_and_the_other_waits_for_it(machine, tmp_path):
    first = machine("first", 1.0)
    wait_for(tmp_path / "log", "begins")
    second = machine("second", 0.0)
    # Both are process 1 of their machine: a lock that told them apart by number would fail here.
    assert [process.communicate(timeout=30)[0] for process in (first, second)] == ["made by first\n"] * 2
    assert (tmp_path / "log").read_text().splitlines() == ["first 1 begins"]


def test_when_the_machine_that_makes_a_step_is_lost_the_other_goes_on_from_what_is_there(machine, tmp_path):
    first = machine("first", 60.0)
    wait_for(tmp_path / "log", "begins")
    second = machine("second", 0.0)
    os.kill(first.pid, signal.SIGKILL)
    assert second.communicate(timeout=30)[0] == "made by second\n"
    assert (tmp_path / "log").read_text().splitlines() == ["first 1 begins", "second 1 begins"]
    [step] = [path for path in (tmp_path / "store").iterdir() if path.is_dir()]
    assert (step / "half").is_file(), "the second begins where the first was"
    verify = [sys.executable, "-m", "paperlib", "store", "verify", "--store", str(tmp_path / "store")]
    assert "1 step read, none damaged" in subprocess.run(verify, capture_output=True, text=True, check=True).stdout
