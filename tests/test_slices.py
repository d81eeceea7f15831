"""Edge cases: each slice holds what its rule says, judged by itself; a change is the same for every detector."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paperlib.data.corruptions import CORRUPTIONS, COVERED, GREY, VISIBLE, corrupt_dataset
from paperlib.data.records import Dataset, Record
from paperlib.data.slices import aspect_ratio, cut_by_border, is_small, measure_image, shape_slices, slices_of
from paperlib.evaluation.evaluate import evaluate
from paperlib.evaluation.metrics import compute_metrics, compute_slice_metrics
from paperlib.figures import tables

SIZE = (100, 80)


def record(name: str, boxes: list[list[float]], shade: int = 120, noise: int = 0) -> Record:
    spread = np.random.default_rng(0).integers(-noise, noise + 1, (SIZE[1], SIZE[0], 3))
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Record(name, (shade + spread).clip(0, 255).astype(np.uint8), array, np.ones(len(array), np.int64))


INNER, AT_EDGE, TINY = [20.0, 20, 40, 50], [90.0, 30, 100, 60], [60.0, 60, 62, 63]


@pytest.fixture
def data() -> Dataset:
    records = [
        record("plain", [INNER]),
        record("edge", [INNER, AT_EDGE]),
        record("dark", [INNER], shade=20),
        record("bright", [INNER], shade=230),
        record("noisy", [INNER], noise=40),
        record("crowd", [INNER, TINY, [1, 1, 9, 9], [70, 5, 85, 20]], noise=5),
    ]
    return Dataset("made", ("ship", "bridge"), records)


def perfect(dataset: Dataset, without: list[float] | None = None) -> list[dict[str, Tensor]]:
    answers = []
    for one in dataset.records:
        kept = [box.tolist() != without for box in one.boxes]
        boxes = torch.tensor(one.boxes[kept])
        answers.append(
            {"boxes": boxes, "labels": torch.ones(len(boxes)).long(), "scores": torch.full((len(boxes),), 0.9)}
        )
    return answers


def test_each_slice_holds_what_its_rule_says(data):
    names = [one.name for one in data.records]
    chosen = {part.name: [names[index] for index in part.images] for part in slices_of(data)}
    assert list(chosen) == [
        "all", "cut by the border", "small", "crowded", "low contrast", "dark", "bright", "cluttered background",
    ]  # fmt: skip
    assert chosen["dark"][0] == "dark" and chosen["bright"][-1] != "dark"
    assert "bright" in chosen["bright"] and "noisy" in chosen["cluttered background"]
    assert chosen["crowded"] == ["edge", "crowd"] and len(chosen["low contrast"]) == 2
    boxes = np.array([INNER, AT_EDGE, TINY])
    assert cut_by_border(boxes, SIZE).tolist() == [False, True, False]
    assert is_small(boxes, SIZE).tolist() == [False, False, True]
    assert cut_by_border(boxes[:0], SIZE).shape == is_small(boxes[:0], SIZE).shape == (0,)


def test_shapes_split_all_objects_by_size_and_by_aspect_ratio():
    data = Dataset("made", ("ship",), [record("all", [[0, 0, 10, 10], [0, 0, 30, 20], [9, 9, 69, 29], [0, 0, 80, 20]])])
    counts = {part.name: part.holds(data.records[0].boxes, SIZE).tolist() for part in shape_slices(data)}
    assert counts["smallest third"] == [True, False, False, False]
    assert counts["middle third"] == [False, True, False, False]
    assert counts["largest third"] == [False, False, True, True]
    assert counts["r < 1.5"] == [True, False, False, False]
    assert counts["r 1.5–3"] == [False, True, True, False]
    assert counts["r > 3"] == [False, False, False, True]
    assert counts["small or elongated"] == [True, False, False, True]
    assert counts["neither small nor elongated"] == [False, True, True, False]
    assert np.isinf(aspect_ratio(np.array([[3.0, 3, 3, 9]]))) and aspect_ratio(np.zeros((0, 4))).shape == (0,)


def test_spaced_images_lie_at_equal_distances_among_those_with_enough_objects(data):
    assert data.spaced_indices(3) == [0, 2, 4] and data.spaced_indices(4) == [0, 1, 2, 3]
    assert data.spaced_indices(99) == list(range(6))
    assert data.spaced_indices(9, min_objects=2) == [1, 5] and data.spaced_indices(9, max_objects=1) == [0, 2, 3, 4]
    assert data.spaced_indices(1, min_objects=2) == [1] and data.spaced_indices(1, min_objects=9) == []


def test_clutter_is_measured_beside_the_objects_only():
    busy, calm = record("a", [[0, 0, *SIZE]], noise=50), record("b", [INNER])
    assert measure_image(busy)[3] == 0 and measure_image(calm)[3] == 0
    assert measure_image(record("c", [INNER], noise=50))[3] > 10


def test_what_is_missed_in_a_slice_counts_there_and_nowhere_else(data):
    found = perfect(data, without=AT_EDGE)
    scores = {part.name: compute_slice_metrics(found, data, part, 0.5) for part in slices_of(data)}
    assert scores["cut by the border"]["map50"] < 0.6 and scores["cut by the border"]["objects"] == 2
    assert scores["small"] == {"map50": pytest.approx(1), "recall": 1.0, "images": 6, "objects": 1}
    assert scores["cut by the border"]["recall"] == 0.5
    timid = {part.name: compute_slice_metrics(found, data, part, 0.95) for part in slices_of(data)}
    assert timid["small"]["map50"] == pytest.approx(1) and timid["small"]["recall"] == 0.0
    counts = {name: scores[name]["objects"] for name in ("cut by the border", "small", "crowded")}
    missed = 1 + round((1 - scores["crowded"]["recall"]) * counts["crowded"])
    edges = replace(compute_metrics(found, data), slices=scores).edge_recall
    assert edges == pytest.approx(1 - missed / sum(counts.values()))
    with pytest.raises(ValueError, match="no slice was evaluated among cut by the border, small, crowded"):
        compute_metrics(found, data).edge_recall  # noqa: B018
    with pytest.raises(ValueError, match="slice covered was not evaluated"):
        compute_metrics(found, data).condition_recall  # noqa: B018
    recalls = {"covered": 0.4, "cluttered background": 0.6, "moved": 0.8, "darker": 0.1, "brighter": 0.3}
    conditions = replace(compute_metrics(found, data), slices={k: {"recall": v} for k, v in recalls.items()})
    assert conditions.condition_recall == pytest.approx(
        {"occlusion": 0.4, "clutter": 0.6, "out of view": 0.8, "light": 0.2, "conditions": 0.5}
    )
    assert scores["dark"]["map50"] == pytest.approx(1)
    assert scores["all"]["map50"] == compute_metrics(found, data).map50 < 1


def test_false_detections_count_only_in_the_slices_they_belong_to(data):
    found = perfect(data)
    found[0]["boxes"] = torch.cat([torch.tensor([[0.0, 60, 9, 79]]), found[0]["boxes"]])  # large, at the border
    found[0] |= {"labels": torch.ones(2).long(), "scores": torch.tensor([0.99, 0.9])}
    scores = {part.name: compute_slice_metrics(found, data, part, 0.5)["map50"] for part in slices_of(data)}
    assert scores["cut by the border"] < 1 and scores["all"] < 1
    assert scores["small"] == pytest.approx(1) and scores["crowded"] == pytest.approx(1)


def test_a_slice_without_objects_has_no_score(data):
    lonely = data.subset([0], "lonely")
    assert {p.name: compute_slice_metrics(perfect(lonely), lonely, p, 0.5) for p in slices_of(lonely)}["small"] is None


@pytest.mark.parametrize("change", CORRUPTIONS)
def test_a_change_is_the_same_each_time_and_leaves_the_original(data, change):
    before, digest = [one.read_pixels().copy() for one in data.records], data.digest
    first, second = corrupt_dataset(data, change), corrupt_dataset(data, change)
    assert first.digest == second.digest != digest and len(first) == len(data)
    for old, one, other in zip(before, first.records, second.records, strict=True):
        np.testing.assert_array_equal(one.read_pixels(), other.read_pixels())
        assert one.read_pixels().shape == old.shape and one.read_pixels().dtype == np.uint8 and one.size() == SIZE
    for one, old in zip(data.records, before, strict=True):
        np.testing.assert_array_equal(one.read_pixels(), old)
    if change != "moved":
        assert all((a.boxes == b.boxes).all() for a, b in zip(first.records, data.records, strict=True))


def test_a_change_does_what_it_is_called(data):
    (plain,) = (
        corrupt_dataset(data.subset([0], "one"), "darker").records,
        corrupt_dataset(data.subset([0], "one"), "brighter").records,
    )[:1]
    assert (plain[0].read_pixels() == 60).all()
    assert (corrupt_dataset(data, "brighter").records[0].read_pixels() == 240).all()
    covered = corrupt_dataset(data, "covered").records[0].read_pixels()[20:50, 20:40]
    assert ((covered == GREY).all(-1).mean()) == pytest.approx(COVERED, abs=0.08)
    assert (corrupt_dataset(data, "covered").records[0].read_pixels() == GREY).sum() == (covered == GREY).sum()


def test_moved_boxes_stay_on_their_objects_or_leave_with_them():
    pixels = np.full((80, 100, 3), 255, np.uint8)
    boxes = np.array(
        [[40, 30, 60, 50], [0, 0, 10, 10], [90, 70, 100, 80], [0, 70, 10, 80], [90, 0, 100, 10]], np.float32
    )
    for left, top, right, bottom in boxes.astype(int):
        pixels[top:bottom, left:right] = 0
    data = Dataset("made", ("x",), [Record("a", pixels, boxes, np.ones(5, np.int64))])
    (view,) = corrupt_dataset(data, "moved").records
    assert 1 <= len(view.boxes) < 5 and 0 < VISIBLE < 1
    for left, top, right, bottom in view.boxes.astype(int):
        assert (view.read_pixels()[top:bottom, left:right] == 0).all()
    assert (view.read_pixels() == 0).all(-1).sum() == sum(np.prod(b[2:] - b[:2]) for b in view.boxes)
    with pytest.raises(ValueError, match="unknown change 'upside down'; known: darker, brighter, covered, moved"):
        corrupt_dataset(data, "upside down")


class Finder(nn.Module):
    """Finds a ship wherever pixels are darker than a threshold, as one box; the threshold is what it has learnt."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        answers = []
        for image in images:
            rows, columns = (image[0] < self.threshold).nonzero(as_tuple=True)
            found = len(rows) > 0
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if found else []
            boxes = torch.tensor(box, dtype=torch.float32).reshape(-1, 4)
            answers.append({"boxes": boxes, "labels": torch.ones(len(boxes)).long(), "scores": torch.ones(len(boxes))})
        return answers


