"""What was damaged in a store is recognised, set aside in one line and made again; `paperlib store verify` finds it."""

import json
import logging
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import paperlib
from paperlib import files
from paperlib.cli.main import app
from paperlib.data.toy import album
from paperlib.data.toy.aerial import draw_split
from paperlib.store.code_digest import code_of
from paperlib.store.contents import seal_record
from paperlib.store.store import FinishedSteps, Step, Store, UnfinishedError

CODE = code_of("paperlib.seeding")
STEP = Step("train", {"lr": 1e-3}, parents=("0" * 64,), data="d1", code=CODE.digest)
FILES = {"weights.bin": bytes(range(256)) * 40, "inner/history.jsonl": b'{"epoch": 1}\n' * 9}


def make(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def refuse(folder: Path) -> None:
    raise AssertionError(f"{folder} was made again")


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    bit = int(share * 8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def replace_by_folder(path: Path, share: float) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "cut": cut,
    "emptied": lambda path, share: path.write_bytes(b""),
    "one bit": flip,
    "missing": lambda path, share: path.unlink(),
    "a folder": replace_by_folder,
    "prolonged": lambda path, share: path.write_bytes(path.read_bytes() + b" "),
    "zeros": lambda path, share: path.write_bytes(bytes(path.stat().st_size)),
}
damages = st.tuples(st.sampled_from(sorted(DAMAGE)), st.floats(0, 1, exclude_max=True))
FEW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def apply_damage(path: Path, damage: tuple[str, float]) -> bool:
    """Damage a file; return whether its content differs then. A space or line break after JSON is not content."""
    kind, share = damage
    before = path.read_bytes()
    DAMAGE[kind](path, share)
    if not path.is_file():
        return True
    after = path.read_bytes()
    if path.suffix == ".json":
        return after.rstrip(b" \n") != before.rstrip(b" \n")
    return after != before


@FEW
@given(st.sampled_from([*FILES, "step.json"]), damages)
@example("step.json", ("cut", 1 - 2**-52))
def test_a_damaged_finished_step_is_set_aside_in_one_line_and_made_again(tmp_path, caplog, name, damage):
    root = tmp_path / "store"
    shutil.rmtree(root, ignore_errors=True)
    folder = Store(root).get_step(STEP, make, CODE)
    assert Store(root).get_step(STEP, refuse, CODE) == folder
    changed = apply_damage(folder / name, damage)
    caplog.clear()
    if not changed:
        assert Store(root).get_step(STEP, refuse, CODE) == folder
        return
    with pytest.raises(UnfinishedError):
        FinishedSteps(root).get_step(STEP, refuse)
    assert CliRunner().invoke(app, ["store", "verify", "--store", str(root)]).exit_code == 1
    with caplog.at_level(logging.WARNING):
        assert Store(root).get_step(STEP, make, CODE) == folder
    (line,) = caplog.messages
    assert str(folder / name) in line and f"damaged-{STEP.name}" in line and "\n" not in line
    assert {each: (folder / each).read_bytes() for each in FILES} == FILES
    assert (root / f"damaged-{STEP.name}").exists()
    assert Store(root).get_step(STEP, refuse, CODE) == folder
    assert CliRunner().invoke(app, ["store", "verify", "--store", str(root)]).exit_code == 0


@FEW
@given(damages)
@example(("cut", 1 - 2**-52))  # the last byte of JSON is a line break
def test_a_damaged_partial_step_is_begun_again(tmp_path, caplog, damage):
    root = tmp_path / "store"
    shutil.rmtree(root, ignore_errors=True)

    def fail(folder: Path) -> None:
        (folder / "begun").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Store(root).get_step(STEP, fail)
    changed = apply_damage(root / f"{STEP.name}.partial" / "step.json", damage)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        folder = Store(root).get_step(STEP, make)
    assert (folder / "begun").exists() is not changed
    assert len(caplog.messages) == changed
    assert Store(root).get_step(STEP, refuse) == folder


@pytest.mark.parametrize("suffix", ["", ".partial"])
@pytest.mark.parametrize("what", ["file", "link", "other step", "unfinished"])
def test_what_stands_in_the_place_of_a_step_is_set_aside(tmp_path, caplog, what, suffix):
    place = tmp_path / f"{STEP.name}{suffix}"
    if what == "file":
        place.write_text("no folder")
    elif what == "link":
        place.symlink_to("nowhere")
    else:
        other = Step("train", {"lr": 1e-2}, parents=(), data="d1", code="c1")
        shutil.copytree(Store(tmp_path / "other").get_step(other, make), place)
        if what == "unfinished":
            (place / "step.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        folder = Store(tmp_path).get_step(STEP, make)
    assert len(caplog.messages) == 1 and str(place) in caplog.messages[0]
    assert Store(tmp_path).get_step(STEP, refuse) == folder


@FEW
@given(damages)
def test_a_damaged_record_of_code_is_written_again(tmp_path, damage):
    root = tmp_path / "store"
    Store(root).record_code(CODE)
    path = root / "code" / f"{CODE.digest}.json"
    whole = path.read_bytes()
    apply_damage(path, damage)
    Store(root).get_step(STEP, make, CODE)
    assert json.loads(path.read_bytes()) == json.loads(whole)


@settings(FEW, max_examples=25)
@given(damages)
def test_a_damaged_cache_of_scenes_is_drawn_again(tmp_path, damage):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLIB_STORE", str(tmp_path / "store"))
        patch.setattr(album, "draw_split", lambda split: draw_split(split, count=2))
        drawn = album.load_scenes("val")
        (file,) = (tmp_path / "store" / "toy-aerial").iterdir()
        apply_damage(file, damage)
        again = album.load_scenes("val")
    shutil.rmtree(tmp_path / "store")
    for one, other in zip(drawn, again, strict=True):
        assert all(left.tobytes() == right.tobytes() for left, right in zip(one, other, strict=True))


def test_a_thousand_steps_are_read_quickly_and_one_flipped_bit_is_found(tmp_path):
    root = tmp_path / "store"
    whole = Store(root).get_step(STEP, make, CODE)
    record = json.loads((whole / "step.json").read_text())
    for number in range(1000):
        step = Step("train", {"number": number}, parents=(), data="", code=CODE.digest)
        folder = root / step.name
        shutil.copytree(whole, folder)
        changed = {key: value for key, value in record.items() if key != "checksum"} | {"digest": step.digest}
        (folder / "step.json").write_text(json.dumps(seal_record(changed)))
    flip(folder / "weights.bin", 0.3)
    start = time.perf_counter()
    result = CliRunner().invoke(app, ["store", "verify", "--store", str(root)])
    assert time.perf_counter() - start < 60
    assert result.exit_code == 1
    assert result.output.splitlines()[0] == f"{folder / 'weights.bin'} was changed after it was written"
    assert "1001 steps read, 1 damaged" in result.output


def test_what_was_set_aside_is_listed_nowhere_and_pruned(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RESULTS", str(tmp_path / "results"))
    root = tmp_path / "store"
    folder = Store(root).get_step(STEP, make, CODE)
    cut(folder / "weights.bin", 0.5)
    Store(root).get_step(STEP, make, CODE)
    assert "damaged" not in CliRunner().invoke(app, ["store", "list", "--store", str(root)]).output
    CliRunner().invoke(app, ["store", "prune", "--yes", "--store", str(root)])
    assert not list(root.glob("damaged-*"))


FORBIDDEN = re.compile(
    r"^\s*(import|from)\s+(pickle|cPickle|dill|cloudpickle|joblib|shelve|marshal)\b|torch\.(load|save)\(|"
    r"allow_pickle\s*=\s*True|accelerator\.(save_state|load_state|register_for_checkpointing)\(|pd\.(read_pickle|to_pickle)|"
    r"(?<![.\w])(eval|exec)\(|yaml\.(load|unsafe_load|full_load)\((?!.*_GuardedLoader)|os\.system\(|shell\s*=\s*True",
    re.MULTILINE,
)


def test_nothing_in_the_package_executes_what_a_file_holds():
    package = Path(paperlib.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        for match in FORBIDDEN.finditer(path.read_text(encoding="utf-8")):
            found.append(f"{path.relative_to(package)}: {match[0].strip()}")
    assert found == []
    assert issubclass(files._GuardedLoader, yaml.SafeLoader)
