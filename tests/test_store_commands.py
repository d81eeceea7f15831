"""`paperlib store list | why | prune`."""

import hashlib
import json
import os
from dataclasses import replace

import pytest
import tiny
from filelock import FileLock
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.data import squares
from paperlib.experiments.parameters import load_profile
from paperlib.paths import repository_root
from paperlib.store import inspect, provenance
from paperlib.store.code_digest import code_of, notebook_code
from paperlib.store.staleness import compare_values, explain_notebook, explain_step
from paperlib.store.store import Step, Store

CODE = code_of("paperlib.structure")


class Filled:
    """A store in `root`, and results that rest on some of its steps."""

    def __init__(self, root):
        self.root, self.results = root / "steps", root / "results"
        self.store = Store(self.root)
        self.new = self.make("new")
        self.trained = self.make("train", self.new, seed=0)
        self.measured = self.make("evaluate", self.trained)
        self.spare = self.make("train", self.new, seed=1)
        self.write_result("03_components", self.trained)

    def make(self, kind, *parents, code=CODE, **settings):
        step = Step(kind, settings, tuple(parent.digest for parent in parents), "", code.digest)
        self.store.get_step(step, lambda folder: (folder / "weights").write_bytes(bytes(10**6)), code)
        return step

    def write_result(self, notebook, *steps):
        path = self.results / "quick" / notebook / "provenance.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"steps": [step.digest for step in steps]}))

    def names(self):
        return {path.name for path in self.root.iterdir()}


@pytest.fixture
def filled(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path / "steps"))
    return Filled(tmp_path)


def call(*words):
    result = CliRunner().invoke(app, ["store", *words])
    return result.exit_code, result.output


def test_list_names_every_step_and_the_results_that_rest_on_it(filled):
    status, text = call("list")
    rows = [line.split() for line in text.splitlines()]
    users = {row[0]: row[-1] for row in rows[1:-2]}
    assert status == 0 and [row[0].rpartition("-")[0] for row in rows[1:-2]] == ["evaluate", "new", "train", "train"]
    used = dict.fromkeys([filled.new.name, filled.trained.name, filled.measured.name], "quick/03_components")
    assert users == used | {filled.spare.name: "-"}
    assert text.splitlines()[-2:] == ["4 steps, 4.00 MB", "1 of them, 1.00 MB, belong to no result"]
    assert filled.new.name not in call("list", "--kind", "train")[1]
    assert call("list", "--kind", "prune") == (2, f"paperlib: no step of kind 'prune' in {filled.root}; "
                                               "there are evaluate, new, train\n")  # fmt: skip


def test_prune_removes_only_what_no_result_rests_on_and_asks_first(filled):
    before = filled.names()
    status, text = call("prune")
    assert status == 2 and "1 step that no result rests on" in text and "say --yes" in text
    assert filled.names() == before
    (filled.root / "toy-aerial").mkdir()
    (filled.root / "prune-0123456789abcdef.partial").mkdir()
    (filled.root / "prune-0123456789abcdef.lock").touch()
    assert call("prune", "--yes")[1].endswith("Removed 1 step.\n")
    locks = {f"{step.name}.lock" for step in (filled.new, filled.trained, filled.measured)}
    kept = {filled.new.name, filled.trained.name, filled.measured.name, "code", "toy-aerial", *locks}
    assert filled.names() == kept
    assert call("prune", "--yes")[1].startswith("Nothing to remove")
    assert [path.stem for path in (filled.root / "code").iterdir()] == [CODE.digest]


def test_prune_keeps_what_a_running_process_makes_and_what_that_starts_from(filled):
    running = Step("prune", {}, (filled.spare.digest,), "", CODE.digest)
    partial = filled.root / f"{running.name}.partial"
    partial.mkdir()
    (partial / "step.json").write_text(json.dumps({"digest": running.digest, "step": vars(running)}))
    with FileLock(filled.root / f"{running.name}.lock"):
        found = inspect.find_removable(filled.root, filled.results)
        assert (found.steps, found.leftovers, found.in_use) == ([], [], 1)
        assert "1 step in the making" in call("prune", "--yes")[1]
    assert partial.is_dir()
    assert [step.key for step in inspect.find_removable(filled.root, filled.results).steps] == [
        filled.spare.digest[:16]
    ]


def test_prune_leaves_a_step_that_a_process_began_to_use_after_it_looked(filled):
    found = inspect.find_removable(filled.root, filled.results)
    with FileLock(filled.root / f"{filled.spare.name}.lock"):
        assert inspect.remove_found(found) == 0
    assert inspect.remove_found(found) == 1


def test_prune_refuses_when_it_cannot_tell_what_a_result_rests_on(filled):
    (filled.results / "quick" / "03_components" / "provenance.json").write_text("{")
    assert call("prune", "--yes")[0] == 2
    assert filled.spare.name in filled.names()


def test_the_steps_of_compress_belong_to_the_folder_around_their_store(filled):
    path = filled.root.parent / "provenance.json"
    path.write_text(json.dumps({"steps": [filled.spare.digest]}))
    assert inspect.find_removable(filled.root, filled.results).steps == []


def altered(unit, name):
    """The code as it would be recorded if a definition had been another one."""
    units = {**CODE.units, unit: {**CODE.units[unit], name: "another"}}
    return replace(CODE, units=units, digest=hashlib.sha256(name.encode()).hexdigest())


