"""`paperlib reproduce` on a small project: real Snakemake, real papermill, real kernels, no training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from typer.testing import CliRunner

import paperlib
from paperlib.cli.main import app

PACKAGE = Path(paperlib.__file__).resolve().parent
WORKFLOW = PACKAGE.parent / "workflow"

RUN = """
import time
from pathlib import Path
from paperlib import paths
from paperlib.progress.report import begin_step, end_step, plan_work, track_items
folder = paths.results_root() / profile / {name!r}
log = paths.repository_root() / "started.txt"
log.open("a").write({name!r} + "\\n")
plan_work(10)
begin_step("sleep", epochs=10)
for _ in track_items(range(10), "epoch"):
    time.sleep({seconds} / 10)
end_step(10)
"""
DONE = "(folder / 'metrics.json').write_text('{}')"


def write_notebook(root, name, *, seconds=0.1, last=DONE, settings="threads: 1\nworkers: 1\n"):
    cells = [nbformat.v4.new_code_cell('profile = "quick"', metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in (RUN.format(name=name, seconds=seconds), last)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
    header = "# Promise: nothing\n# Cost: about 2 s (guessed)\n# Run: paperlib reproduce\n"
    profile = root / "notebooks" / "profiles" / "quick" / f"{name}.yaml"
    profile.write_text(f"{header}profile: quick\n{settings}", encoding="utf-8")


@pytest.fixture
def project(tmp_path):
    (tmp_path / "notebooks" / "profiles" / "quick").mkdir(parents=True)
    (tmp_path / "workflow").symlink_to(WORKFLOW)
    yield tmp_path
    while _running:
        with _running.pop() as process:
            process.kill()


_running = []


def heed_ctrl_c():
    """React to Ctrl-C. A shell starts background commands with SIGINT ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(root, *arguments):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAPERLIB_")}
    environment = {**inherited, "PAPERLIB_ROOT": str(root), "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-m", "paperlib", "reproduce", *arguments]
    pipe = subprocess.PIPE
    options = {"stdout": pipe, "stderr": pipe, "text": True, "preexec_fn": heed_ctrl_c}
    _running.append(subprocess.Popen(command, cwd=root, env=environment, **options))
    return _running[-1]


