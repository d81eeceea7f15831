"""`paperlib store export | import`: finished steps travel without their weights, and nothing false gets in."""

import json
import logging
import shutil
import zipfile
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from paperlib import files
from paperlib.cli.main import app
from paperlib.experiments import assistants as experiments
from paperlib.experiments.finished import find_current, find_finished
from paperlib.experiments.parameters import validate_settings
from paperlib.experiments.study import Study
from paperlib.store import imported, staleness
from paperlib.store.archive import LIST, write_archive
from paperlib.store.contents import check_step, read_omitted, seal_record, write_imported
from paperlib.store.imported import MissingWeightsError
from paperlib.workbench import steps

NOTEBOOK = "03_components"
TINY = {
    "width": 0.1, "image_size": tiny.SIDE, "epochs": 1, "fine_tune_epochs": 1, "batch_size": 4, "warmup_epochs": 0.0,
    "seeds": [0], "workers": 1, "ratios": [0.3, 0.5], "rows": [],
}  # fmt: skip


def run(settings, *parts):
    study = Study(NOTEBOOK, settings)
    return study, study.run(*parts)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store in which two of the notebook's experiments are finished, its results, and an archive of its steps."""
    folder = tmp_path_factory.mktemp("made")
    for split in ("train", "val", "test"):
        tiny.write_coco(folder / "data", split, tiny.dataset(split), images=".")
    settings = validate_settings(NOTEBOOK, TINY | {"dataset": f"coco:{folder}/data/{{split}}.json"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLIB_STORE", str(folder / "store"))
        patch.setenv("PAPERLIB_RESULTS", str(folder / "results"))
        study, runs = run(settings, experiments.baseline, experiments.components)
        study.draw_detections({"SCP": runs["SCP"]}, 2)
        study.finish({})
    found = find_finished(folder / "store", {NOTEBOOK: settings})
    write_archive(folder / "steps.zip", folder / "store", found, weights=False)
    return folder, settings


@pytest.fixture
def there(made, tmp_path, monkeypatch):
    """The folder of another machine, and the settings."""
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PAPERLIB_RESULTS", str(tmp_path / "results"))
    return tmp_path, made[1]


def call(*words):
    result = CliRunner().invoke(app, ["store", *map(str, words)])
    return result.exit_code, result.output


def refuse(*arguments, **options):
    raise AssertionError("something was trained")


def test_an_imported_notebook_is_finished_and_gives_the_same_metrics_without_training(made, there, monkeypatch):
    status, text = call("import", made[0] / "steps.zip")
    assert (status, "imported" in text) == (0, True)
    assert not list(there[0].rglob("*.safetensors"))
    with monkeypatch.context() as patch:
        patch.setattr(steps, "fit", refuse)
        study, runs = run(there[1], experiments.baseline, experiments.components)
        assert study.draw_detections({"SCP": runs["SCP"]}, 2).axes
        study.finish({})
    for name in ("metrics.json", "detections.npz"):
        one, other = (path / f"results/scratch/{NOTEBOOK}/{name}" for path in (made[0], there[0]))
        assert one.read_bytes() == other.read_bytes()
    assert len(runs["SCP"].model.history()) == 1 and runs["pruned"].model.plan().channels_kept
    # The certificate tells which steps came from where.
    certificate = files.read_json(there[0] / f"results/scratch/{NOTEBOOK}/provenance.json")
    names = {run.model.folder.name for run in runs.values()}
    assert names <= {name for machine in certificate["machines"] for name in machine["imported"]}
    assert "machines" not in files.read_json(made[0] / f"results/scratch/{NOTEBOOK}/provenance.json")
    assert study.seed_to_draw({3: {}, 0: runs}) == 3 and study.seed_to_draw({0: runs}) == 0
    name = runs["SCP"].model.folder.name
    with pytest.raises(MissingWeightsError, match=rf"{name} was imported without its weights; .*store prune {name}"):
        runs["SCP"].model.detector()


def test_equal_steps_give_equal_archives_of_all_that_was_made(made, tmp_path):
    store = made[0] / "store"
    write_archive(tmp_path / "again.zip", store, reversed(find_current(store)), weights=False)
    assert (tmp_path / "again.zip").read_bytes() == (made[0] / "steps.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "again.zip") as opened:
        assert not [name for name in opened.namelist() if name.endswith(".safetensors")]


def test_weights_that_are_needed_are_made_again_and_compared_with_the_record(made, there, caplog):
    call("import", made[0] / "steps.zip")
    # The control starts from the pruned student, of which only the records are here.
    _, runs = run(there[1], experiments.controls)
    lines = [record.getMessage() for record in caplog.records if "again" in record.getMessage()]
    assert runs["scratch"].metrics and all(len(line.splitlines()) == 1 for line in lines)
    assert sum("bit for bit" in line for line in lines) == sum("it is made again" in line for line in lines) >= 3
    for step in find_current(there[0] / "store"):
        check_step(step.folder)


def test_weights_that_differ_from_the_record_take_its_place_and_one_line_says_so(tmp_path, caplog):
    record = {"digest": "0" * 64, "machine": {"gpu": None, "processor": "Abacus 3"}}
    for name, content in (("train-0123456789abcdef", b"there"), ("partial", b"here")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "d.safetensors").write_bytes(content)
        digests = {"d.safetensors": files.file_digest(tmp_path / name / "d.safetensors")}
        files.write_json_atomically(tmp_path / name / "step.json", seal_record(record | {"files": digests}))
    final = tmp_path / "train-0123456789abcdef"
    (final / "d.safetensors").unlink()
    write_imported(final, "2026-01-01", {"d.safetensors": {}})
    with caplog.at_level(logging.WARNING):
        imported.complete_step(final, tmp_path / "partial")
    (line,) = (record.getMessage() for record in caplog.records)
    assert "d.safetensors as made here differs from that made on Abacus 3" in line
    assert (final / "d.safetensors").read_bytes() == b"here" and not read_omitted(final)


def test_an_archive_with_weights_completes_steps_and_leaves_complete_ones_alone(made, there, tmp_path):
    store = made[0] / "store"
    write_archive(tmp_path / "all.zip", store, find_current(store), weights=True)
    call("import", made[0] / "steps.zip")
    assert "completed with weights" in call("import", tmp_path / "all.zip")[1]
    assert not [step for step in find_current(there[0] / "store") if not step.has_weights]
    before = {path: path.stat().st_mtime_ns for path in (there[0] / "store").rglob("*.*") if path.suffix != ".lock"}
    assert call("import", made[0] / "steps.zip", tmp_path / "all.zip")[1].count("0 steps imported") == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_commands_say_what_came_without_weights(made, there):
    call("import", made[0] / "steps.zip")
    assert "without weights, read, none damaged" in call("verify")[1]
    status, text = call("list")
    assert (status, "(without weights)" in text, "were imported" in text) == (0, True, True)
    name = next(line.split()[0] for line in text.splitlines() if line.startswith("train-"))
    assert "imported without weights, is up to date" in call("why", name)[1]
    # What rests on a step goes with it, so that no measurement of other weights stays.
    root = next(line.split()[0] for line in text.splitlines() if line.startswith("new-"))
    call("prune", "--yes", root)
    assert not list((there[0] / "store").glob("*-????????????????"))
    assert call("prune", "--yes", "train-0") == (2, f"paperlib: train-0: no step in {there[0]}/store has this name\n")


def members_of(archive):
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def first(members, end):
    return next(name for name in sorted(members) if name.endswith(end))


def flip_byte(members):
    name = first(members, "history.jsonl")
    members[name] = bytes([members[name][0] ^ 1]) + members[name][1:]


def leave_folder(members):
    members["../../outside.json"] = b"{}"


def make_absolute(members):
    members["/tmp/outside.json"] = b"{}"


def drop_file(members):
    del members[first(members, "metrics.json")]


def add_file(members):
    members[first(members, "step.json").replace("step.json", "more.json")] = b"{}"


def make_bomb(members):
    members["bomb"] = bytes(10**8)


def forget_list(members):
    del members[LIST]


def claim_other_step(members):
    """Change a setting and all the digests that tell of it."""
    name = first(members, "step.json")
    record = json.loads(members[name])
    del record["checksum"]
    record["step"]["settings"]["seed"] = 99
    members[name] = json.dumps(seal_record(record)).encode()
    listed = json.loads(members[LIST])
    del listed["checksum"]
    digest = files.hashlib.sha256(members[name]).hexdigest()
    members[LIST] = json.dumps(seal_record(listed | {"files": listed["files"] | {name: digest}})).encode()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_byte, "history.jsonl was changed after it was written"),
        (leave_folder, "'../../outside.json' would lie outside the folder"),
        (make_absolute, "'/tmp/outside.json' would lie outside the folder"),
        (drop_file, "metrics.json is missing"),
        (add_file, "more.json is not listed"),
        (make_bomb, "unpacks to more than"),
        (forget_list, f"no archive of steps, because it has no {LIST}"),
        (claim_other_step, "step.json is of another step"),
    ],
)
def test_a_damaged_or_foreign_archive_is_refused_in_one_line_and_nothing_is_placed(made, there, damage, message):
    members = members_of(made[0] / "steps.zip")
    damage(members)
    with zipfile.ZipFile(there[0] / "bad.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    status, text = call("import", there[0] / "bad.zip")
    assert status == 2 and text.startswith("paperlib: bad.zip: ") and message in text and len(text.splitlines()) == 1
    assert not list((there[0] / "store").iterdir()) and not (there[0].parent / "outside.json").exists()


def test_a_cut_archive_and_a_link_in_it_are_refused(made, there):
    content = (made[0] / "steps.zip").read_bytes()
    (there[0] / "cut.zip").write_bytes(content[: len(content) // 2])
    shutil.copy(made[0] / "steps.zip", there[0] / "link.zip")
    link = zipfile.ZipInfo("train-0/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(there[0] / "link.zip", "a") as opened:
        opened.writestr(link, "/etc/passwd")
    for name, message in (("cut.zip", "neither a zip nor a tar"), ("link.zip", "is a link"), ("none.zip", "no such")):
        status, text = call("import", there[0] / name)
        assert (status, message in text, len(text.splitlines())) == (2, True, 1)


def test_steps_of_other_code_or_libraries_are_refused(made, there, monkeypatch):
    libraries = steps.Step("new", {}, (), "", "").libraries | {"torch": "1.0"}
    monkeypatch.setattr(staleness, "installed_libraries", lambda: libraries)
    status, text = call("import", made[0] / "steps.zip")
    assert status == 2 and "steps were made by other code or libraries" in text and "-> 1.0" in text
    monkeypatch.undo()
    monkeypatch.setenv("PAPERLIB_STORE", str(there[0] / "store"))
    monkeypatch.setattr(staleness, "code_of", lambda *parts: staleness.Code(parts, {}, "0" * 64))
    status, text = call("import", made[0] / "steps.zip")
    assert status == 2 and "no longer used" in text
    assert not list(Path(there[0] / "store").iterdir())
