"""Several processes: one training shared by two, the steps of the store, `compress`, and what is refused."""

import json
import os
import signal

import pandas as pd
import pytest
import tiny
import torch
from ranks import run_ranks
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.compression import command, outputs
from paperlib.compression.request import CompressRequest
from paperlib.data import Dataset, Record
from paperlib.data.toy.aerial import CLASSES
from paperlib.evaluation.evaluate import evaluate
from paperlib.experiments.parameters import load_profile, profile_path
from paperlib.experiments.study import Study
from paperlib.network_files import load_network
from paperlib.progress import group
from paperlib.pruning import Sparsity
from paperlib.store.store import Step, Store
from paperlib.structure import module_digest
from paperlib.training import running
from paperlib.training.folder import HISTORY, LAST
from paperlib.training.loop import fit
from paperlib.training.shares import average_statistics_, require_equal_shares

STEP = Step("new", {"seed": 0}, (), "", "code", {})
SHARED = Step("train", {"processes": 2}, (), "", "code", {})


class Watched(Dataset):
    """A data set that notes which images a process takes, and kills it when it takes them for the `fatal`th time."""

    taken: list
    fatal: int = 0

    def draw_batch(self, indices, *arguments):
        self.taken.append(indices.tolist())
        if len(self.taken) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw_batch(indices, *arguments)


def watched(fatal=0):
    plain = tiny.dataset()
    made = Watched(plain.name, plain.classes, plain.records)
    made.taken, made.fatal = [], fatal
    return made


def validation_images():
    """Return two batches of images, one for each process."""
    scenes = tiny.drawn("val", 4)
    return Dataset("tiny/val", CLASSES, [Record(f"{index}", *scenes[index % 4]) for index in range(18)])


def train_share(rank, folder, killed=()):
    """Train three epochs of two batches; processes `killed` end in the middle of the second epoch."""
    running.SECONDS_BETWEEN_STATES = 0
    detector, data = tiny.detector(), watched(fatal=4 if rank in killed else 0)
    options = {"validation": validation_images(), "regulariser": Sparsity(1e-3), "folder": folder}
    history = fit(detector, data, tiny.recipe(epochs=3, batch_size=4, validate_every=1), **options)
    return module_digest(detector), history.epochs.drop(columns="seconds"), data.taken


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    answers, statuses = run_ranks(train_share, folder)
    assert statuses == [0, 0], answers
    return folder, answers


def test_two_processes_end_with_the_same_weights_and_one_history(shared):
    folder, [(weights, rows, taken), (other_weights, other_rows, other_taken)] = shared
    assert weights == other_weights == module_digest(load_network(folder / LAST))
    pd.testing.assert_frame_equal(rows, other_rows, check_exact=True)
    written = [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]
    assert [row["loss"] for row in written] == list(rows["loss"])
    # Each epoch covers every image once: four batches of two images, two by each process.
    for epoch in range(3):
        batches = [each for part in (taken, other_taken) for each in part[2 * epoch : 2 * epoch + 2]]
        assert sorted(index for batch in batches for index in batch) == list(range(8))


def test_shared_validation_gives_the_digits_of_one_process(shared):
    folder, [(_, rows, _), _] = shared
    alone = evaluate(load_network(folder / LAST), validation_images(), image_size=tiny.SIDE)
    assert rows["map50"].iloc[-1] == alone.map50


@pytest.mark.parametrize("killed", [(0,), (1,), (0, 1)])
def test_after_a_kill_none_hangs_and_the_training_continues_to_the_same_bits(shared, tmp_path, killed):
    _, [(weights, _, _), _] = shared
    answers, statuses = run_ranks(train_share, tmp_path, killed)
    assert all(statuses), "a process ended as if all were done"
    assert not (tmp_path / LAST).exists()
    survivors = [answer for rank, answer in enumerate(answers) if rank not in killed]
    assert all(answer.startswith("LostProcessError: another of the 2 processes has ended") for answer in survivors)
    resumed, statuses = run_ranks(train_share, tmp_path)
    assert statuses == [0, 0]
    assert [answer[0] for answer in resumed] == [weights, weights]
    assert len(resumed[0][2]) == 4, "the first epoch was not kept"


