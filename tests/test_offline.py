"""`.ci/offline` cuts the network except the loopback device; where it cannot, it says so and runs nothing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OFFLINE = Path(__file__).resolve().parent.parent / ".ci" / "offline"
OTHERS = ["192.0.2.1", "2001:db8::1"]
"""Addresses that are reserved for documentation. No packet leaves: the search for a route fails before."""
TALK_TO_ONESELF = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
    client.sendall(b"heard")
    print(server.accept()[0].recv(5).decode())
"""
CALL_OTHERS = f"""
import socket
for address in {OTHERS}:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as caller:
        print(address, caller.connect_ex((address, 9)) == 0)
print([name for _, name in socket.if_nameindex() if name != "lo"])
"""


def offline(*command, before=()):
    return subprocess.run([*before, OFFLINE, *command], capture_output=True, text=True)


def permitted():
    return shutil.which("unshare") and not subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode


cut = pytest.mark.skipif(not permitted(), reason="this system does not let a user make a network (`unshare -rn`)")


@cut
def test_only_the_loopback_device_is_left():
    assert offline(sys.executable, "-c", TALK_TO_ONESELF).stdout == "heard\n"
    found = offline(sys.executable, "-c", CALL_OTHERS)
    assert found.stdout.splitlines() == [*(f"{address} False" for address in OTHERS), "[]"], found.stderr


@cut
def test_the_command_keeps_its_arguments_its_folder_its_variables_and_its_status(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANSWER", "42")
    found = offline("sh", "-c", 'echo "$1|$PWD|$ANSWER"; exit 7', "sh", "two words")
    assert (found.stdout, found.returncode) == (f"two words|{tmp_path}|42\n", 7)


@cut
def test_where_it_is_not_permitted_nothing_runs_and_one_line_says_why():
    forbid = ["unshare", "--map-root-user", "sh", "-c", 'echo 0 >/proc/sys/user/max_net_namespaces && exec "$@"', "sh"]
    found = offline("echo", "it ran", before=forbid)
    assert found.returncode and not found.stdout
    assert found.stderr.startswith("unshare: ") and found.stderr.count("\n") == 1


def test_without_a_command_it_says_what_to_give():
    assert (offline().returncode, offline().stderr) == (2, f"usage: {OFFLINE} COMMAND…\n")
