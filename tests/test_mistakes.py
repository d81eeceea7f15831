"""What a detector gets wrong is counted as one would count it by hand."""

import json

import numpy as np
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.data.records import Dataset, Record
from paperlib.deploy.description import Description
from paperlib.detectors.files import save_detector
from paperlib.evaluation.evaluate import evaluate
from paperlib.evaluation.metrics import compute_metrics
from paperlib.evaluation.mistakes import count_confusions, find_mistakes, precision_recall_curves

CLASSES = ("ship", "plane")
BOXES = [[0, 0, 10, 10], [20, 20, 40, 40], [60, 60, 80, 80]]


def dataset(boxes, labels):
    record = Record(
        "a", np.zeros((100, 100, 3), np.uint8), np.array(boxes, np.float32).reshape(-1, 4), np.array(labels)
    )
    return Dataset("hand-made", CLASSES, [record])


def found(boxes, labels, scores):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return [{"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.long), "scores": torch.tensor(scores)}]


def test_confusions_and_mistakes_of_a_picture_counted_by_hand():
    truth = dataset(BOXES, [1, 2, 2])
    # A ship that is found, a plane taken for a ship, a box on nothing, and one with too low a score.
    answer = found([BOXES[0], BOXES[1], [0, 80, 10, 90], BOXES[2]], [1, 1, 2, 2], [0.9, 0.8, 0.7, 0.1])
    assert count_confusions(answer, truth, 0.5).tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    (mistakes,) = find_mistakes(answer, truth, 0.5)
    assert mistakes.missed.tolist() == [False, True, True]
    assert mistakes.false.tolist() == [False, True, True]
    assert mistakes.count == 4


def test_an_object_is_found_once_by_the_best_detection():
    truth = dataset(BOXES[:1], [1])
    answer = found([[0, 0, 9, 10], BOXES[0]], [1, 1], [0.6, 0.9])
    (mistakes,) = find_mistakes(answer, truth, 0.5)
    assert mistakes.scores.tolist() == [np.float32(0.9), np.float32(0.6)]
    assert mistakes.false.tolist() == [False, True]
    recall, precision = precision_recall_curves(answer, truth)["ship"]
    assert recall.tolist() == [1, 1] and precision.tolist() == [1, 0.5]


def test_nothing_found_and_nothing_there_are_no_mistakes():
    truth = Dataset("both", CLASSES, [*dataset(BOXES, [1, 1, 1]).records, *dataset([], np.zeros(0, int)).records])
    nothing = found([], [], [])
    assert count_confusions(nothing * 2, truth, 0.5)[0].tolist() == [0, 0, 3]
    assert [each.count for each in find_mistakes(nothing * 2, truth, 0.5)] == [3, 0]


@given(st.data())
def test_rows_and_columns_add_up_and_the_curves_end_agrees_with_precision_and_recall(data):
    count = data.draw(st.integers(1, 6))
    corner = st.tuples(st.integers(0, 60), st.integers(0, 60))
    draw = lambda n: [[x, y, x + 20, y + 20] for x, y in data.draw(st.lists(corner, min_size=n, max_size=n))]  # noqa: E731
    labels = data.draw(st.lists(st.integers(1, 2), min_size=count, max_size=count))
    truth = dataset(draw(count), labels)
    n = data.draw(st.integers(0, 6))
    answer = found(
        draw(n), data.draw(st.lists(st.integers(1, 2), min_size=n, max_size=n)), [1 - 0.1 * i for i in range(n)]
    )
    matrix = count_confusions(answer, truth, 0.55)
    kept = int((answer[0]["scores"] >= 0.55).sum())
    assert matrix[:2].sum(1).tolist() == [labels.count(1), labels.count(2)]
    assert matrix[:, :2].sum() == kept and matrix[2, 2] == 0
    curves = precision_recall_curves(answer, truth)
    metrics = compute_metrics(answer, truth, 0.0)
    ends = [(precision[-1], recall[-1]) if len(recall) else (0, 0) for recall, precision in curves.values()]
    assert np.allclose(np.mean(ends, 0), [metrics.precision, metrics.recall])


def test_the_command_judges_a_file_and_shows_where_it_goes_wrong(tmp_path):
    shown = tiny.dataset("val", count=4)
    images, annotations = [], []
    for number, record in enumerate(shown.records):
        Image.fromarray(record.read_pixels()).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": tiny.SIDE, "height": tiny.SIDE})
        for (left, top, right, bottom), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            entry = {"id": len(annotations), "image_id": number, "category_id": label, "bbox": box, "iscrowd": 0}
            annotations.append(entry)
    categories = [{"id": label, "name": name} for label, name in enumerate(tiny.CLASSES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    use = Description(classes=tiny.CLASSES, image_size=tiny.SIDE)
    save_detector(tiny.detector(), tmp_path / "model.safetensors", use=use.to_properties())
    arguments = [
        "evaluate",
        str(tmp_path / "model.safetensors"),
        str(tmp_path / "val.json"),
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    expected = evaluate(tiny.detector().eval(), shown, image_size=tiny.SIDE)
    assert metrics["map50"] == expected.map50
    assert sum(map(sum, json.loads((tmp_path / "out" / "confusion.json").read_text())["counts"])) >= len(annotations)
    drawn = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert drawn == {"figure_confusion.png", "figure_precision_recall.png", "figure_worst_images.png"}
    content["categories"].reverse()  # matched by name, not by place
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["map50"] == expected.map50
    # A bad box and one of another class are refused, until an option says what becomes of them.
    content["categories"].append({"id": 99, "name": "other"})
    content["annotations"].append(content["annotations"][0] | {"id": 998, "category_id": 99})
    content["annotations"].append(content["annotations"][0] | {"id": 999, "bbox": [-50, -50, 20, 20]})
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert CliRunner().invoke(app, arguments).exit_code == 2
    mended = CliRunner().invoke(app, [*arguments, "--bad-boxes", "skip", "--classes", ",".join(tiny.CLASSES)])
    assert mended.exit_code == 0, mended.output
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["map50"] == expected.map50
    content["annotations"] = content["annotations"][:-2]
    content["categories"].pop()
    content["categories"][-1]["name"] = "other"
    (tmp_path / "val.json").write_text(json.dumps(content))
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2 and f"val.json: lists no category {tiny.CLASSES[0]!r}" in refused.stderr
