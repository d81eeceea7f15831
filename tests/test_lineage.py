"""What a result rests on is found through the store."""

import json

import pytest

from paperlib.store.store import Step, Store
from paperlib.training.folder import HISTORY
from paperlib.workbench.lineage import steps_behind, training_seconds


@pytest.fixture
def chain(tmp_path):
    """A start, two trainings from it, and a distillation of one by the other."""
    store = Store(tmp_path)

    def make(kind, *parents, seconds=()):
        def fill(folder):
            if seconds:
                (folder / HISTORY).write_text("".join(json.dumps({"seconds": each}) + "\n" for each in seconds))

        step = Step(kind, {"seconds": list(seconds)}, tuple(parent for parent, _ in parents), "", "")
        return step.digest, store.get_step(step, fill)

    new = make("new")
    teacher, student = make("train", new, seconds=[1.0, 2.0]), make("train", new, seconds=[4.0])
    return new, teacher, student, make("distil", student, teacher, seconds=[8.0])


def test_every_training_behind_a_result_counts_once(chain):
    _, teacher, student, distilled = (folder for _, folder in chain)
    assert training_seconds([distilled]) == training_seconds([distilled, teacher, distilled]) == 15.0
    assert training_seconds([teacher]) == 3.0
    assert {folder for folder, _ in steps_behind([student])} == {chain[0][1], student}


def test_an_ancestor_that_is_gone_is_named(chain):
    chain[0][1].rename(chain[0][1].with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=f"no finished step {chain[0][0][:16]}"):
        training_seconds([chain[-1][1]])
