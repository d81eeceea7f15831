"""The embedded data set: reproducible to the byte, and annotated with the exact bounds of what shows."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperlib.data.toy import aerial, album
from paperlib.data.toy.aerial import CLASSES, SIDE, SIZES, VISIBLE_PIXELS, draw_scene, draw_split
from paperlib.data.toy.canvas import EXTENT, FIRST_OBJECT

SPLITS = st.sampled_from(sorted(SIZES))
scenes = given(seed=st.integers(0, 2**32), split=SPLITS, index=st.integers(0, 400), side=st.sampled_from([96, SIDE]))


def digest(scene_list) -> str:
    return hashlib.sha256(b"".join(part.tobytes() for scene in scene_list for part in scene)).hexdigest()


@pytest.fixture(scope="module")
def splits():
    return {split: draw_split(split) for split in SIZES}


def test_another_process_draws_the_same_bytes():
    script = (
        "import hashlib; from paperlib.data.toy.aerial import draw_split\n"
        "parts = b''.join(p.tobytes() for s in draw_split('val', count=27, seed=5) for p in s)\n"
        "print(hashlib.sha256(parts).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == digest(draw_split("val", count=27, seed=5))


def test_an_image_does_not_depend_on_the_ones_drawn_before():
    in_turn = draw_split("test", count=12, seed=3)
    assert [digest([draw_scene(3, "test", i)]) for i in reversed(range(12))] == [digest([s]) for s in in_turn[::-1]]


def test_seed_split_and_index_each_change_the_image():
    drawn = [draw_scene(*key) for key in ((0, "train", 0), (1, "train", 0), (0, "val", 0), (0, "train", 27))]
    assert len({digest([scene]) for scene in drawn}) == 4


@settings(max_examples=40, deadline=None)
@scenes
def test_boxes_are_the_bounds_of_the_visible_pixels(seed, split, index, side):
    _, owners, whole, labels = aerial._render(seed, split, index, side)
    _, boxes, kept = draw_scene(seed, split, index, side=side)
    expected = []
    for number, (area, label) in enumerate(zip(whole, labels, strict=True)):
        pixels = np.argwhere(owners == FIRST_OBJECT + number)
        if len(pixels) >= max(VISIBLE_PIXELS * (side / EXTENT) ** 2, area / 4):
            (top, left), (bottom, right) = pixels.min(axis=0), pixels.max(axis=0)
            expected.append((left, top, right + 1, bottom + 1, label))
    assert [(*b, n) for b, n in zip(boxes.tolist(), kept.tolist(), strict=True)] == expected


@settings(max_examples=40, deadline=None)
@scenes
def test_annotations_are_valid(seed, split, index, side):
    image, boxes, labels = draw_scene(seed, split, index, side=side)
    assert (image.shape, image.dtype) == ((side, side, 3), np.uint8)
    assert (boxes.shape, boxes.dtype) == ((len(labels), 4), np.float32)
    assert labels.dtype == np.int64
    assert all(1 <= label <= 10 for label in labels)
    assert (boxes >= 0).all() and (boxes <= side).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()


def test_an_object_hidden_by_a_later_one_is_not_annotated():
    owners = np.zeros((20, 20), dtype=np.uint8)
    owners[0:5, 0:10] = FIRST_OBJECT
    owners[10:14, 10:14] = FIRST_OBJECT + 1
    boxes, kept = aerial._annotate(owners, [50, 80], least=12)
    assert (boxes.tolist(), kept) == ([[0, 0, 10, 5]], [0])


@pytest.mark.parametrize("split", SIZES)
def test_every_split_holds_every_class(splits, split):
    present = np.bincount(np.concatenate([labels for _, _, labels in splits[split]]), minlength=11)
    assert len(splits[split]) == SIZES[split]
    assert all(present[1:] >= 8), dict(zip(CLASSES, present[1:].tolist(), strict=True))


def test_some_images_are_empty_and_most_hold_a_few_objects(splits):
    counts = np.array([len(labels) for _, _, labels in splits["train"]])
    assert 0.03 <= (counts == 0).mean() <= 0.1
    assert ((counts >= 1) & (counts <= 8)).mean() > 0.75


def test_some_objects_are_cut_by_the_border_and_some_touch(splits):
    boxes = [boxes for _, boxes, _ in splits["train"]]
    at_border = [((b[:, :2] == 0) | (b[:, 2:] == SIDE)).any(axis=1) for b in boxes]
    touching = [_overlapping_pairs(b) for b in boxes]
    assert 0.05 < np.concatenate(at_border).mean() < 0.4
    assert sum(n > 0 for n in touching) > 20


def _overlapping_pairs(boxes: np.ndarray) -> int:
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    return int(np.triu((low <= high).all(axis=2), k=1).sum())


@pytest.mark.parametrize("side", [1, 31, 320])
def test_any_side_can_be_drawn(side):
    image, boxes, _ = draw_scene(0, "train", 0, side=side)
    assert image.shape == (side, side, 3)
    assert (boxes <= side).all()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"split": "holdout"}, "unknown split 'holdout'"),
        ({"side": 0}, "side must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"count": 0}, "count must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        draw_split(**{"split": "train", "count": 1} | arguments)


def test_a_split_is_drawn_once_and_then_read_as_it_was_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path))
    times = []
    monkeypatch.setattr(album, "draw_split", lambda split: times.append(split) or draw_split(split, count=20))
    drawn, read = album.load_scenes("val"), album.load_scenes("val")
    assert times == ["val"] and digest(read) == digest(drawn)
    assert [[part.dtype for part in scene] for scene in read] == [[part.dtype for part in scene] for scene in drawn]


def test_a_damaged_album_is_drawn_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path))
    monkeypatch.setattr(album, "draw_split", lambda split: draw_split(split, count=3))
    drawn = album.load_scenes("val")
    (file,) = (tmp_path / "toy-aerial").iterdir()
    file.write_bytes(file.read_bytes()[:-1000])
    assert digest(album.load_scenes("val")) == digest(drawn)
