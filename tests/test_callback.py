"""`on_epoch` hears of every epoch once, and changes no number."""

from dataclasses import FrozenInstanceError

import pandas as pd
import pytest
import tiny

from paperlib.training import running
from paperlib.training.loop import fit

RECIPE = tiny.recipe(epochs=4, validate_every=2)


def train(folder, on_epoch=None, **options):
    data = {"dataset": tiny.dataset(count=4), "validation": tiny.dataset("val", 2)}
    return fit(tiny.detector(), **data, recipe=RECIPE, folder=folder, on_epoch=on_epoch, **options)


def test_it_hears_of_every_epoch_once_also_after_it_stopped_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "SECONDS_BETWEEN_STATES", 1e9)  # the training then starts from the beginning again
    heard = []

    def stop_at_three(report):
        heard.append(report)
        if report.epoch == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        train(tmp_path / "told", stop_at_three)
    told = train(tmp_path / "told", heard.append)
    silent = train(tmp_path / "silent")
    assert [report.epoch for report in heard] == [1, 2, 3, 4]
    assert [sorted(report.metrics) for report in heard] == [[], ["map", "map50"], [], ["map", "map50"]]
    pd.testing.assert_frame_equal(told.epochs.drop(columns="seconds"), silent.epochs.drop(columns="seconds"))
    for report, row in zip(heard, silent.epochs.to_dict("records"), strict=True):
        assert (report.epochs, report.loss, report.learning_rate) == (4, row["loss"], row["learning_rate"])
        assert dict(report.losses) == {name: row[name] for name in report.losses} and report.seconds > 0
    with pytest.raises(FrozenInstanceError):
        heard[0].epoch = 5


def test_a_training_that_starts_over_tells_its_epochs_again(tmp_path):
    heard = []
    for resume in (True, False):
        train(tmp_path, lambda report: heard.append(report.epoch), resume=resume)
    assert heard == [1, 2, 3, 4, 1, 2, 3, 4]
