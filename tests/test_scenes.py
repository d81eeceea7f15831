"""Scene data sets: folders of classes become images and labels, in squares and batches; bad folders are refused."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paperlib.data import (
    SCENE_LAYOUTS,
    SceneDataset,
    SceneRecord,
    layouts,
    load_dataset,
    load_detection_dataset,
    load_scene_dataset,
)
from paperlib.data.augment import Augmentation, augment_scenes
from paperlib.data.scenes import crop_square
from paperlib.data.splits import SHARES, draw_split_file, refuse_shared_images

CLASSES = ("beach", "forest", "river")
PER_CLASS = 20
STILL = Augmentation(zoom=1, symmetries=False, colour=0)


def write_image(path, seed, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A project with the images of UC Merced's layout, and their split."""
    root = tmp_path / "data" / "ucmerced"
    for label, name in enumerate(CLASSES):
        for index in range(PER_CLASS):
            write_image(root / name / f"{name}{index:02d}.tif", 100 * label + index)
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    write_split("ucmerced", root)
    return root


def write_split(name, root):
    path = layouts.split_path(SCENE_LAYOUTS[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(draw_split_file(SCENE_LAYOUTS[name], root)))


def drawn(seed=0, count=6, side=8):
    """A data set in memory."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return SceneDataset("drawn", CLASSES, [SceneRecord(f"{i}", image, i % 3) for i, image in enumerate(pixels)])


def test_each_split_has_its_share_of_every_class_and_no_image_twice(folders):
    splits = {split: load_dataset("ucmerced", split) for split in SHARES}
    assert [data.counts() for data in splits.values()] == [dict.fromkeys(CLASSES, count) for count in (14, 2, 4)]
    names = [record.name for data in splits.values() for record in data.records]
    assert len(names) == len(set(names)) == len(CLASSES) * PER_CLASS
    record = splits["test"].records[-1]
    assert record.name.startswith("river/river") and record.label == 2 and splits["test"].classes == CLASSES


def test_published_parts_are_read_as_one_data_set(tmp_path, monkeypatch):
    for label, name in enumerate(CLASSES):
        for index in range(PER_CLASS):
            write_image(tmp_path / ("train" if index % 3 else "val") / name / f"{index}.png", 100 * label + index)
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path / "project"))
    write_split("rsd46-whu", tmp_path)
    test = load_dataset("rsd46-whu", "test", tmp_path)
    assert test.counts() == dict.fromkeys(CLASSES, 4) and test.records[0].name.split("/")[0] in ("train", "val")


def test_copies_of_an_image_stay_in_one_split(tmp_path):
    for index in range(30):
        for name in ("a", "b"):
            write_image(tmp_path / CLASSES[index % 3] / f"{index}{name}.png", index)
    splits = draw_split_file(SCENE_LAYOUTS["ucmerced"], tmp_path)["splits"]
    for names in splits.values():
        assert {name.replace("b.", "a.") for name in names} == {name for name in names if "a." in name}


@given(height=st.integers(1, 60), width=st.integers(1, 60), side=st.integers(2, 40))
def test_a_scene_is_cut_to_the_square_around_its_centre_and_scaled(height, width, side):
    # Values grow from left to right and from top to bottom, so the mean of a square is that of its centre.
    image = torch.arange(width) * 3 + torch.arange(height)[:, None]
    square = crop_square(image.expand(3, -1, -1).to(torch.uint8), side)
    assert square.shape == (3, side, side)
    # Half a pixel of the source where the margins are odd, and what rounding to whole values changes.
    assert abs(float(square.double().mean()) - float(image.double().mean())) <= 2.5


def test_a_long_and_narrow_scene_does_not_become_very_large():
    assert crop_square(torch.zeros(3, 1, 3_000_000, dtype=torch.uint8), 1024).shape == (3, 1024, 1024)


def test_squares_keep_pixels_of_their_size_and_remark_on_enlarged_ones(folders, caplog):
    data = load_dataset("ucmerced", "test")
    images, labels = data.squares(8)
    assert not caplog.records
    assert all(torch.equal(images[i], data[i][0]) for i in range(len(data))) and labels.dtype == torch.int64
    assert data.squares(8)[0] is images
    data.squares(16)
    assert [record.getMessage() for record in caplog.records] == [
        "ucmerced/test: 12 of 12 images were scaled up to 16 pixels"
    ]


def test_a_batch_is_a_function_of_its_generator():
    data = drawn()
    batches = [
        data.draw_batch(
            torch.tensor([4, 0]), 8, Augmentation(), torch.Generator().manual_seed(seed), torch.device("cpu")
        )
        for seed in (3, 3, 4)
    ]
    assert torch.equal(batches[0][0], batches[1][0]) and not torch.equal(batches[0][0], batches[2][0])
    assert batches[0][0].shape == (2, 3, 8, 8) and batches[0][1].tolist() == [1, 0]
    assert 0 <= float(batches[0][0].min()) and float(batches[0][0].max()) <= 1


def test_without_strength_the_augmentation_leaves_an_image_or_mirrors_it():
    images = drawn(count=64).squares(8)[0]
    augmented = augment_scenes(images, STILL, torch.Generator().manual_seed(0))
    expected = images.float() / 255
    same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(augmented, expected, strict=True)]
    mirrored = [torch.allclose(a, b.flip(2), atol=1e-6) for a, b in zip(augmented, expected, strict=True)]
    assert all(one != other for one, other in zip(same, mirrored, strict=True)) and 20 < sum(same) < 44


def test_symmetries_are_the_eight_of_the_square():
    image = drawn(count=1).squares(8)[0]
    views = augment_scenes(
        image.expand(400, -1, -1, -1), Augmentation(zoom=1, colour=0), torch.Generator().manual_seed(0)
    )
    turned = [torch.rot90(image[0], turns, (1, 2)) for turns in range(4)]
    eight = torch.stack(turned + [view.flip(2) for view in turned]).float() / 255
    found = [
        (eight - view).abs().amax((1, 2, 3)).argmin()
        for view in views
        if float((eight - view).abs().amax((1, 2, 3)).min()) < 1e-5
    ]
    assert len(found) == 400 and set(map(int, found)) == set(range(8))


def test_crops_have_the_area_that_zoom_allows_and_lie_inside():
    # Of an image of its own coordinates, a crop shows the smallest and the largest.
    axis = torch.arange(100, dtype=torch.uint8)
    image = torch.stack(
        [axis.expand(100, 100), axis[:, None].expand(100, 100), torch.zeros(100, 100, dtype=torch.uint8)]
    )
    options = Augmentation(zoom=2, symmetries=False, colour=0)
    views = augment_scenes(image.expand(300, -1, -1, -1), options, torch.Generator().manual_seed(0)) * 255
    sides = views[:, :2].amax((2, 3)) - views[:, :2].amin((2, 3)) + 1
    area = sides.prod(1) / 100**2
    assert 0.22 <= float(area.min()) < 0.3 and 0.9 < float(area.max()) <= 1.0
    ratio = sides[:, 0] / sides[:, 1]
    assert 0.72 < float(ratio.min()) < 0.8 and 1.25 < float(ratio.max()) < 1.37


def test_a_mosaic_of_scenes_is_refused():
    with pytest.raises(ValueError, match="mosaic is 0.5: scenes cannot be put together"):
        augment_scenes(drawn().squares(8)[0], Augmentation(mosaic=0.5), torch.Generator())


def test_the_digest_changes_with_pixels_labels_and_classes_alone(folders):
    data = load_dataset("ucmerced", "test")
    assert load_dataset("ucmerced", "test").digest == data.digest
    relabelled = [SceneRecord(data.records[0].name, data.records[0].image, 1), *data.records[1:]]
    others = [SceneDataset("", CLASSES, relabelled), SceneDataset("", CLASSES[::-1], data.records)]
    write_image(folders / data.records[0].name, 999)
    others.append(load_dataset("ucmerced", "test"))
    assert len({data.digest, *(other.digest for other in others)}) == 4


def empty_class(root):
    (root / "desert").mkdir()


def no_classes(root):
    for path in [*root.glob("*/*"), *root.iterdir()]:
        path.unlink() if path.is_file() else path.rmdir()


def one_class(root):
    for path in [*root.glob("[fr]*/*"), *root.glob("[fr]*")]:
        path.unlink() if path.is_file() else path.rmdir()


def one_missing(root):
    next(iter((root / "beach").iterdir())).unlink()


def one_more(root):
    write_image(root / "beach" / "new.tif", 5)


def only_in_train(root):
    path = layouts.split_path(SCENE_LAYOUTS["ucmerced"])
    content = json.loads(path.read_text())
    moved = [name for names in content["splits"].values() for name in names if name.startswith("river/")]
    content["splits"] = {split: [n for n in names if n not in moved] for split, names in content["splits"].items()}
    content["splits"]["train"] += moved
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty_class, "desert: holds no image; put images of its class there, or remove the folder"),
        (no_classes, "ucmerced: holds no class folder; put the images of each class into a folder of its name"),
        (one_class, "ucmerced: holds one class folder, beach; at least two classes are needed"),
        (one_missing, r"beach\d\d.tif: no such file"),
        (one_more, "1 images are in no split of .*ucmerced.json .*remove them, or draw a new split"),
        (only_in_train, "ucmerced: class 'river' has no image in split val, test"),
    ],
)
def test_folders_that_cannot_be_used_are_refused_in_one_line(folders, damage, message):
    damage(folders)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        for split in SHARES:
            load_dataset("ucmerced", split)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_image_is_named(folders):
    data = load_dataset("ucmerced", "test")
    (folders / data.records[3].name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=rf"{data.records[3].name}: not an image"):
        data.squares(8)


def test_grey_images_become_rgb(tmp_path):
    write_image(tmp_path / "grey.png", 0, mode="L")
    data = SceneDataset("grey", CLASSES, [SceneRecord("grey", tmp_path / "grey.png", 0)])
    red, green, blue = data.squares(8)[0][0]
    assert torch.equal(red, green) and torch.equal(green, blue)


def test_a_detector_gets_no_scenes_and_a_classifier_no_boxes():
    with pytest.raises(ValueError, match="no scenes 'vhr10'; known: toy-scenes, resisc45"):
        load_scene_dataset("vhr10", "train")
    with pytest.raises(ValueError, match="resisc45: its images are scenes without boxes"):
        load_detection_dataset("resisc45", "train")


def test_own_scenes_are_split_by_seed_or_by_folders(folders):
    drawn = {split: load_dataset(f"scenes:{folders}", split) for split in SHARES}
    assert [data.counts() for data in drawn.values()] == [dict.fromkeys(CLASSES, count) for count in (14, 2, 4)]
    assert len({record.name for data in drawn.values() for record in data.records}) == len(CLASSES) * PER_CLASS
    for split, data in drawn.items():
        for record in data.records:
            path = folders.parent / split / record.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(record.image.read_bytes())
    given = {split: load_dataset(f"scenes:{folders.parent}/{{split}}", split) for split in SHARES}
    assert {split: data.digest for split, data in given.items()} == {s: data.digest for s, data in drawn.items()}
    refuse_shared_images(*given.values())
    with pytest.raises(ValueError, match="must not share images"):
        refuse_shared_images(given["train"], drawn["train"])


def test_copies_among_own_scenes_stay_in_one_split(tmp_path):
    for index in range(30):
        for name in ("a", "b"):
            write_image(tmp_path / CLASSES[index % 3] / f"{index}{name}.png", index)
    refuse_shared_images(*(load_dataset(f"scenes:{tmp_path}", split) for split in SHARES))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: None, "val: no such folder of class folders"),
        (lambda root: write_image(root / "val" / "beach" / "0.png", 7), "val: holds one class folder, beach"),
        (
            lambda root: [write_image(root / "val" / name / "0.png", 7) for name in ("beach", "river")],
            "class 'forest' has no image in split val",
        ),
        (
            lambda root: [write_image(root / "val" / name / "0.png", 7) for name in (*CLASSES, "sea")],
            "class 'sea' has no image in split train",
        ),
    ],
)
def test_own_splits_that_do_not_fit_are_refused_in_one_line(tmp_path, damage, message):
    for name in CLASSES:
        write_image(tmp_path / "train" / name / "0.png", 5)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_dataset(f"scenes:{tmp_path}/{{split}}", "val")
    assert "\n" not in str(caught.value)


def test_own_scenes_too_few_for_three_splits_are_refused(tmp_path):
    for name in CLASSES:
        write_image(tmp_path / name / "0.png", 5)
    with pytest.raises(ValueError, match="class 'beach' has no image in split val, test"):
        load_dataset(f"scenes:{tmp_path}", "train")
