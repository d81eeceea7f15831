"""Images that share ground are found, shifted, turned or scaled; folds keep them together, and a check reports cuts."""

import json
import sys
from collections import Counter

import numpy as np
import pytest

from paperlib.data import folds, layouts, load_dataset, matching, overlap, vhr10
from paperlib.data.records import Dataset, Record
from paperlib.experiments.case import cases_of
from paperlib.experiments.parameters import validate_settings

cv2 = pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def ground():
    """A ground with much to recognise, from which images are cut."""
    draw = np.random.default_rng(0)
    picture = np.full((900, 900, 3), 90, np.uint8)
    for _ in range(600):
        x, y = draw.integers(0, 880, 2).tolist()
        width, height = draw.integers(8, 60, 2).tolist()
        cv2.rectangle(picture, (x, y), (x + width, y + height), draw.integers(0, 255, 3).tolist(), -1)
    return cv2.GaussianBlur(picture, (0, 0), 1.2)


def turned(picture, degrees, scale):
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, scale)
    return cv2.warpAffine(picture, matrix, (width, height))


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        (lambda ground: ground[250:650, 200:600], True),  # shifted by half of the image
        (lambda ground: turned(ground, 35, 1.0)[200:600, 200:600], True),
        (lambda ground: turned(ground, 0, 0.6)[300:700, 300:700], True),
        (lambda ground: ground[100:500, 0:400, ::-1] // 2, True),  # other colours, half as bright
        (lambda ground: np.ascontiguousarray(ground[0:400, 0:400, :][:, ::-1]), False),  # mirrored
        (lambda ground: ground[500:900, 500:900], False),  # elsewhere
    ],
)
def test_images_of_one_ground_are_found_and_others_are_not(ground, change, shared):
    images = [
        matching.find_features(np.ascontiguousarray(picture)) for picture in (ground[0:400, 0:400], change(ground))
    ]
    assert (matching.compare_images(images, 0, 1).inliers >= overlap.SURE) == shared


def test_one_object_in_two_images_is_no_shared_ground(ground):
    pictures = [np.full((400, 400, 3), 90, np.uint8) for _ in range(2)]
    for picture, (x, y) in zip(pictures, ((40, 40), (290, 210)), strict=True):
        picture[y : y + 64, x : x + 64] = ground[100:164, 100:164]
    images = [matching.find_features(picture) for picture in pictures]
    assert matching.place_images(images, 0, 1, matching.FEATURES).inliers >= overlap.DOUBTFUL, "it is recognised"
    assert matching.compare_images(images, 0, 1).inliers == 0


def test_groups_are_the_connected_components():
    assert overlap.connect([("b", "a"), ("d", "c"), ("a", "e"), ("f", "c")]) == [["a", "b", "e"], ["c", "d", "f"]]
    assert overlap.find_cut_groups([["a", "b"], ["c", "d"]], {"a": "train", "b": "test", "c": "val", "d": "val"}) == [
        ["a", "b"]
    ]


@pytest.fixture
def project(ground, tmp_path, monkeypatch):
    """Four images of which the first two share ground, as a data set of the layout of VHR-10."""
    root = tmp_path / "data" / vhr10.LAYOUT.folder
    for folder in (vhr10.IMAGES, vhr10.ANNOTATIONS):
        (root / folder).mkdir(parents=True)
    corners = {"001": (0, 0), "002": (120, 60), "003": (560, 560), "004": (0, 560)}
    for name, (x, y) in corners.items():
        cv2.imwrite(str(root / vhr10.IMAGES / f"{name}.jpg"), ground[y : y + 330, x : x + 330])
        (root / vhr10.ANNOTATIONS / f"{name}.txt").write_text("(10,20),(30,45),1\n")
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path / "store"))
    return tmp_path


def test_the_command_writes_the_pairs_and_keeps_what_was_decided_by_eye(project, capsys):
    overlap.main(["vhr10", "--sheet", str(project / "sheet.png")])
    assert cv2.imread(str(project / "sheet.png")).shape == (320, 1280, 3)
    assert "2 images in 1 groups share ground" in capsys.readouterr().out
    assert overlap.load_groups("vhr10") == [["001", "002"]]
    path = overlap.overlap_path("vhr10")
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"pairs": [], "refused": found["pairs"]}))
    overlap.main(["vhr10"])
    assert overlap.load_groups("vhr10") == [] and json.loads(path.read_text())["refused"] == found["pairs"]