def memorise(rank, folder):
    """Train on eight images until they are known; return the mAP on these."""
    data, detector = tiny.of_one_class(tiny.dataset()), tiny.detector(width=0.2, num_classes=1)
    still = {"symmetries": False, "zoom": 1.0, "shift": 0.0, "schedule": "cosine"}
    recipe = tiny.recipe(epochs=60, batch_size=8, learning_rate=2e-2, validate_every=60, **still)
    return fit(detector, data, recipe, validation=data, folder=folder).epochs["map50"].iloc[-1]


def test_two_processes_learn_as_well_as_one(tmp_path):
    answers, statuses = run_ranks(memorise, tmp_path / "two")
    assert statuses == [0, 0] and answers[0] == answers[1] > 0.4, answers
    # Two seeds of one process are 0.09 apart.
    assert abs(memorise(0, tmp_path / "one") - answers[0]) < 0.1


def fail_alone(rank, folder):
    """Let the second process fail in the middle of an epoch; return how each ends, and whether it tells why."""
    data = watched()
    if rank == 1:
        data.draw_batch = lambda *_: open(folder / "missing.png")
    try:
        fit(tiny.detector(), data, tiny.recipe(), folder=folder)
    except (OSError, group.LostProcessError) as error:
        return type(error).__name__, group.may_speak()


def test_an_error_in_one_process_ends_both_and_is_told_once(tmp_path):
    answers, _ = run_ranks(fail_alone, tmp_path)
    assert answers == [("LostProcessError", False), ("FileNotFoundError", True)]


def die_alone(rank, folder):
    """Let the first process be killed while it makes a step for both."""
    group.join_group()
    Store(folder).get_step(STEP, lambda _: os.kill(os.getpid(), signal.SIGKILL))


def test_if_the_first_is_killed_in_a_step_of_its_own_the_other_ends_and_no_step_is_made(tmp_path):
    [_, answer], statuses = run_ranks(die_alone, tmp_path)
    assert answer.startswith("LostProcessError") and all(statuses)
    assert not (tmp_path / STEP.name).exists()


def train_every_detector(rank):
    digests = []
    for name in tiny.QUICK:
        detector = tiny.quick(name, 10)
        fit(detector, tiny.dataset(count=4), tiny.recipe(epochs=1), resume=False)
        digests.append(module_digest(detector))
    return digests


def test_all_six_detectors_train_in_two_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path))
    [digests, others], statuses = run_ranks(train_every_detector)
    assert statuses == [0, 0], digests
    assert digests == others and len(set(digests)) == 6


def differ(rank, folder):
    """Do what is not the same in both processes, one after the other; return the messages."""
    found = []

    def attempt(work):
        try:
            found.append(work())
        except (ValueError, OSError) as error:
            found.append(f"{error}")

    group.join_group()
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean += rank
    average_statistics_(norm, running._new_accelerator("no"))
    found.append(norm.running_mean.tolist())
    options = {"folder": folder / "fit"}
    attempt(lambda: fit(tiny.detector(), tiny.dataset(), tiny.recipe(batch_size=3), **options))
    attempt(lambda: fit(tiny.detector(rank), tiny.dataset(), tiny.recipe(), **options))
    running.code_digest = lambda *parts: f"code of process {rank}"
    attempt(lambda: fit(tiny.detector(), tiny.dataset(), tiny.recipe(), **options))
    store = Store(folder / "store")
    attempt(lambda: store.get_step(Step("train", {"epochs": rank}, (), "", f"code {rank}", {}), print))

    def fail(step):
        raise OSError(f"process {rank} cannot write")

    def make(step):
        (step / f"by-{rank}").touch()

    attempt(lambda: store.get_step(STEP, fail))
    attempt(lambda: sorted(path.name for path in store.get_step(STEP, make).iterdir()))
    attempt(lambda: sorted(path.name for path in store.get_step(SHARED, make).iterdir()))
    return found


