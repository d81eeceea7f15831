"""Detectors side by side: what the figures rest on is right, and each says what its axes show."""

import pandas as pd
import pytest
import tiny

from paperlib import figures
from paperlib.evaluation.evaluate import Metrics
from paperlib.pruning import apply_plan, plan_pruning

BOXES = {"ship": 3, "tank": 5}
PARTS = ("all", "cut by the border", "small", "crowded", "darker")


pytestmark = pytest.mark.usefixtures("styled_figures")


def frame(**columns):
    names = ["a baseline", "a pruned", "a compressed", "b baseline"]
    fixed = {"model": names, "case": ["a", "a", "a", "b"], "mb": [4.0, 1.0, 1.0, 30.0], "gmacs": [2.0, 1.0, 1.0, 9.0]}
    return pd.DataFrame({**fixed, "map50": [0.6, 0.2, 0.5, 0.7], **columns})


def judged(score):
    slices = {part: {"map50": score, "recall": score, "images": 3, "objects": 5} for part in PARTS}
    return Metrics(score, score, score, score, 0.5, {"ship": score, "tank": score / 2}, slices)


def pruned_tiny():
    whole = tiny.detector()
    return {"whole": whole, "cut": apply_plan(whole, plan_pruning(whole, 0.5))}


def speeds():
    kinds = (("torch", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"))
    rows = [(model, *kind, 2.0, 0.6) for model in ("a cut", "b cut") for kind in kinds]
    return pd.DataFrame(rows, columns=["model", "runtime", "precision", "speedup", "macs_saved"])


DRAWINGS = {
    "accuracy over size": lambda: figures.plot_accuracy_over_size(pd.concat([frame(), frame(map50=0.4)])),
    "shares": lambda: figures.plot_share_bars(figures.compute_shares(frame(), {"a": ("a compressed", "a baseline")})),
    "channels": lambda: figures.plot_channels_left(figures.count_channels(pruned_tiny())),
    "edge cases": lambda: figures.plot_edge_cases({"a": judged(0.4), "b": judged(0.5)}),
    "classes": lambda: figures.plot_class_scores({"a": [judged(0.4), judged(0.6)], "b": [judged(0.7)]}, BOXES),
    "speed": lambda: figures.plot_speed_bars(speeds(), ["a cut", "b cut"]),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_drawn_without_a_warning_and_names_what_its_axes_show(name, tmp_path):
    figure = DRAWINGS[name]()
    figures.write_figure(figure, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000
    assert all(axis.get_xlabel() for axis in figure.axes)


def test_a_class_stands_at_the_mean_of_the_seeds_and_says_how_many_boxes_judge_it():
    figure = figures.plot_class_scores({"a": [judged(0.4), judged(0.6)], "b": [judged(0.7)]}, BOXES)
    [axis] = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ship (3)", "tank (5)"]
    marks = {line.get_label(): line.get_xdata().tolist() for line in axis.get_lines()}
    assert marks == {"a": pytest.approx([50, 25]), "b": pytest.approx([70, 35])}


def test_shares_are_of_the_models_own_original():
    pairs = {"a 50%": ("a compressed", "a baseline"), "b": ("b baseline", "b baseline")}
    shares = figures.compute_shares(frame(), pairs)
    assert shares["model"].tolist() == ["a 50%", "b"]
    assert shares["size_share"].tolist() == [0.25, 1] and shares["compute_share"].tolist() == [0.5, 1]


def test_channels_stand_in_the_order_of_the_layers():
    pruned = pruned_tiny()
    channels = figures.count_channels(pruned).set_index("layer")
    assert (channels["cut"] <= channels["whole"]).all() and channels["cut"].sum() < channels["whole"].sum()
    assert channels["cut"]["neck.conv"] == pruned["cut"].get_submodule("neck.conv").out_channels