def test_why_tells_which_function_library_or_parent_made_a_step_stale(filled):
    assert explain_step(filled.root, filled.trained.name)[0].endswith("is up to date.")
    old = filled.make("adopt", code=altered("structure", "select_channels"))
    child = filled.make("prune", old, filled.new)
    libraries = Step("draw", {}, (), "", CODE.digest, {**filled.new.libraries, "torch": "1.0"})
    filled.store.get_step(libraries, lambda folder: None, CODE)
    headline, change = explain_step(filled.root, old.digest)
    assert headline.endswith("is stale:") and change == "  paperlib/structure: select_channels changed"
    texts = {name: call("why", name)[1] for name in ("draw", child.name[:12])}
    assert f"library torch: 1.0 -> {filled.new.libraries['torch']}" in texts["draw"]
    assert f"{old.name}, which is itself stale:\n    paperlib/structure: select_channels" in texts[child.name[:12]]
    os.rename(filled.root / old.name, filled.root.parent / old.name)
    assert f"it rests on step {old.digest[:16]}, which is missing" in call("why", child.name)[1]


def test_why_compares_the_settings_with_the_newest_step_of_the_same_seed(filled):
    newer = filled.make("train", filled.new, recipe={"seed": 7, "epochs": 18})
    older = filled.make("train", filled.new, recipe={"seed": 7, "epochs": 12})
    record = json.loads((filled.root / older.name / "step.json").read_text())
    del record["checksum"]
    (filled.root / older.name / "step.json").write_text(json.dumps(record | {"finished": "2020-01-01T00:00:00+00:00"}))
    lines = explain_step(filled.root, older.name)
    assert newer.name in lines[-2] and lines[-1] == "  recipe.epochs: 12 -> 18"


@pytest.mark.parametrize("name", ["nonsense", "train"])
def test_why_names_what_is_known_when_a_name_means_nothing_or_too_much(filled, name):
    status, text = call("why", name)
    assert status == 2 and text.startswith(f"paperlib: {name}: ") and text.count("\n") == 1
    assert ("2 train; notebooks: 00_start_here" in text) == (name == "nonsense")


def test_why_tells_what_changed_since_a_notebook_ran(filled):
    certificate = provenance.make_certificate(
        settings={"epochs": 12, "weights": "/a/b.weights"}, data_digest={}, seeds=[0], wall_seconds=1.0,
        training_seconds=1.0, steps=[filled.trained.digest, "f" * 64], code=altered("structure", "reshape_"),
    )  # fmt: skip
    filled.store.record_code(altered("structure", "reshape_"))
    certificate["versions"]["numpy"] = "1.0"
    lines = explain_notebook(filled.root, certificate, {"epochs": 18, "weights": "/c/b.weights"}, CODE)
    assert lines == [
        "setting epochs: 12 -> 18",
        f"library numpy: 1.0 -> {provenance.package_version('numpy')}",
        "paperlib/structure: reshape_ changed",
        "1 step of those behind it missing from the store: ffffffffffffffff",
    ]


def test_why_of_a_notebook_reads_its_profile_its_code_and_what_it_was_made_from(filled):
    root = repository_root() / "notebooks"
    folder = filled.results / "quick"
    (folder / "03_components" / "metrics.json").write_text("{}")
    certificate = provenance.make_certificate(
        settings=load_profile("99_claims", root / "profiles" / "quick" / "99_claims.yaml").model_dump(),
        data_digest={"03_components": hashlib.sha256(b"{}").hexdigest()}, seeds=[], wall_seconds=1.0,
        training_seconds=0.0, code=notebook_code(root / "99_claims.ipynb"),
    )  # fmt: skip
    assert call("why", "99_claims") == (0, "quick/99_claims has no results yet.\n")
    (folder / "99_claims").mkdir()
    (folder / "99_claims" / "provenance.json").write_text(json.dumps(certificate))
    assert call("why", "99_claims")[1].endswith("is up to date.\n")
    (folder / "03_components" / "metrics.json").write_text("[]")
    assert call("why", "99_claims")[1].endswith("is out of date:\n  results 03_components: changed\n")


def test_values_are_compared_place_by_place():
    old = {"recipe": {"epochs": 12, "seed": 0}, "gone": 1, "same": [1, 2]}
    new = {"recipe": {"epochs": 18, "seed": 0}, "same": [1, 2], "fresh": None}
    assert compare_values(old, new) == ["recipe.epochs: 12 -> 18", "gone: 1 -> none", "fresh: none -> None"]


def test_mapped_pictures_are_listed_verified_and_removed_except_while_they_are_written(filled, monkeypatch):
    monkeypatch.setenv(squares.VARIABLE, "0")
    tiny.dataset().letterboxed(48)
    path, *others = (filled.root / "pictures").glob("*.squares")
    assert not others and call("list")[1].splitlines()[-1] == "1 file of mapped pictures, 0.06 MB"
    assert call("verify") == (0, f"{filled.root}: 4 steps and 1 file of mapped pictures read, none damaged\n")
    path.write_bytes(path.read_bytes()[:-1])
    status, text = call("verify")
    assert status == 1 and text.startswith(f"{path} was changed after it was written\n") and "1 damaged" in text
    (path.parent / "killed.partial").touch()
    with FileLock(path.with_suffix(".lock")):
        assert "1 file of mapped pictures (written again" in call("prune", "--yes")[1]
    assert [each for each in path.parent.iterdir() if each.suffix != ".lock"] == [path]
    assert "1 file of mapped pictures (written again" in call("prune", "--yes")[1]
    assert not list(path.parent.iterdir())
    tiny.dataset().letterboxed(48)
    assert path.exists()