def test_what_differs_is_refused_by_both_and_what_the_first_does_is_told_to_the_other(tmp_path):
    [found, others], statuses = run_ranks(differ, tmp_path)
    assert statuses == [0, 0], found
    assert found == others
    means, batch, weights, code, step, failed, made, together = found
    assert means == [0.5, 0.5]
    assert "tiny/train: a batch of 3 images has no equal shares for 2 processes" in batch
    start = "training: process 1 differs from process 0 in"
    assert weights.startswith(f"{start} initial weights; start all with the same code")
    assert code.startswith(f"{start} code; ")
    assert step.startswith("train step: process 1 differs from process 0 in code, the setting epochs; ")
    assert failed == "process 0 cannot write"
    assert made == ["by-0", "step.json"]
    assert together == ["by-0", "by-1", "step.json"]


@pytest.mark.parametrize(
    ("images", "batch", "fault"),
    [
        (3, 8, "3 images are fewer than 4 processes; start fewer"),
        (8, 2, "a batch of 2 images has no equal shares for 4 processes; choose a batch_size that is a multiple of 4"),
        (6, 8, "a batch of 6 images has no equal shares for 4 processes"),
        (8, 8, ""),
    ],
)
def test_each_process_needs_an_equal_share_of_a_batch(images, batch, fault):
    try:
        require_equal_shares(tiny.dataset(count=images), tiny.recipe(batch_size=batch), 4)
    except ValueError as error:
        assert fault and fault in str(error)
    else:
        assert not fault


def compress(rank, options):
    """Compress, without the files that take long to write."""
    torch.set_num_threads(1)
    outputs.installed_runtimes = lambda: ["torch"]
    outputs.export_onnx = lambda *_, **__: {}["not in this test"]
    outputs.Report.render_html = outputs.Report.render_markdown = lambda _: ""
    return command.run_compression(CompressRequest(**options))


def test_compress_in_two_processes(tmp_path):
    for split, data in zip(("train", "val"), tiny.of_classes(tiny.dataset(), tiny.dataset("val", 4)), strict=True):
        tiny.write_coco(tmp_path, split, data, images=".")
    options = {"data": tmp_path / "train.json", "val": tmp_path / "val.json", "out": tmp_path / "out"}
    options |= {"image_size": 64, "width": 0.1, "epochs": 2, "fine_tune_epochs": 1, "batch_size": 4, "step": 0.5}
    options |= {"precision": "no", "min_keep_ratio": 0.4, "max_drop": 1, "timing_seconds": 0.01, "budget": "10m"}
    answers, statuses = run_ranks(compress, options)
    assert (answers, statuses) == ([1, 0], [0, 0])  # only the first missed student.onnx
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    steps = [json.loads((folder / "step.json").read_text()) for folder in (tmp_path / "out/steps").glob("*-*[0-9a-f]")]
    trained = [made["step"]["settings"]["processes"] for made in steps if made["step"]["kind"] in ("train", "distil")]
    assert len(trained) >= 4 and set(trained) == {2}
    assert set(provenance["steps"]) <= {made["digest"] for made in steps}
    student = load_network(tmp_path / "out" / "student.safetensors")
    assert evaluate(student, tiny.dataset("val", 4), image_size=64)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["reproduce"], "a batch cannot be shared by 2 processes (WORLD_SIZE); start it once: --jobs"),
        (["compress", "--data", "a.json", "--out", "out"], "WORLD_SIZE is 2, but RANK is not set; use torchrun"),
    ],
)
def test_what_cannot_run_in_several_processes_says_so_in_one_line(monkeypatch, arguments, line):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert line in result.stderr


def test_a_notebook_refuses_to_be_one_of_several_processes(monkeypatch):
    settings = load_profile("00_start_here", profile_path("00_start_here", "quick"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="00_start_here cannot be shared by 2 processes .*; start it alone"):
        Study("00_start_here", settings)