def test_an_interrupted_search_goes_on_where_it_ended(project, monkeypatch):
    cache = project / "cache"
    whole = overlap.find_overlap(vhr10.LAYOUT, project / "data" / vhr10.LAYOUT.folder, cache)
    rows = (cache / "rows.jsonl").read_text().splitlines()
    (cache / "rows.jsonl").write_text("\n".join(rows[:2]) + "\n" + rows[2][:3])  # the third line is cut off
    compared = []
    real = overlap.compare_images
    monkeypatch.setattr(overlap, "compare_images", lambda *pair: compared.append(pair[1:]) or real(*pair))
    assert overlap.find_overlap(vhr10.LAYOUT, project / "data" / vhr10.LAYOUT.folder, cache) == whole
    assert overlap.find_overlap(vhr10.LAYOUT, project / "data" / vhr10.LAYOUT.folder, cache) == whole
    assert compared == [(2, 3)], "the row after the one that was cut off is whole, too"


def test_without_opencv_the_command_says_what_to_install(project, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SystemExit) as ended:
        overlap.main(["vhr10"])
    assert (ended.value.code, capsys.readouterr().err) == (
        2,
        "OpenCV is not installed; pip install opencv-python-headless\n",
    )


def test_images_of_a_group_get_one_number_and_so_do_tiles_of_an_image():
    def dataset(*names):
        nothing = np.empty((0, 4), np.float32), np.empty(0, np.int64)
        return Dataset(
            "vhr10/test", ("ship",), [Record(name, np.zeros((1, 1, 3), np.uint8), *nothing) for name in names]
        )

    one, other, alone, *tiles = overlap.group_images(dataset("003", "014", "001", "P7@0,0", "P7@600,0"))
    assert one == other != alone and tiles[0] == tiles[1] != alone


# --- folds -----------------------------------------------------------------------------------------------


def records(count):
    draw = np.random.default_rng(1)
    boxes = np.array([[0, 0, 4, 4]], np.float32)
    return [
        Record(f"{number:03}", draw.integers(0, 255, (6, 6, 3), dtype=np.uint8), boxes, np.array([1 + number % 2]))
        for number in range(count)
    ]


def test_folds_keep_groups_whole_and_share_out_every_class():
    images, groups = records(60), [["000", "017", "031"], ["002", "003"]]
    drawn = folds.draw_folds(images, 2, groups)
    assert sorted(name for fold in drawn["folds"] for name in fold) == [record.name for record in images]
    for test, val in zip(drawn["folds"], drawn["val"], strict=True):
        assert not set(test) & set(val) and len(test) in range(10, 15) and len(val) in range(4, 9)
        split_of = dict.fromkeys((record.name for record in images), "train")
        split_of |= dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
        assert not overlap.find_cut_groups(groups, split_of)
        counts = Counter(int(record.labels[0]) for record in images if record.name in test)
        assert abs(counts[1] - counts[2]) <= 4


def test_the_committed_folds_cut_no_group_and_test_every_image_once():
    assert folds.find_cut_folds("vhr10") == []
    splits = [folds.stored_fold("vhr10", fold) for fold in range(folds.COUNT)]
    assert sorted(name for each in splits for name in each["test"]) == [f"{number:03}" for number in range(1, 651)]
    assert all(sum(map(len, each.values())) == 650 for each in splits)


def test_the_committed_folds_are_those_that_the_command_draws(data_root):
    if not (data_root / vhr10.LAYOUT.folder).is_dir():
        pytest.skip(f"{data_root} holds no vhr10")
    drawn = folds.draw_fold_file(vhr10.LAYOUT, data_root / vhr10.LAYOUT.folder)
    assert drawn == json.loads(folds.folds_path("vhr10").read_text())


def test_a_fold_that_does_not_exist_and_a_data_set_without_folds_are_refused():
    with pytest.raises(ValueError, match="vhr10 has folds 0 to 4, not 5"):
        load_dataset("vhr10", "test", fold=5)
    with pytest.raises(ValueError, match="toy-aerial has no folds; vhr10 has"):
        load_dataset("toy-aerial", "test", fold=0)


def test_the_check_reports_the_groups_that_the_old_split_cuts():
    cut = overlap.find_cut_groups(overlap.load_groups("vhr10"), layouts.split_of(vhr10.LAYOUT))
    assert ["135", "136"] in [sorted({"135", "136"} & set(group)) for group in cut]


def test_the_run_of_a_seed_is_tested_on_its_fold():
    case = cases_of(validate_settings("03_components", {"dataset": "vhr10", "folds": 5, "seeds": [3, 7, 12]}))[""]
    assert [case.splits_of(seed).fold for seed in (3, 7, 12)] == [3, 2, 2]
    assert case.splits_of(3) is case.splits and case.splits_of(7) is case.splits_of(12), "each is read once"
