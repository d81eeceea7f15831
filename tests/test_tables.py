"""Tables for programs and for people, and the paper's own."""

import csv
import io

import pandas as pd
import pytest

from paperlib.evaluation.metrics import Metrics
from paperlib.figures import tables


@pytest.fixture
def runs():
    rows = [("SCP", 0, 0.60, 1.0), ("SCP", 1, 0.64, 1.2), ("baseline", 0, 0.7, 4.0), ("baseline", 1, 0.7, 4.0)]
    frame = pd.DataFrame(rows, columns=["model", "seed", "map50", "mb"])
    return frame.assign(gmacs=0.1234, precision=0.5, recall=0.25, map=0.3)


def test_over_seeds_gives_mean_and_sample_deviation_in_the_order_of_appearance(runs):
    table = tables.average_seeds(runs)
    assert list(table["model"]) == ["SCP", "baseline"]
    assert list(table["seeds"]) == [2, 2]
    assert table["map50"].tolist() == pytest.approx([0.62, 0.7], rel=1e-12)
    assert table["map50_sd"].tolist() == pytest.approx([0.04 / 2**0.5, 0.0], abs=1e-12)
    assert table["mb"].tolist() == pytest.approx([1.1, 4.0], rel=1e-12)
    assert list(tables.average_seeds(runs, ["baseline"])["model"]) == ["baseline"]


def test_in_words_a_spread_is_given_where_there_are_seeds_to_spread(runs):
    many, one = tables.average_seeds(runs), tables.average_seeds(runs[runs["seed"] == 0])
    assert tables.format_averages(many)["mAP / %"].tolist() == ["62.0 ± 2.8", "70.0 ± 0.0"]
    assert tables.format_averages(one)["mAP / %"].tolist() == ["60.0", "70.0"]
    assert tables.format_averages(one)["GMACs"].tolist() == [0.123, 0.123]


def test_a_class_has_its_boxes_and_its_spread_over_the_seeds():
    found = [Metrics(0, 0, 0, 0, 0.5, {"ship": score, "tank": 0.25}) for score in (0.5, 0.7)]
    table = tables.tabulate_classes({"whole": found, "cut": found[:1]}, {"ship": 3, "tank": 5})
    assert table.to_dict("list") == {
        "class": ["ship", "tank"],
        "boxes": [3, 5],
        "whole: AP / %": ["60.0 ± 14.1", "25.0 ± 0.0"],
        "cut: AP / %": ["50.0", "25.0"],
    }


def test_csv_keeps_every_digit(runs):
    table = tables.average_seeds(runs)
    written = list(csv.DictReader(io.StringIO(tables.render_table(table)["csv"])))
    assert [float(row["map50_sd"]) for row in written] == table["map50_sd"].tolist()
    assert [row["model"] for row in written] == table["model"].tolist()


def test_the_papers_tables_are_at_hand_and_others_are_named():
    assert tables.load_reported("table_1").iloc[-1].tolist() == ["yes", "no", "yes", 9.4, 9.7, 81.3]
    with pytest.raises(FileNotFoundError, match=r"table_99\.csv"):
        tables.load_reported("table_99")


def test_markdown_is_not_padded_and_has_numbers_on_the_right():
    table = pd.DataFrame(
        {"model": ["SCP", "baseline"], "MB": [0.5, 12.25], "change": ["−0.7 ± 0.5", "–"], "section": "4.4.1"}
    )
    assert tables.to_markdown(table).splitlines() == [
        "| model | MB | change | section |",
        "| --- | ---: | ---: | --- |",
        "| SCP | 0.5 | −0.7 ± 0.5 | 4.4.1 |",
        "| baseline | 12.25 | – | 4.4.1 |",
    ]
    assert tables.to_markdown(table.head(0)).splitlines()[1] == "| --- | --- | --- | --- |"
