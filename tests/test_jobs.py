"""Jobs of a batch on a cluster: what each does, what it waits for, and what it asks the cluster for."""

import ast

import nbformat
import pytest
import tiny

from paperlib import paths
from paperlib.cli.executors import COMMANDS, choose_executor, estimate_megabytes, estimate_minutes
from paperlib.data.toy import album
from paperlib.experiments.jobs import EXPERIMENTS, plan_jobs, run_planned
from paperlib.experiments.parameters import NOTEBOOKS, validate_settings
from paperlib.experiments.study import Study
from paperlib.store.store import STEP_DEVICE, Store
from paperlib.workbench import steps

SMALL = {"image_size": 32, "width": 0.0625}


def settings(notebook, **changes):
    return validate_settings(notebook, SMALL | changes)


@pytest.fixture(scope="module")
def plan():
    notebooks = ("03_components", "04_assistant_count")
    return plan_jobs({name: settings(name, seeds=[0]) for name in notebooks} | {"99_claims": settings_of_claims()})


def settings_of_claims():
    return validate_settings("99_claims", {})


def names_run_by(notebook):
    """Return the names of the experiments that a notebook gives to `Study.run`, as its cells spell them."""
    source = nbformat.read(paths.source_root() / "notebooks" / f"{notebook}.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in source.cells if cell.cell_type == "code")
    runs = [
        call
        for call in ast.walk(ast.parse(code))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "").startswith("run")
    ]
    found = {"algorithm_1"} if any(call.func.attr == "run_algorithm_1" for call in runs) else set()
    tree = ast.parse(code) if any(call.func.attr == "run_by_case" for call in runs) else ast.Module(runs, [])
    shown = [call for call in ast.walk(tree) if getattr(getattr(call, "func", None), "attr", "") == "show"]
    skipped = {id(node) for call in shown for node in ast.walk(call)}
    for node in ast.walk(tree):
        is_experiment = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "experiments"
        if is_experiment and id(node) not in skipped:
            found.add(node.attr)
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    imported = {
        each.name for node in imports if f"{node.module}".startswith("paperlib.experiments.") for each in node.names
    }
    given = [argument for call in runs for argument in call.args if isinstance(argument, ast.Name)]
    return found | {argument.id for argument in given if argument.id in imported}


@pytest.mark.parametrize("notebook", sorted(EXPERIMENTS))
def test_the_jobs_of_a_notebook_are_the_experiments_that_it_runs(notebook):
    planned = {part.__name__ for part in EXPERIMENTS[notebook]}
    named = names_run_by(notebook)
    assert planned <= named if notebook == "10_partner_learning" else planned == named


def test_every_notebook_that_trains_has_jobs():
    assert set(EXPERIMENTS) == set(NOTEBOOKS) - {"99_claims"}


def test_a_training_belongs_to_one_job_and_the_others_wait_for_it(plan):
    owners = {}
    for job in plan:
        waits_for = set(job.after)
        assert waits_for <= {each.name for each in plan[: plan.index(job)]}
        for digest in job.trainings:
            owner = owners.setdefault(digest, job.name)
            assert owner == job.name or owner in waits_for
    root, *_ = plan
    assert (root.experiment, root.after) == ("from_scratch_sparse", ())
    distils = next(job for job in plan if job.notebook == "04_assistant_count")
    assert {"03_components.from_scratch_sparse.seed0", "03_components.components.seed0"} == set(distils.after)
    assert [job.name for job in plan if job.experiment == "baseline"] == ["03_components.baseline.seed0"]


def test_the_trainings_with_and_without_the_penalty_can_run_at_the_same_time():
    *roots, rest = plan_jobs({"05_datasets": settings("05_datasets", seeds=[0], cases={"": {"ratios": [0.5]}})})
    assert [(each.experiment, each.after) for each in roots] == [("from_scratch", ()), ("from_scratch_sparse", ())]
    assert set(rest.after) == {each.name for each in roots}


def test_planning_trains_nothing_and_writes_no_step(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path / "store"))
    again = plan_jobs({"03_components": settings("03_components", seeds=[0])})
    assert [job.trainings for job in again if job.experiment != "from_scratch"] == [
        job.trainings for job in plan if job.notebook == "03_components"
    ]
    assert not list((tmp_path / "store").glob("train-*-*/step.json"))


def test_a_training_that_several_jobs_start_from_is_left_to_them_to_evaluate(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path))
    monkeypatch.setattr(album, "draw_split", lambda split: tiny.drawn(split, 4))
    chosen = settings("03_components", epochs=1, seeds=[0], batch_size=4)
    root, *_ = plan_jobs({"03_components": chosen})
    (made,) = run_planned(root, chosen)
    assert (tmp_path / made / "step.json").is_file() and not list(tmp_path.glob("evaluate-*"))


def test_more_images_and_more_work_ask_for_more():
    small = {"gmacs": 1e3, "threads": 2, "megabytes": 25.0, "megapixels": 0.4}
    large = {"gmacs": 1e8, "threads": 8, "megabytes": 900.0, "megapixels": 10.2}
    assert estimate_minutes(small, gpu=True) < estimate_minutes(large, gpu=True) < estimate_minutes(large, gpu=False)
    assert estimate_megabytes(small, gpu=False) < estimate_megabytes(large, gpu=True)


def test_an_executor_that_cannot_work_here_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="--executor slurm: there is no sbatch on the PATH"):
        choose_executor("slurm", 1, 2, None)
    for name in COMMANDS["slurm"]:
        (tmp_path / name).write_text("#!/bin/sh\necho a log >&2\necho no configuration >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ValueError, match="--executor slurm: SLURM does not answer: no configuration$"):
        choose_executor("slurm", 1, 2, None)
    assert choose_executor("local", None, 3, None).jobs == 3


def test_a_process_without_the_device_of_the_steps_reads_them_and_trains_none(tmp_path, monkeypatch):
    monkeypatch.setenv(STEP_DEVICE, "cuda")
    study = Study("01_scale_factor", settings("01_scale_factor", epochs=1))
    if steps._device().type == "cuda":
        pytest.skip("this machine has the device")
    with pytest.raises(
        RuntimeError, match=r"PAPERLIB_STEP_DEVICE=cuda, but this process has no such device, and train-"
    ):
        study.run_job(EXPERIMENTS["01_scale_factor"][0], "", 0, Store(tmp_path))
