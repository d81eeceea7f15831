"""Jobs on Kubernetes: their manifests and what is asked of `kubectl`, for which a script stands in."""

import json
import stat
import sys
from pathlib import Path

import pytest
import yaml

from paperlib.cli import kubernetes
from paperlib.cli.executors import Executor, choose_executor

TEMPLATE = Path(__file__).resolve().parent.parent / "workflow" / "profiles" / "kubernetes" / "job.yaml"
STAND_IN = f"""#!{sys.executable}
import json, sys
from pathlib import Path
folder = Path(__file__).parent
given = sys.stdin.read() if "-f" in sys.argv else ""
with (folder / "calls.jsonl").open("a") as log:
    log.write(json.dumps([sys.argv[1:], given]) + "\\n")
print((folder / "answer").read_text(), end="")
"""


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    script = tmp_path / "kubectl"
    script.write_text(STAND_IN)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "answer").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def calls(kubectl):
    return [json.loads(line) for line in (kubectl / "calls.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_submitted_job_has_its_script_needs_label_and_the_shared_volume(kubectl, tmp_path, monkeypatch, gpus):
    monkeypatch.setenv("PAPERLIB_STORE", "/shared/store")
    (tmp_path / "job.sh").write_text("exec train 'all of it'\n")
    name = kubernetes.submit_job("paperlib-1234", TEMPLATE, 8, 2500, 90, gpus, tmp_path / "job.sh")
    [[arguments, given]] = calls(kubectl)
    job = json.loads(given)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert arguments[:3] == ["create", "-f", "-"]
    assert (job["kind"], job["metadata"]["name"]) == ("Job", name)
    assert job["metadata"]["labels"] == {kubernetes.LABEL: "paperlib-1234"}
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (0, 5400)
    assert container["command"] == ["/bin/sh", "-c", "exec train 'all of it'\n"]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "2500M"} | (
        {"nvidia.com/gpu": "1"} if gpus else {}
    )
    assert {"name": "PAPERLIB_STORE", "value": "/shared/store"} in container["env"]
    given_by_user = yaml.safe_load(TEMPLATE.read_text())["spec"]["template"]["spec"]
    assert pod["volumes"] == given_by_user["volumes"] and container["image"] == given_by_user["containers"][0]["image"]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ('{"status": {"active": 1}}', "running"),
        ('{"status": {}}', "running"),
        ('{"status": {"succeeded": 1}}', "success"),
        ('{"status": {"failed": 1}}', "failed"),
        ("", "failed"),
    ],
)
def test_a_job_that_is_gone_or_failed_has_failed(kubectl, answer, status):
    (kubectl / "answer").write_text(answer)
    assert kubernetes.read_status("one") == status


def test_what_an_earlier_batch_has_left_is_deleted_by_its_label(kubectl, tmp_path):
    (kubectl / "answer").write_text("job.batch/paperlib-1\njob.batch/paperlib-2\n")
    assert Executor("kubernetes", 2).cancel_jobs(tmp_path / "state") == 2
    [[arguments, _]] = calls(kubectl)
    assert arguments[:3] == ["delete", "jobs", "-l"] and arguments[3].startswith(f"{kubernetes.LABEL}=paperlib-")


def test_a_cluster_that_does_not_answer_is_refused_in_one_line(kubectl):
    (kubectl / "kubectl").write_text("#!/bin/sh\necho a log >&2\necho no route to host >&2\nexit 1\n")
    with pytest.raises(ValueError, match="Kubernetes does not answer: kubectl get: no route to host$"):
        choose_executor("kubernetes", 1, 2, None)
    (kubectl / "kubectl").unlink()
    with pytest.raises(ValueError, match="--executor kubernetes: there is no kubectl on the PATH"):
        choose_executor("kubernetes", 1, 2, None)
