"""The rows of the notebook on dynamic distillation: each is defined, and each table shows rows that there are."""

from typing import get_args

import pandas as pd
import pytest

from paperlib.distillation.methods import choose_options
from paperlib.evaluation.metrics import Metrics
from paperlib.experiments.dynamic import PARTS, ROWS, T1, TABLES, compare_detectors, compare_hard
from paperlib.experiments.parameters import DynamicRow
from paperlib.workbench.options import DistillationOptions, TeachingOptions


def test_every_row_that_a_profile_can_name_is_defined_and_stands_in_a_table():
    assert set(ROWS) == set(get_args(DynamicRow))
    shown = {name for names in TABLES.values() for name in names}
    assert set(ROWS) <= shown <= {*ROWS, *T1}


@pytest.mark.parametrize("name", [*PARTS, *ROWS])
def test_the_settings_of_a_row_are_settings_of_its_method(name):
    method, changes = "dynamic", {**PARTS, **ROWS}[name]
    method = changes.get("how", method)
    usual = {"bounded": DistillationOptions(), "dynamic": TeachingOptions().dynamic_options()}.get(method)
    options = choose_options(method, usual, {key: value for key, value in changes.items() if key != "how"})
    assert name in ("DKD", "Eqs. 10–12", "GID", "DKD through the assistant") or options != usual


def test_hard_objects_are_compared_with_the_others():
    slices = {"small or elongated": {"map50": 0.25}, "neither small nor elongated": {"map50": 0.625}}
    metrics = Metrics(0.5, 0.5, 0.5, 0.5, 0.5, {}, slices)
    assert compare_hard(metrics) == -0.375
    with pytest.raises(ValueError, match="no slice 'small or elongated' was evaluated"):
        compare_hard(Metrics(0.5, 0.5, 0.5, 0.5, 0.5, {}))


def test_the_gain_of_each_detector_is_that_over_the_control_that_takes_as_long():
    means = {"teacher": 0.6, "fine-tuned longer": 0.41, "DKD": 0.43, "yolov4 teacher": 0.5}
    means |= {"yolov4 fine-tuned longer": 0.38, "yolov4 DKD": 0.37}
    rows = [(name, mean + shift) for name, mean in means.items() for shift in (-0.01, 0.01)]
    table = compare_detectors(pd.DataFrame(rows, columns=["model", "map50"]), {"": "yolov4-tiny", "yolov4": "yolov4"})
    assert table.to_numpy().tolist() == [["yolov4-tiny", 60, 41, 43, 2], ["yolov4", 50, 38, 37, -1]]
