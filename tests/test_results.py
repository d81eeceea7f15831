"""Results are bound to what made them: every damage of a file beside a certificate is found and told in one line."""

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from paperlib import files, paths
from paperlib.claims.verdicts import evaluate_claims
from paperlib.cli.main import app
from paperlib.cli.staleness import find_outdated
from paperlib.experiments.parameters import load_profile, profile_path
from paperlib.store import results
from paperlib.store.code_digest import notebook_digest

NOTEBOOK = "03_components"
WRITTEN = {"figure_1.png": b"\x89PNG picture", "table_1.csv": b"model,map50\nSCP,0.5\n", "table_1.md": b"| SCP |\n"}
METRICS = {"summary": {}, "models": [{"model": "SCP", "seed": 0, "map50": 0.5}], "measured": []}


def write(root, notebook=NOTEBOOK, scale="quick"):
    """Results as the batch leaves them."""
    folder = root / scale / notebook
    folder.mkdir(parents=True)
    for name, content in WRITTEN.items():
        (folder / name).write_bytes(content)
    source = paths.repository_root() / "notebooks" / f"{notebook}.ipynb"
    profile = load_profile(notebook, profile_path(notebook, scale)).model_dump()
    made_by = {
        "settings": profile,
        "versions": results.installed_versions(),
        "code": {"digest": notebook_digest(source)},
    }
    results.write_results(folder, made_by, METRICS, WRITTEN)
    shutil.copy(source, folder)
    results.bind_executed(folder, folder / source.name, None)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RESULTS", str(tmp_path))
    return write(tmp_path)


def outdated(folder):
    profile = {folder.name: load_profile(folder.name, profile_path(folder.name, "quick"))}
    return find_outdated(paths.repository_root(), folder.parent, profile)


def claims():
    return CliRunner().invoke(app, ["claims"])


FILES = [*WRITTEN, results.METRICS, results.CERTIFICATE, f"{NOTEBOOK}.ipynb"]
DAMAGES = {
    "emptied": (lambda path: path.write_bytes(b""), "is empty"),
    "deleted": (lambda path: path.unlink(), "is missing"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-2]), "was changed after it was made"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
}


@pytest.fixture
def restore(folder, tmp_path):
    """Undo every damage."""
    shutil.copytree(folder, tmp_path / "whole")

    def restore():
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "whole", folder)

    return restore


@pytest.mark.parametrize("name", FILES)
def test_results_with_any_damage_are_made_again(name, folder, restore):
    for damage, (act, fault) in DAMAGES.items():
        assert outdated(folder) == {}
        act(folder / name)
        [reason, *_] = outdated(folder)[NOTEBOOK]
        assert reason.startswith(f"{name}: ")
        if (name, damage) != (results.CERTIFICATE, "cut"):
            assert reason == f"{name}: {fault}"
        restore()


def test_damaged_results_give_no_verdict(folder, restore):
    assert claims().exit_code == 0
    page = folder.parent / "claims.md"
    for name, damage in (
        ("table_1.csv", "emptied"), (results.METRICS, "cut"), (results.CERTIFICATE, "cut"), (FILES[-1], "a folder"),
    ):  # fmt: skip
        page.unlink(missing_ok=True)
        DAMAGES[damage][0](folder / name)
        told, [reason, *_] = claims(), outdated(folder)[NOTEBOOK]
        remedy = f"make the results again: paperlib reproduce {NOTEBOOK} --profile quick"
        assert (told.exit_code, told.stdout) == (2, "")
        assert told.stderr == f"paperlib: {folder}/{reason}; {remedy}\n"
        assert not page.exists()
        restore()
    (folder / results.METRICS).unlink()  # the notebook is not done
    told = claims()
    assert told.exit_code == 0 and " 1 hold" not in told.stdout


@given(st.sampled_from(FILES), st.integers(0, 10**6), st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_a_flipped_bit_is_found_in_every_file(folder, name, place, bit):
    path = folder / name
    before = path.read_bytes()
    changed = bytearray(before)
    changed[place % len(changed)] ^= 1 << bit
    path.write_bytes(changed)
    try:
        same = name == results.CERTIFICATE and _reads_as(changed, before)
        assert same or results.find_faults(folder)
    finally:
        path.write_bytes(before)


def _reads_as(changed, before):
    """Whether only the layout of a JSON file differs, such as a blank for a tab."""
    try:
        return json.loads(changed) == json.loads(before)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("notebook", "scale"), [("02_pruning_ratio", "quick"), (NOTEBOOK, "laptop"), (NOTEBOOK, "scratch")]
)
def test_a_certificate_of_other_results_does_not_fit(notebook, scale, folder, tmp_path):
    other = tmp_path / "other" / scale / notebook
    shutil.copytree(folder, other)
    results.write_certificate(other, files.read_json(folder / results.CERTIFICATE))
    shutil.copy(other / results.CERTIFICATE, folder)
    fault = f"provenance.json: is that of {notebook} in results/{scale}"
    assert results.find_faults(folder) == [fault] == outdated(folder)[NOTEBOOK]
    assert fault in claims().stderr


def test_a_certificate_without_digests_is_told(folder):
    for content in ("{}", "[]", "null", '{"files": []}', '{"files": {"../x": "0"}}', "[" * 100_000):
        (folder / results.CERTIFICATE).write_text(content)
        [fault] = results.find_faults(folder)
        assert fault in ("provenance.json: has no digests of the results", "provenance.json: is not JSON")
    assert claims().stderr.count("\n") == 1


@pytest.mark.parametrize("year", [1980, 2040])
def test_dates_decide_nothing(year, folder):
    notebook = paths.repository_root() / "notebooks" / f"{NOTEBOOK}.ipynb"
    then = (year - 1970) * 365.25 * 86400
    state = notebook.stat()
    try:
        for path in (notebook, *folder.iterdir()):
            os.utime(path, (then, then))
        assert outdated(folder) == {}
    finally:
        os.utime(notebook, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source": "0"}, "the cells of the notebook have changed, or are not recorded"),
        ({"code": {"digest": "0"}}, "the code that it uses has changed, or is not recorded"),
        ({"versions": results.installed_versions() | {"torch": "1.0"}}, "library torch: 1.0 -> "),
        ({"settings": {}}, "setting profile: none -> quick"),
        ({"read": {"claims.yaml": "0"}}, "what it reads has changed"),
    ],
)
def test_a_change_of_what_made_the_results_is_told(changes, reason, folder):
    results.write_certificate(folder, files.read_json(folder / results.CERTIFICATE) | changes)
    assert any(found.startswith(reason) for found in outdated(folder)[NOTEBOOK])
    evaluate_claims("quick")  # they are out of date, but still what the certificate says


def test_the_source_of_a_notebook_is_its_cells_without_outputs_and_inserted_ones(folder, tmp_path):
    path = folder / f"{NOTEBOOK}.ipynb"
    before = results.digest_source(path)
    notebook = files.read_json(path)
    notebook["cells"][1]["outputs"] = []
    notebook["cells"].insert(2, {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": ["x"]})
    (tmp_path / "other.ipynb").write_text(json.dumps(notebook))
    assert results.digest_source(tmp_path / "other.ipynb") == before
    notebook["cells"][0]["source"] = ["another title"]
    (tmp_path / "other.ipynb").write_text(json.dumps(notebook))
    assert results.digest_source(tmp_path / "other.ipynb") != before
    (tmp_path / "other.ipynb").write_text("[]")
    with pytest.raises(ValueError, match=r"other\.ipynb: not a Jupyter notebook"):
        results.digest_source(tmp_path / "other.ipynb")
