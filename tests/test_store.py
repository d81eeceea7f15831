import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paperlib
from paperlib.store.store import FinishedSteps, Step, Store, UnfinishedError, canonical_json

STEP = Step("train", {"epochs": 3, "lr": 1e-3}, parents=("0" * 64,), data="d1", code="c1")

MAKER = """
import sys, time
from pathlib import Path
from paperlib.store.store import Step, Store

root, mode = Path(sys.argv[1]), sys.argv[2]

def make(folder):
    assert mode != "wait", "made a second time"
    with open(root / "calls", "a") as calls:
        calls.write("made\\n")
    (folder / "epoch_1").write_text("weights of epoch 1")
    print("started", flush=True)
    while mode == "hang" or not (root / "go").exists():
        time.sleep(0.01)

step = Step("train", {"lr": 1e-3, "epochs": 3}, parents=("0" * 64,), data="d1", code="c1")
print(Store(root).get_step(step, make), flush=True)
"""


@contextmanager
def maker(root: Path, mode: str = "") -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": str(Path(paperlib.__file__).parents[1])}
    command = [sys.executable, "-c", MAKER, str(root), mode]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def make_nothing(folder: Path) -> None:
    raise AssertionError(f"{folder} was made again")


def make_weights(folder: Path) -> None:
    (folder / "weights").write_text("all")


def test_two_processes_that_need_the_same_baseline_train_it_once(tmp_path: Path) -> None:
    with maker(tmp_path) as first:
        assert first.stdout.readline() == "started\n"
        with maker(tmp_path, "wait") as second:
            notice = second.stderr.readline()
            assert notice == f"waiting for another process that is making {STEP.name}\n"
            (tmp_path / "go").touch()
            outputs = [process.communicate() for process in (first, second)]
    folder = tmp_path / STEP.name
    assert outputs == [(f"{folder}\n", ""), (f"{folder}\n", "")]
    assert (tmp_path / "calls").read_text() == "made\n"
    assert (folder / "epoch_1").exists()


def test_a_step_killed_midway_continues_from_its_partial_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with maker(tmp_path, "hang") as process:
        assert process.stdout.readline() == "started\n"
        process.kill()
    assert not (tmp_path / STEP.name).exists()

    def resume(folder: Path) -> None:
        assert (folder / "epoch_1").read_text() == "weights of epoch 1"
        (folder / "epoch_2").touch()

    with caplog.at_level(logging.WARNING):
        folder = Store(tmp_path).get_step(STEP, resume)
    assert caplog.messages == [], "the dead process still holds the lock"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch_1", "epoch_2", "step.json"]
    assert json.loads((folder / "step.json").read_text())["resumed"] is True
    assert not list(tmp_path.glob("*.partial"))
    assert Store(tmp_path).get_step(STEP, make_nothing) == folder


def test_a_failing_make_leaves_no_finished_folder_and_keeps_its_work(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "epoch_1").touch()
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        Store(tmp_path).get_step(STEP, fail)
    partial = tmp_path / f"{STEP.name}.partial"
    assert str(partial) in caught.value.__notes__[0]
    assert (partial / "epoch_1").exists()
    assert not (tmp_path / STEP.name).exists()


def test_a_finished_step_says_what_made_it(tmp_path: Path) -> None:
    record = json.loads((Store(tmp_path).get_step(STEP, make_weights) / "step.json").read_text())
    assert Step(**record["step"]) == STEP
    assert record["digest"] == STEP.digest
    assert record.keys() >= {"finished", "wall_seconds", "versions", "machine"}


