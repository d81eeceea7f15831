"""`paperlib evaluate` on scenes: the metrics of a classifier's file, or one line that says why there are none."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from typer.testing import CliRunner

from paperlib.classifiers import build_classifier
from paperlib.cli.main import app
from paperlib.data import load_dataset
from paperlib.deploy.description import Description
from paperlib.evaluation.evaluate import evaluate
from paperlib.network_files import save_network

CLASSES = ("beach", "forest", "river")
SIDE = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with classifiers, a detector, and scenes of three classes for two splits."""
    root = tmp_path_factory.mktemp("scenes")
    torch.manual_seed(0)
    network = build_classifier("resnet50", 3, width=0.125, depth=0.1).eval()
    use = Description(classes=CLASSES, image_size=SIDE).to_properties()
    save_network(network, root / "model.safetensors", use=use)
    save_network(network, root / "silent.safetensors")
    save_network(build_classifier("resnet50", 5, width=0.125, depth=0.1), root / "five.safetensors")
    swapped = Description(classes=CLASSES[::-1], image_size=SIDE).to_properties()
    save_network(network, root / "swapped.safetensors", use=swapped)
    save_network(tiny.detector(), root / "detector.safetensors")
    (root / "model.onnx").touch()
    pixels = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 3)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(pixels.integers(0, 255, (40, 48, 3), dtype=np.uint8))
                picture.save(root / split / name / f"{number}.png")
    return root


@pytest.mark.parametrize("data", ["scenes:{split}", "{split}"])
@pytest.mark.parametrize("model", ["model.safetensors", "silent.safetensors"])
def test_a_classifier_is_judged_on_folders_of_classes(
    model: str, data: str, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(app, ["evaluate", model, data, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    test = load_dataset("scenes:{split}", "test")
    torch.manual_seed(0)
    network = build_classifier("resnet50", 3, width=0.125, depth=0.1).eval()
    expected = evaluate(network, test, image_size=SIDE if model == "model.safetensors" else 64)
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected.to_dict()
    confusion = json.loads((tmp_path / "confusion.json").read_text())
    assert confusion == {"classes": [*CLASSES], "counts": expected.confusion}
    assert f"top-1 {100 * expected.top1:.1f} %, top-5 100.0 %" in result.stdout
    rows = (tmp_path / "table_classes.csv").read_text().splitlines()
    assert rows[0] == "class,images,recall / %,precision / %" and rows[1].startswith("beach,3,")
    assert (tmp_path / "figure_confusion.png").is_file()


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("detector.safetensors", "toy-scenes", "detector.safetensors: is a detector; scenes such as toy-scenes need a"),
        ("five.safetensors", "{split}", "test: has 3 classes; five.safetensors: 5"),
        (
            "swapped.safetensors",
            "{split}",
            "has the classes beach, forest, river; swapped.safetensors: river, forest",
        ),
        ("model.onnx", "test", "model.onnx: only .safetensors files are judged on scenes"),
        ("none.safetensors", "test", "none.safetensors: no such"),
        ("model.safetensors", "scenes:nowhere", "nowhere: no such folder of class folders"),
        ("model.safetensors", "toy-aerial", "its metadata does not say 'paperlib-detector-1'; it is no detector"),
    ],
)
def test_what_cannot_be_judged_is_told_in_one_line(
    model: str, data: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(app, ["evaluate", model, data, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