def reproduce(root, *arguments):
    process = start(root, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def reproduce_here(root, *arguments):
    """Call the command in this process, which it may only do where nothing is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name in [name for name in os.environ if name.startswith("PAPERLIB_")]:
            patch.delenv(name)
        patch.setenv("PAPERLIB_ROOT", str(root))
        patch.setattr("paperlib.cli.reproduce.run_notebooks", lambda *_: pytest.fail("something is started"))
        result = CliRunner().invoke(app, ["reproduce", *arguments])
    return result.exit_code, result.stdout, result.stderr


def started(root):
    log = root / "started.txt"
    return log.read_text().split() if log.is_file() else []


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def survivors(root):
    return [process.pid for process in psutil.process_iter() if belongs_to(process, root)]


def belongs_to(process, root):
    try:
        return process.environ().get("PAPERLIB_BATCH", "").startswith(str(root))
    except psutil.Error:
        return False


def test_a_second_call_does_nothing_and_says_so_and_damaged_results_are_told_and_made_again(project):
    write_notebook(project, "00_start_here")
    status, out, err = reproduce(project)
    assert (status, err) == (0, "")
    assert "00_start_here · starting" in out
    results = project / "results" / "quick" / "00_start_here"
    assert f"Look in {results.relative_to(project).parent}" in out and "metrics.json" in out.splitlines()[-1]
    assert {path.name for path in results.iterdir()} >= {"metrics.json", "00_start_here.ipynb", "progress.log"}
    logged = (results / "progress.log").read_text().splitlines()
    assert [line.split("  ")[1] for line in logged] == ["starting", "sleep"]

    status, out, _ = reproduce_here(project)
    assert (status, started(project)) == (0, ["00_start_here"])
    assert out == "Nothing to do: 1 of 1 notebooks are up to date in results/quick.\n"

    (results / "metrics.json").write_bytes(b"")
    status, out, _ = reproduce(project)
    assert (status, started(project)) == (0, ["00_start_here"] * 2)
    assert "  00_start_here again: metrics.json: is empty\n" in out


def test_a_killed_run_leaves_no_process_and_the_next_continues(project):
    write_notebook(project, "00_start_here")
    write_notebook(project, "03_components", seconds=60)
    first = start(project, "--cores", "2")
    finished = project / "results" / "quick" / "00_start_here" / "metrics.json"
    wait_until(lambda: finished.is_file() and "03_components" in started(project))

    refused, _, message = reproduce(project)
    assert refused == 2 and "another process" in message
    first.send_signal(signal.SIGKILL)
    first.communicate()
    if sys.platform == "linux":
        wait_until(lambda: not survivors(project), seconds=10)
    write_notebook(project, "03_components")
    status, out, _ = reproduce(project)
    assert status == 0
    assert "1 of 1 notebooks done" in out
    assert sorted(started(project)) == ["00_start_here", "03_components", "03_components"]
    assert not survivors(project)


def test_an_interrupted_run_stops_its_kernels_and_says_how_to_go_on(project):
    write_notebook(project, "00_start_here", seconds=60)
    process = start(project)
    wait_until(lambda: started(project))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "The same command continues" in out and not err
    assert not survivors(project)


def write_scoreboard(root):
    (root / "notebooks" / "claims.yaml").write_text("claims: []\n")
    write_notebook(root, "99_claims", settings="")


def test_the_scoreboard_runs_again_when_what_it_reads_has_changed(project):
    write_scoreboard(project)
    write_notebook(project, "00_start_here")
    assert reproduce(project, "00_start_here")[0] == 0
    assert reproduce(project, "99_claims")[0] == 0  # alone, it takes the others as they are
    write_notebook(project, "00_start_here", last=DONE.replace("{}", "{ }"))
    status, out, _ = reproduce(project)
    assert status == 0 and "99_claims again: it reads results that are made again: 00_start_here" in out
    assert started(project) == ["00_start_here", "99_claims"] * 2


DATES = {"in 1970": 0, "in 2038": 2**31, "a day ahead": -86400}


def test_dates_of_files_change_nothing_and_delete_nothing(project):
    write_scoreboard(project)
    write_notebook(project, "00_start_here", seconds=2)
    for number, (date, others) in enumerate([("a day ahead", ["in 2038"]), ("in 1970", ["a day ahead"])], 1):
        date_files(project, DATES[date])
        status, out, _ = reproduce(project, "--cores", "2", "--force")
        assert status == 0 and "2 of 2 notebooks done" in out, date
        assert started(project) == ["00_start_here", "99_claims"] * number, "the scoreboard comes after what it reads"
        for other in others:
            date_files(project, DATES[other])
            assert reproduce_here(project)[1].startswith("Nothing to do: 2 of 2"), other
    assert len(list(project.glob("results/quick/*/metrics.json"))) == 2


def date_files(root, when):
    seconds = when if when >= 0 else time.time() - when
    for path in root.rglob("*"):
        if WORKFLOW not in (path.resolve(), *path.resolve().parents):
            os.utime(path, (seconds, seconds), follow_symlinks=False)


def test_snakemake_alone_runs_the_same_notebooks(project):
    write_scoreboard(project)
    write_notebook(project, "00_start_here")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAPERLIB_")}
    environment = {**inherited, "PAPERLIB_ROOT": str(project), "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "--cores", "2"]
    command += ["--workflow-profile", "workflow/profiles/local"]
    for _ in range(2):
        ran = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert started(project) == ["00_start_here", "99_claims"]
    assert "Nothing to do" in reproduce_here(project)[1]


@pytest.mark.parametrize("scale", ["mine", "scratch", "reported"])
def test_a_copied_profile_that_names_another_scale_is_refused_before_anything_runs(project, scale):
    write_notebook(project, "00_start_here")
    profiles = project / "notebooks" / "profiles"
    (profiles / "quick").rename(profiles / scale)
    status, out, err = reproduce_here(project, "--profile", scale)
    assert (status, out, started(project)) == (2, "", [])
    expected = f"{profiles}/mine/00_start_here.yaml: profile: quick, but its folder is mine; write `profile: mine`"
    assert err == f"paperlib: {expected if scale == 'mine' else f'no profile {scale}; there are none'}\n"
    assert not (project / "results").exists()


def test_notebooks_that_fail_stop_only_the_scoreboard_and_say_why(project):
    write_scoreboard(project)
    write_notebook(project, "00_start_here", last="raise ValueError('the seventh\\nseal')")
    write_notebook(project, "01_scale_factor", last="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    write_notebook(project, "02_pruning_ratio", last="pass")
    write_notebook(project, "03_components")
    status, out, _ = reproduce(project, "--cores", "1")
    others = ["00_start_here", "01_scale_factor", "02_pruning_ratio", "03_components"]
    assert (status, sorted(started(project))) == (1, others)
    assert "FAILED 00_start_here, cell 4: ValueError: the seventh seal\n" in out
    assert "see results/quick/00_start_here/00_start_here.ipynb" in out
    assert "FAILED 01_scale_factor, cell 4: the process ended while this cell ran" in out
    assert "FAILED 02_pruning_ratio: it has not written metrics.json" in out
    assert "NOT RUN 99_claims: it waits for the notebooks that failed\n" in out
    results = project / "results" / "quick"
    assert (results / "00_start_here" / "00_start_here.ipynb").is_file()
    assert [path.parent.name for path in results.glob("*/metrics.json")] == ["03_components"]