def test_evaluate_reports_slices_and_changes_side_by_side_for_several_detectors():
    records = []
    for number in range(8):
        pixels = np.full((64, 64, 3), 200, np.uint8)
        pixels[20:40, 16 + number : 36 + number] = 50
        box = np.array([[16 + number, 20, 36 + number, 40]], np.float32)
        records.append(Record(f"{number}", pixels, box, np.array([1])))
    data = Dataset("made", ("ship",), records)
    bold, timid = (evaluate(Finder(t), data, image_size=64, slices=True) for t in (0.35, 0.11))
    assert evaluate(Finder(0.35), data, image_size=64).slices == {}
    assert bold.slices["all"] == {"map50": pytest.approx(1), "recall": 1.0, "images": 8, "objects": 8}
    assert bold.slices["darker"]["map50"] == pytest.approx(1) and bold.slices["brighter"]["map50"] == 0
    assert timid.slices["all"]["map50"] == 0 and timid.slices["darker"]["map50"] == pytest.approx(1)
    assert "small" not in bold.slices and "cut by the border" not in bold.slices
    table = tables.tabulate_slices({"before": bold, "after": timid})
    assert table.columns.tolist() == ["slice", "images", "objects", "before: mAP / %", "after: mAP / %"]
    assert table["slice"].tolist() == list(bold.slices)
    assert [*evaluate(Finder(0.35), data, image_size=64, slices=["shapes"]).slices] == [
        "largest third", "r < 1.5", "neither small nor elongated",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="unknown group of slices 'size'; known: edge cases, shapes, corruptions"):
        evaluate(Finder(0.35), data, image_size=64, slices=["size"])
    assert table.set_index("slice").loc["darker"].tolist() == [8, 8, 100.0, 100.0]
