"""On the real data sets: training from the COCO weights, and a notebook that changes its data by one word."""

import pytest
import tiny

from paperlib.data import LAYOUTS, load_dataset
from paperlib.detectors import build_detector, transfer_coco_weights, usual_anchors
from paperlib.evaluation.evaluate import evaluate
from paperlib.experiments import assistants as experiments
from paperlib.experiments.parameters import validate_settings
from paperlib.experiments.study import Study
from paperlib.training.loop import fit


@pytest.fixture(params=["dota", "vhr10"])
def name(request, data_root, tmp_path, monkeypatch) -> str:
    if not (data_root / LAYOUTS[request.param].folder).is_dir():
        pytest.skip(f"{data_root} does not hold {LAYOUTS[request.param].folder}")
    for place in ("STORE", "RESULTS"):
        monkeypatch.setenv(f"PAPERLIB_{place}", str(tmp_path / place.lower()))
    return request.param


@pytest.mark.parametrize("name", ["dota"], indirect=True)
def test_the_coco_weights_learn_from_tiles_and_whole_images_are_judged(name, coco_weights, tmp_path):
    tiles = load_dataset(name, "train")
    anchors = [(w / 6, h / 6) for w, h in usual_anchors("yolov4-tiny")]
    detector = build_detector("yolov4-tiny", len(tiles.classes), anchors=anchors)
    transfer_coco_weights(detector, coco_weights)
    recipe = tiny.recipe(epochs=6, image_size=64, batch_size=8, learning_rate=1e-3, schedule="cosine")
    losses = fit(detector, tiles, recipe, folder=tmp_path / "fit").epochs["loss"]
    assert losses.iloc[-1] < 0.85 * losses.iloc[0]
    test = load_dataset(name, "test")
    metrics = evaluate(detector, test, image_size=64, full_images=True, slices=True)
    assert set(metrics.per_class) == {c for c, count in test.full_images.box_counts().items() if count}
    assert metrics.slices["all"]["images"] == len(test.full_images) == 2


def test_pruning_ratio_runs_on_any_data_set_by_one_parameter(name):
    chosen = {
        "width": 0.1, "image_size": 32, "epochs": 1, "fine_tune_epochs": 1, "warmup_epochs": 0.0, "batch_size": 16,
        "ratios": [0.5], "workers": 1, "anchor_scale": 0.1,
        "cases": {"": {}},
    }  # fmt: skip
    study = Study("02_pruning_ratio", validate_settings("02_pruning_ratio", chosen | {"dataset": name}))
    splits = study.case.splits
    for split, few in (("train", 24), ("val", 8), ("test", 8)):
        data = getattr(splits, split)
        setattr(splits, split, data.subset(range(min(few, len(data))), f"some of {data.name}"))
    runs = study.run(experiments.pruning_ratio)[0]
    assert list(runs) == ["baseline", "sparse", "pruned 50%", "fine-tuned 50%"]
    assert runs["pruned 50%"].cost.size_mb < 0.6 * runs["sparse"].cost.size_mb
    summary = study.finish({"done": True})
    assert summary == {"done": True} and (study.folder / "metrics.json").is_file()