def test_an_empty_partial_folder_is_begun(tmp_path: Path) -> None:
    (tmp_path / f"{STEP.name}.partial").mkdir()
    assert (Store(tmp_path).get_step(STEP, make_weights) / "weights").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "distil"},
        {"settings": {"epochs": 4, "lr": 1e-3}},
        {"settings": {"epochs": 3, "lr": 1e-3 + 1e-18}},
        {"parents": ()},
        {"parents": ("1" * 64,)},
        {"data": "d2"},
        {"code": "c2"},
        {"libraries": STEP.libraries | {"torch": "0.0"}},
    ],
)
def test_a_change_in_what_made_a_step_makes_another_step(change: dict[str, object]) -> None:
    assert replace(STEP, **change).digest != STEP.digest


def test_the_order_of_settings_does_not_matter_but_that_of_parents_does() -> None:
    assert replace(STEP, settings=dict(reversed(STEP.settings.items()))).digest == STEP.digest
    teacher, assistant = "a" * 64, "b" * 64
    chain, reverse = (replace(STEP, parents=pair) for pair in ((teacher, assistant), (assistant, teacher)))
    assert chain.digest != reverse.digest


def test_a_step_keeps_its_settings_when_the_caller_changes_theirs() -> None:
    chosen = {"chain": [0.3, 0.5]}
    step = replace(STEP, settings=chosen)
    digest = step.digest
    chosen["chain"].append(0.7)
    assert step.digest == digest


def test_whole_numbers_may_be_keys_of_settings_as_in_json() -> None:
    by_number, by_text = (replace(STEP, settings={"rows": [{key: 4}]}) for key in (0, "0"))
    assert by_number.digest == by_text.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"a": {"lr": float("nan")}}}, r"train step, settings\.a\.lr: nan"),
        ({"settings": {"a": [object()]}}, r"train step, settings\.a\[0\]: a object"),
        ({"settings": {1.5: 2}}, "key 1.5 is not a string"),
        ({"settings": {1: 2, "1": 2}}, "key 1 is not a string"),
        ({"kind": "../train"}, r"step kind '\.\./train'"),
        ({"kind": "damaged-train"}, r"step kind 'damaged-train'"),
        ({"parents": "0" * 64}, "parent '0' is not the digest of a step"),
    ],
)
def test_what_cannot_identify_a_step_is_refused_by_its_place(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(STEP, **change)


def nested(leaves: st.SearchStrategy[object], keys: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    )


numbers = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = nested(st.none() | numbers | st.text(), st.text())
lookalikes = nested(st.sampled_from([0, 0.0, -0.0, False, 1, 1.0, True, None, "", "1", "null"]), st.sampled_from("ab"))


def with_types(value: object) -> object:
    """The value in a form that tells 1, 1.0 and True, and 0.0 and -0.0, apart."""
    if isinstance(value, dict):
        return {key: with_types(item) for key, item in value.items()}
    return [with_types(item) for item in value] if isinstance(value, list) else repr(value)


@settings(deadline=None)
@given(values)
def test_canonical_json_loses_nothing(value: object) -> None:
    assert with_types(json.loads(canonical_json(value))) == with_types(value)


@settings(deadline=None)
@given(lookalikes, lookalikes)
def test_canonical_json_is_equal_only_for_equal_values(one: object, other: object) -> None:
    assert (canonical_json(one) == canonical_json(other)) == (with_types(one) == with_types(other))


@settings(deadline=None)
@given(st.dictionaries(st.text(), values, min_size=2, max_size=4))
def test_canonical_json_forgets_the_order_of_keys(value: dict[str, object]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_one_and_one_point_nought_and_true_are_three_values() -> None:
    assert [canonical_json(value) for value in (1, 1.0, True)] == ["1", "1.0", "true"]


def test_a_store_that_only_looks_makes_nothing(tmp_path):
    step, looking = Step("train", {"epochs": 1}, (), "data", "code"), FinishedSteps(tmp_path)
    with pytest.raises(UnfinishedError, match=step.name):
        looking.get_step(step, pytest.fail)
    assert list(tmp_path.iterdir()) == []
    made = Store(tmp_path).get_step(step, lambda folder: (folder / "x").touch())
    assert looking.get_step(step, pytest.fail) == made
