"""Splits: every class has its share in each, and no picture is in two, under whatever name."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from paperlib.data import LAYOUTS, PUBLISHED, layouts, load_dataset, splits
from paperlib.data.records import Dataset, Record

KEPT = sorted(path.stem for path in layouts.split_path(LAYOUTS["vhr10"]).parent.glob("*.json"))
VHR10_COUNTS = [757, 302, 655, 390, 524, 159, 163, 224, 124, 598]


@pytest.fixture(scope="module")
def real(data_root) -> dict[str, dict[str, Dataset]]:
    """By name, by split: whole images of every data set that is there."""
    there = [name for name in KEPT if (data_root / PUBLISHED[name].folder).is_dir()]
    if not there:
        pytest.skip(f"{data_root} holds none of {', '.join(KEPT)}")
    found = {name: {split: load_dataset(name, split) for split in splits.SHARES} for name in there}
    return {name: {s: getattr(d, "full_images", d) for s, d in sets.items()} for name, sets in found.items()}


@pytest.mark.parametrize("name", KEPT)
def test_no_name_is_in_two_splits(name):
    stored = layouts.stored_split(PUBLISHED[name])
    assert list(stored) == ["train", "val", "test"]
    names = [image for images in stored.values() for image in images]
    assert len(names) == len(set(names)) and all(stored.values())


def test_no_picture_is_in_two_splits_and_all_are_in_one(real):
    for name, sets in real.items():
        contents = [
            {hashlib.sha256(record.read_pixels().tobytes()).hexdigest() for record in dataset.records}
            for dataset in sets.values()
        ]
        assert sum(map(len, contents)) == len(set.union(*contents))
        assert sum(map(len, sets.values())) == {"vhr10": 650, "dota": 10, "resisc45": 3000, "ucmerced": 2100}[name]


def test_every_split_of_vhr10_has_its_share_of_every_class(real):
    if "vhr10" not in real:
        pytest.skip("no vhr10")
    total = sum((Counter(dataset.box_counts()) for dataset in real["vhr10"].values()), Counter())
    assert list(total.values()) == VHR10_COUNTS
    for split, share in splits.SHARES.items():
        for name, count in real["vhr10"][split].box_counts().items():
            assert abs(count - share * total[name]) <= max(3, 0.05 * total[name]), (split, name)


def test_the_stored_splits_can_be_drawn_again(real, data_root):
    for name in real:
        layout = PUBLISHED[name]
        assert splits.draw_split_file(layout, data_root / layout.folder)["splits"] == layouts.stored_split(layout)


def test_the_split_of_uc_merced_is_drawn_from_its_names_alone(tmp_path):
    layout = PUBLISHED["ucmerced"]
    stored = layouts.stored_split(layout)
    assert splits.draw_split_file(layout, tmp_path / "absent")["splits"] == stored
    names = [name for found in stored.values() for name in found]
    assert len(names) == 2100 and {"agricultural/agricultural00.tif", "tenniscourt/tenniscourt99.tif"} < set(names)
    for split, count in {"train": 70, "val": 10, "test": 20}.items():
        assert set(Counter(name.split("/")[0] for name in stored[split]).values()) == {count}, "of each of 21 classes"


def picture(name: str, value: int, label: int) -> Record:
    return Record(name, np.full((2, 2, 3), value, np.uint8), np.array([[0, 0, 1, 1]], np.float32), np.array([label]))


@pytest.mark.parametrize("seed", range(3))
def test_pictures_of_equal_content_stay_together(seed):
    records = [picture(f"{value}{suffix}", value, 1 + value % 3) for value in range(30) for suffix in "ab"]
    drawn = splits.draw_splits(records, 3, {"train": 0.5, "val": 0.5}, seed)
    assert sorted(drawn["train"] + drawn["val"]) == sorted(record.name for record in records)
    for names in drawn.values():
        assert {name[:-1] + "a" for name in names} | {name[:-1] + "b" for name in names} == set(names)
        assert 8 <= sum(int(name[:-1]) % 3 == 0 for name in names) <= 12
    assert splits.draw_splits(records, 3, {"train": 0.5, "val": 0.5}, seed) == drawn
