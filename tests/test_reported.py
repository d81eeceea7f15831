"""The paper's numbers as transcribed: what follows by arithmetic does, and what does not is marked."""

import pandas as pd
import pytest
import torch

from paperlib.costs import cost
from paperlib.detectors import build_detector
from paperlib.figures import tables

NAMES = [f"table_{number}" for number in range(1, 8)]
TEXT = tables.load_reported("text")
SAYS_SO = TEXT.dropna(subset="table")


def worked_out(row):
    table = tables.load_reported(row["table"])[row["column"]]
    before, after = (table[int(row[place]) - 1] if row[place] == row[place] else None for place in ("before", "after"))
    return {"times": lambda: before / after, "points": lambda: after - before, "%": lambda: after}[row["unit"]]()


def test_every_table_of_the_paper_is_there_and_nothing_in_it_is_missing():
    rows = {name: len(tables.load_reported(name)) for name in NAMES}
    assert rows == dict(zip(NAMES, [4, 8, 8, 4, 8, 4, 2], strict=True))
    assert not any(tables.load_reported(name).isna().any(axis=None) for name in NAMES)


@pytest.mark.parametrize("row", [row for _, row in SAYS_SO.iterrows()], ids=lambda r: f"{r['place']} {r['subject']}")
def test_what_the_text_says_follows_from_the_tables_where_it_is_said_to(row):
    found, value = worked_out(row), float(row["value"])
    decimals = len(f"{value:g}".partition(".")[2])
    agrees = found > value if row["relation"] == ">" else round(found, decimals) == value
    assert agrees == (row["agrees"] == "yes"), found
    assert agrees or f"{found:.{1 if decimals == 0 and row['relation'] == '=' else 2}f}" in row["notes"]


def test_what_no_table_gives_says_so():
    assert TEXT.loc[TEXT["table"].isna(), "notes"].str.startswith("in no table").all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("table_1", 1), ("table_2", 1)),
        (("table_5", 1), ("table_2", 1)),
        (("table_5", 4), ("table_2", 3)),
        (("table_5", 5), ("table_2", 6)),
        (("table_5", 8), ("table_2", 8)),
    ],
)
def test_the_same_model_has_the_same_numbers_in_two_tables(one, other):
    first, second = (tables.load_reported(name).iloc[row - 1] for name, row in (one, other))
    assert first[["mb", "gflops", "map"]].tolist() == second[["mb", "gflops", "map"]].tolist()


@pytest.mark.parametrize(
    ("table", "row", "detector", "classes_of_size", "classes_of_compute"),
    [
        ("table_1", 0, "yolov3", 10, 10),
        ("table_2", 0, "yolov3", 10, 10),
        ("table_2", 3, "yolov4-tiny", 80, 10),
        ("table_2", 5, "yolov4", 80, 80),
        ("table_4", 0, "yolov4", 15, 80),
    ],
)
def test_a_baselines_size_and_compute_are_those_of_the_heads_that_the_readme_names(
    table, row, detector, classes_of_size, classes_of_compute
):
    reported = tables.load_reported(table).iloc[row]
    with torch.device("meta"):
        size = cost(build_detector(detector, classes_of_size)).size_mb
        gmacs = cost(build_detector(detector, classes_of_compute)).gmacs
    assert size == pytest.approx(reported["mb"], abs=0.051)
    assert 0 < reported["gflops"] / gmacs - 1 < 0.02  # normalisation and activations, beside


def test_table_7_has_the_columns_of_yolov4_and_yolov4_tiny_swapped():
    compute = tables.load_reported("table_2").set_index("method")["gflops"]
    times = tables.load_reported("table_7").set_index("dataset")
    assert compute["YOLOv4 (baseline)"] > 8 * compute["YOLOv4-tiny (baseline)"]
    assert (times["yolov4_tiny"] > 15 * times["yolov4"]).all()
    gains = pd.concat([times[name] / times[f"pruned_{name}"] for name in ("yolov3", "yolov4", "yolov4_tiny")])
    assert gains.between(1.75, 2.45).all()
