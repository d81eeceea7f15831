"""Figures of scenes show each class once, with the numbers that were measured."""

import numpy as np
import pandas as pd
import pytest

from paperlib import figures
from paperlib.data import SceneDataset, SceneRecord


@pytest.mark.usefixtures("styled_figures")
def test_a_confusion_matrix_shows_shares_of_the_true_class(tmp_path):
    figure = figures.plot_confusion_matrix([[3, 1, 0], [0, 996, 4], [0, 0, 0]], ["a", "b", "c"])
    axis = figure.axes[0]
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axis.texts}
    written = {cell: text for cell, text in written.items() if text}
    # 0.4 % is not written, and the class without images has an empty row.
    assert written == {(0, 0): "75", (0, 1): "25", (1, 1): "100"}
    assert axis.collections[0].get_array()[0].tolist() == [75, 25, 0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]
    figures.write_figure(figure, tmp_path / "confusion.svg")


@pytest.mark.usefixtures("styled_figures")
def test_with_many_classes_only_large_shares_are_written():
    confusion = 50 * np.eye(45, dtype=int)
    confusion[0, 1:5] = [1, 2, 3, 10]
    axis = figures.plot_confusion_matrix(confusion.tolist(), [f"class {k}" for k in range(45)]).axes[0]
    assert sum(bool(text.get_text()) for text in axis.texts) == 45 + 1


@pytest.mark.usefixtures("styled_figures")
def test_the_curves_of_a_classifier_show_its_top_1_accuracy():
    history = pd.DataFrame({"epoch": [1, 2, 3], "loss": [2.0, 1.5, 1.2], "top1": [0.2, None, 0.5]})
    losses, accuracy = figures.plot_training_curves({"alone": history}).axes
    assert losses.lines[0].get_ydata().tolist() == [2, 1.5, 1.2]
    assert accuracy.lines[0].get_ydata().tolist() == [20, 50] and accuracy.get_ylabel() == "top-1 accuracy / %"


@pytest.mark.usefixtures("styled_figures")
def test_a_sheet_shows_examples_of_every_class_and_is_white_where_there_are_none():
    images = np.random.default_rng(0).integers(0, 100, (5, 8, 12, 3), dtype=np.uint8)
    records = [SceneRecord(f"{k}", image, min(k, 1)) for k, image in enumerate(images)]
    figure = figures.draw_scene_sheet(SceneDataset("made", ("one", "four"), records), per_class=2)
    first, second = (axis.images[0].get_array() for axis in figure.axes)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["one", "four"]
    assert first.shape == second.shape and (first[:, -50:] == 255).all() and (second[:, -50:] < 200).all()
