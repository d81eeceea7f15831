"""The embedded scene data set: the same bytes everywhere, each image on its own, kept on disk once it was drawn."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from paperlib.data import load_dataset
from paperlib.data.toy import album, scenes


def test_another_process_draws_the_same_bytes_in_any_order():
    keys = [(3, "val", label, index) for label in range(12) for index in (0, 7)]
    script = (
        "import hashlib; from paperlib.data.toy.scenes import draw_scene\n"
        f"print(hashlib.sha256(b''.join(draw_scene(*key).tobytes() for key in {keys[::-1]})).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    here = [scenes.draw_scene(*key).tobytes() for key in keys]
    assert elsewhere.stdout.strip() == hashlib.sha256(b"".join(here[::-1])).hexdigest()
    assert len(set(here)) == len(keys)


def test_seed_split_class_and_index_each_change_the_image():
    keys = [(0, "train", 0, 0), (1, "train", 0, 0), (0, "val", 0, 0), (0, "train", 1, 0), (0, "train", 0, 1)]
    assert len({scenes.draw_scene(*key).tobytes() for key in keys}) == len(keys)


def test_a_split_is_drawn_once_and_then_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path))
    monkeypatch.setattr(scenes, "SIZES", {"train": 3, "val": 1, "test": 2})
    drawn = load_dataset("toy-scenes", "train")
    monkeypatch.setattr(scenes, "draw_scene", lambda *key: pytest.fail("drawn again"))
    read = load_dataset("toy-scenes", "train")
    assert read.digest == drawn.digest and read.counts() == dict.fromkeys(scenes.CLASSES, 3)
    assert [record.name for record in read.records[2:4]] == ["train-coast-02", "train-sports ground-00"]
    assert np.array_equal(read.squares(64)[0][3].permute(1, 2, 0), read.records[3].image)
    assert album.load_places("train").shape == (12, 3, 64, 64, 3)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ((0, "holdout", 0, 0), "unknown split 'holdout'"),
        ((0, "val", 12, 0), r"class 12 is not in 0\.\.11"),
        ((-1, "val", 0, 0), "seed must be at least 0"),
    ],
)
def test_unknown_scenes_are_refused(key, message):
    with pytest.raises(ValueError, match=f"toy-scenes: {message}"):
        scenes.draw_scene(*key)
    with pytest.raises(ValueError, match="unknown split"):
        load_dataset("toy-scenes", "holdout")
