"""Several processes: one training shared by two, and what refuses to be shared."""

import json
import os
import socket

import pandas as pd
import pytest
import tiny
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.network_files import load_network
from paperlib.pruning import Sparsity
from paperlib.structure import module_digest
from paperlib.training.loop import HISTORY, LAST, fit
from paperlib.workbench.steps import Workbench


def train_share(rank, port, folder, epochs, batch_size, results):
    """Train as process `rank` of two, as `torchrun` would start it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port)}
    detector, recipe = tiny.detector(), tiny.recipe(epochs=epochs, batch_size=batch_size)
    options = {"validation": tiny.dataset("val", 4), "regulariser": Sparsity(1e-3), "folder": folder}
    try:
        history = fit(detector, tiny.dataset(), recipe, **options)
    except ValueError as error:
        results.put((rank, str(error), None))
    else:
        results.put((rank, module_digest(detector), history.epochs.drop(columns="seconds").fillna(-1.0)))


def train_in_two(folder, epochs=2, batch_size=4):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = tiny.processes.Queue()
    share = (port, folder, epochs, batch_size, results)
    pair = [tiny.processes.Process(target=train_share, args=(rank, *share)) for rank in range(2)]
    for process in pair:
        process.start()
    found = [results.get(timeout=120) for _ in pair]
    for process in pair:
        process.join(timeout=60)
    assert [process.exitcode for process in pair] == [0, 0], "a process has not come to its end"
    return [answer for _, *answer in sorted(found)]


def test_two_processes_end_with_the_same_weights_and_one_history(tmp_path):
    (weights, rows), (other_weights, other_rows) = train_in_two(tmp_path)
    assert weights == other_weights
    pd.testing.assert_frame_equal(rows, other_rows, check_exact=True)
    written = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert [row["loss"] for row in written] == list(rows["loss"])
    assert module_digest(load_network(tmp_path / LAST)) == weights
    # Started again, both find it done.
    assert train_in_two(tmp_path)[1][0] == weights


def test_a_batch_without_equal_shares_is_refused_by_every_process(tmp_path):
    refused = train_in_two(tmp_path, batch_size=3)
    assert refused[0] == refused[1]
    assert "tiny/train: a batch of 3 images has no equal shares for 2 processes" in refused[0][0]
    assert not list(tmp_path.iterdir())


def test_what_consists_of_many_steps_refuses_to_be_one_of_several(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for split, data in zip(("train", "val"), tiny.of_classes(tiny.dataset(), tiny.dataset("val", 4)), strict=True):
        tiny.write_coco(tmp_path, split, data, images=".")
    with pytest.raises(ValueError, match=r"one of 2 processes \(WORLD_SIZE\), and only pl.fit"):
        Workbench(*[tiny.dataset()] * 3, None, tiny.recipe(), tiny.recipe(), Sparsity(0.0))
    given = ["--data", str(tmp_path / "train.json"), "--val", str(tmp_path / "val.json")]
    result = CliRunner().invoke(app, ["compress", *given, "--out", str(tmp_path / "out"), "--image-size", "64"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert "start it without accelerate launch or torchrun" in result.stderr
    assert not (tmp_path / "out").exists()
