"""A model's file is enough to detect with it: on pictures, films and large scenes, in every runtime."""

import copy
import hashlib
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import tiny
import torch
from PIL import Image
from typer.testing import CliRunner

import paperlib as pl
from paperlib import paths
from paperlib.cli.main import app
from paperlib.data.records import Dataset, Record
from paperlib.deploy.description import Description, load_description
from paperlib.deploy.onnx import export_onnx, open_onnx_session
from paperlib.deploy.runtime import include_selection, open_model
from paperlib.deploy.sources import FilmWriter, find_sources, read_frames
from paperlib.detectors.files import save_detector

SIDE = 64
SCRIPT = paths.PACKAGE / "compression/templates/detect_onnx.py"
CLASSES = ("ship", "harbour", "plane")
USE = Description(classes=CLASSES, image_size=SIDE, confidence=0.02, training_data="d1", version="0")


def picture(seed=0, height=90, width=120):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_model(folder, name, **shape):
    """Write one detector as a safetensors and as an ONNX file."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        detector = pl.build_detector(name, len(CLASSES), width=0.125, **shape).eval()
        for part, module in detector.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
                # An output, which begins with a bias that makes every cell look empty.
                torch.nn.init.normal_(module.weight, std=0.5)
                torch.nn.init.normal_(module.bias, 4.0 if part == "size.out" else 0.0)
    save_detector(detector, folder / "detector.safetensors", use=USE.to_properties())
    export_onnx(detector, folder / "detector.onnx", SIDE, description=USE)
    return folder


def export_with_selection(folder):
    """Write `nms.onnx` by the command."""
    result = CliRunner().invoke(
        app, ["export", str(folder / "detector.safetensors"), str(folder / "nms.onnx"), "--nms"]
    )
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    return export_with_selection(write_model(tmp_path_factory.mktemp("anchors"), "yolov4-tiny"))


@pytest.fixture(scope="module")
def heatmap_files(tmp_path_factory):
    return export_with_selection(write_model(tmp_path_factory.mktemp("heatmap"), "centernet-resnet50", depth=0.1))


def test_cost_and_export_take_their_values_from_the_file(model_files):
    file = model_files / "detector.safetensors"
    told = CliRunner().invoke(app, ["cost", str(file)])
    assert told.exit_code == 0 and f"{file}, 64 x 64" in told.output
    made = pl.open_model(model_files / "nms.onnx").description
    assert (made.classes, made.image_size, made.confidence, made.training_data) == (CLASSES, SIDE, 0.02, "d1")


def test_a_model_is_opened_by_its_name_and_half_precision_computes_in_float32(model_files, tmp_path, monkeypatch):
    detector = pl.load_detector(model_files / "detector.safetensors")
    save_detector(copy.deepcopy(detector).half(), tmp_path / "zoo-tiny.safetensors", use=USE.to_properties())
    monkeypatch.setenv("PAPERLIB_MODELS", str(tmp_path))
    assert (tmp_path / "zoo-tiny.safetensors").stat().st_size < 0.7 * (
        model_files / "detector.safetensors"
    ).stat().st_size
    expected = pl.predict(model_files / "detector.safetensors", picture(), confidence=0.0)
    found = pl.predict("zoo-tiny", picture(), confidence=0.0)
    assert found.boxes.dtype == torch.float32 and len(found) > 10
    torch.testing.assert_close(found.scores[:10], expected.scores[:10], rtol=1e-2, atol=1e-2)
    result = run("zoo-big", "x.jpg")
    assert result.exit_code == 2 and result.stderr == "paperlib: x.jpg: no such file or folder\n"
    with pytest.raises(FileNotFoundError, match="zoo-big: no such model file; by name: zoo-tiny"):
        pl.open_model("zoo-big")


def test_a_file_says_how_its_detector_is_used(model_files):
    assert load_description(model_files / "detector.safetensors") == USE
    said = pl.open_model(model_files / "detector.onnx").description
    assert said.model_copy(update={"selection": USE.selection, "nms_iou": USE.nms_iou}) == USE


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("files", ["model_files", "heatmap_files"])
def test_every_runtime_finds_what_pytorch_finds(request, files, runtime):
    folder = request.getfixturevalue(files)
    torch_model = pl.open_model(folder / "detector.safetensors")
    other = pl.open_model(folder / "detector.onnx", runtime)
    for seed in range(3):
        expected = pl.predict(torch_model, picture(seed), confidence=0.0)
        found = pl.predict(other, picture(seed), confidence=0.0)
        assert len(expected) and found.names == expected.names
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-3, atol=1e-1)


def test_a_file_keeps_as_many_detections_of_an_image_as_its_detector(tmp_path):
    folder = write_model(tmp_path, "yolov4-tiny", max_detections=5)
    (folder / "selecting.onnx").write_bytes((folder / "detector.onnx").read_bytes())
    include_selection(folder / "selecting.onnx")
    for name in ("detector.safetensors", "detector.onnx", "selecting.onnx"):
        found = pl.predict(folder / name, picture(), confidence=0.0)
        assert len(found) == 5


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("files", ["model_files", "heatmap_files"])
def test_a_file_with_selection_finds_what_pytorch_finds(request, files, runtime, tmp_path):
    folder = request.getfixturevalue(files)
    (tmp_path / "later.onnx").write_bytes((folder / "detector.onnx").read_bytes())
    include_selection(tmp_path / "later.onnx")
    for file in (folder / "nms.onnx", tmp_path / "later.onnx"):
        model = pl.open_model(file, runtime)
        for seed in range(3):
            expected = pl.predict(pl.open_model(folder / "detector.safetensors"), picture(seed), confidence=0.0)
            found = pl.predict(model, picture(seed), confidence=0.0)
            assert len(expected) and found.names == expected.names
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-3, atol=1e-1)


def test_a_file_with_selection_takes_any_number_of_images_and_says_which_each_box_belongs_to(model_files):
    detector = pl.load_detector(model_files / "detector.safetensors")
    session = open_onnx_session(model_files / "nms.onnx", 1)
    for count in (1, 4):
        images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))
        images[-1] = 0.5  # nothing to see, or little
        *outputs, index = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            expected = detector(images)
        assert list(index) == [number for number, found in enumerate(expected) for _ in found["scores"]]
        for name, output in zip(("boxes", "labels", "scores"), outputs, strict=True):
            wanted = torch.cat([found[name] for found in expected])
            torch.testing.assert_close(torch.from_numpy(output), wanted, rtol=1e-3, atol=1e-3)


def test_predict_gives_what_detect_gives_above_the_files_confidence(model_files):
    detector = pl.load_detector(model_files / "detector.safetensors")
    record = Record("one", picture(), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    (all_found,) = pl.detect(detector, Dataset("one", CLASSES, [record]), image_size=SIDE)
    found = pl.predict(model_files / "detector.safetensors", picture())
    kept = all_found["scores"] >= USE.confidence
    assert torch.equal(found.boxes, all_found["boxes"][kept]) and torch.equal(found.scores, all_found["scores"][kept])
    assert found.names == [CLASSES[label - 1] for label in all_found["labels"][kept]]
    same = pl.predict(detector, picture(), image_size=SIDE, classes=CLASSES, confidence=USE.confidence)
    assert torch.equal(found.boxes, same.boxes)


def test_a_large_scene_is_cut_into_tiles_and_merged(model_files):
    scene = picture(height=150, width=200)
    found = pl.predict(model_files / "detector.safetensors", scene, tile=SIDE)
    assert len(found) and float(found.boxes[:, 2].max()) > 2 * SIDE
    assert bool((found.boxes[:, 2:] <= torch.tensor([200.0, 150.0])).all())


def run(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_the_command_draws_and_lists_what_it_finds_and_passes_over_a_broken_picture(model_files, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "deeper").mkdir(parents=True)
    for place in (folder / "a.png", folder / "deeper" / "a.png"):
        Image.fromarray(picture()).save(place)
    (folder / "broken.jpg").write_text("no picture")
    result = run(model_files / "detector.onnx", folder, "--out", out)
    assert result.exit_code == 1
    assert f"paperlib: {folder / 'broken.jpg'}: not an image" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["a-2.jpg", "a.jpg", "predictions.csv", "predictions.json"]
    found = json.loads((out / "predictions.json").read_text())
    expected = pl.predict(model_files / "detector.onnx", folder / "a.png")
    first = [each for each in found if each["image_id"] == 1]
    assert [each["category_id"] for each in first] == expected.labels.tolist()
    left, top, width, height = first[0]["bbox"]
    assert [left, top, left + width, top + height] == pytest.approx(expected.boxes[0].tolist(), abs=0.03)
    assert len((out / "predictions.csv").read_text().splitlines()) == 1 + len(found)
    assert Image.open(out / "a.jpg").size == (120, 90)


def test_a_film_becomes_a_film(model_files, tmp_path):
    film = tmp_path / "film.mp4"
    writer = FilmWriter(film, 5)
    for seed in range(4):
        writer.write_frame(picture(seed))
    writer.close()
    assert run(model_files / "detector.onnx", film, "--out", tmp_path / "out").exit_code == 0
    frames = list(read_frames(tmp_path / "out" / "film.mp4"))
    assert len(frames) == 4 and frames[0].shape == (90, 120, 3)
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {each["frame"] for each in results} == {0, 1, 2, 3}


def test_each_source_is_taken_once(tmp_path):
    for name in ("b.png", "a.PNG", "c.txt"):
        (tmp_path / name).touch()
    found = find_sources([str(tmp_path / "b.png"), str(tmp_path), str(tmp_path / "*.PNG")])
    assert [source.name for source in found] == ["b", "a"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["none.onnx", "a.png"], "none.onnx: no such model file"),
        (["a.png", "a.png"], "a.png: is no model file"),
        (["text.onnx", "a.png"], "text.onnx: is no whole ONNX file"),
        (["text.safetensors", "a.png"], "text.safetensors: is text, not weights"),
        (["plain.safetensors", "a.png"], "plain.safetensors: does not say for which image size"),
        (["plain.safetensors", "a.png", "--image-size", "50"], "image size 50 is not a multiple of 32"),
        (
            ["plain.safetensors", "a.png", "--image-size", "64", "--classes", "x"],
            "1 names of classes for a detector of 3",
        ),
        (["plain.safetensors", "a.png", "--runtime", "openvino"], "openvino runs ONNX files"),
        (["good.onnx", "a.png", "--image-size", "96"], "is for images of 64 pixels, not 96"),
        (["good.onnx", "a.png", "--runtime", "torch"], "PyTorch runs .safetensors files"),
        (["good.onnx", "none.png"], "none.png: no such file or folder"),
        (["good.onnx", "*.gif"], "*.gif: no such file or folder"),
        (["good.onnx", "empty"], "empty: no pictures in this folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(model_files, tmp_path, monkeypatch, arguments, fault):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.fromarray(picture()).save("a.png")
    (tmp_path / "good.onnx").write_bytes((model_files / "detector.onnx").read_bytes())
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "text.safetensors").write_text("text")
    save_detector(pl.load_detector(model_files / "detector.safetensors"), tmp_path / "plain.safetensors")
    result = run(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("paperlib: ") and fault in result.stderr
    assert not (tmp_path / "predictions").exists()


@pytest.mark.parametrize(("content", "fault"), [(b"no film", "not a film"), (b"", "not a film")])
def test_a_film_that_is_none_is_named_and_passed_over(model_files, tmp_path, content, fault):
    film = tmp_path / "film.mp4"
    film.write_bytes(content)
    result = run(model_files / "detector.onnx", film, "--out", tmp_path / "out")
    assert result.exit_code == 1 and f"paperlib: {film}: {fault}" in result.stderr
    assert not (tmp_path / "out" / "film.mp4").exists()


def test_an_edited_class_name_is_noticed(model_files, tmp_path):
    content = (model_files / "detector.safetensors").read_bytes()
    assert content.count(b"harbour") == 1
    (tmp_path / "edited.safetensors").write_bytes(content.replace(b"harbour", b"airport"))
    with pytest.raises(ValueError, match="edited after it was written"):
        pl.open_model(tmp_path / "edited.safetensors")


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_pixels_of_another_kind_are_refused(model_files, pixels):
    with pytest.raises(ValueError, match="not uint8"):
        pl.predict(model_files / "detector.onnx", pixels)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["evaluate", "picture.onnx", "val.json"], "picture.onnx: is no whole ONNX file"),
        (["evaluate", "scene.safetensors", "val.json"], "is no detector of this package"),
        (["evaluate", "good.onnx", "none.json"], "none.json: no such file"),
        (["evaluate", "good.onnx", "empty"], "empty"),
        (["evaluate", "good.onnx", "film.mp4"], "film.mp4"),
        (["evaluate", "good.onnx", "broken.json", "--images", "."], "a.png"),
        (["evaluate", "good.onnx", "others.json"], "'car'"),
        (["evaluate", "good.onnx", "toy-aerial", "--classes", "ship"], "go with your own data alone"),
        (["quantise", "picture.onnx", "x.onnx", "--data", "val.json"], "picture.onnx: is no whole ONNX file"),
        (["quantise", "detector.safetensors", "x.onnx", "--data", "val.json"], "runs ONNX files"),
        (["quantise", "nms.onnx", "x.onnx", "--data", "val.json"], "selects its detections itself"),
        (["quantise", "good.onnx", "x.onnx", "--data", "empty"], "empty"),
        (["predict", "scene.safetensors", "b.png"], "is no detector of this package"),
        (["predict", "good.onnx", "empty"], "empty: no pictures in this folder"),
        (["export", "good.onnx", "x.onnx"], "good.onnx"),
    ],
)
def test_a_model_that_is_none_or_data_that_are_none_are_one_line(model_files, tmp_path, monkeypatch, arguments, fault):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.fromarray(picture()).save("b.png")
    Image.fromarray(picture()).save("picture.png")
    (tmp_path / "picture.png").rename("picture.onnx")
    (tmp_path / "film.mp4").write_bytes(b"no film")
    (tmp_path / "a.png").write_bytes((tmp_path / "b.png").read_bytes()[:200])
    for name in ("detector.safetensors", "detector.onnx"):
        (tmp_path / name).write_bytes((model_files / name).read_bytes())
    (tmp_path / "detector.onnx").rename("good.onnx")
    (tmp_path / "nms.onnx").write_bytes((tmp_path / "good.onnx").read_bytes())
    if "nms.onnx" in arguments:
        include_selection(tmp_path / "nms.onnx")
    pl.save_network(tiny.classifier(), tmp_path / "scene.safetensors")
    for name, image, classes in (("val", "b", CLASSES), ("broken", "a", CLASSES), ("others", "b", ("car",))):
        categories = [{"id": number, "name": each} for number, each in enumerate(classes)]
        content = {
            "images": [{"id": 0, "file_name": f"{image}.png", "width": 120, "height": 90}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [5, 5, 20, 20]}],
            "categories": categories,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    line = result.stderr.split("\r")[-1]  # what is shown while pictures are read comes before
    assert line.startswith("paperlib: ") and fault in line
    assert not any((tmp_path / name).exists() for name in ("evaluation", "predictions", "x.onnx"))


@pytest.mark.parametrize("file", sorted(paths.models_root().glob("*.[os][na]*")), ids=lambda file: file.stem)
def test_a_model_of_the_repository_opens_by_its_name_and_is_the_one_on_its_card(file):
    model = open_model(file.stem, threads=1)
    assert model.description.classes and model.description.image_size == 416
    card = (paths.models_root() / f"{file.stem}.md").read_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card


def test_the_script_of_a_report_finds_without_this_package_what_predict_finds(model_files, tmp_path):
    Image.fromarray(picture(4)).save(tmp_path / "picture.png")
    scores = pl.predict(model_files / "detector.onnx", tmp_path / "picture.png", confidence=0.0).scores[:12]
    # A threshold that lies far from every score, because the two scale pictures by different libraries.
    gap = int((scores[:-1] - scores[1:]).argmax())
    confidence = float(scores[gap : gap + 2].mean())
    content = onnx.load(model_files / "detector.onnx")
    use = {entry.key: entry.value for entry in content.metadata_props}
    onnx.helper.set_model_props(content, use | {"confidence": str(confidence)})
    for name in ("raw.onnx", "selecting.onnx"):
        onnx.save(content, tmp_path / name)
    include_selection(tmp_path / "selecting.onnx")
    for name in ("raw.onnx", "selecting.onnx"):
        expected = pl.predict(tmp_path / name, tmp_path / "picture.png")
        command = [sys.executable, "-I", str(SCRIPT), str(tmp_path / name), str(tmp_path / "picture.png")]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        assert len(told) == len(expected) == gap + 1
        assert [line.split(" ")[0] for line in told] == list(expected.names)
