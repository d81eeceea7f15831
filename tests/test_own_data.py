"""Someone's own data as tools write them: what is repaired with a remark, what is refused, and where images may lie."""

import copy
import json
import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.data import load_dataset
from paperlib.data.annotated import settle_boxes
from paperlib.data.coco_values import turn_box
from paperlib.data.remarks import Remarks

SIZE = WIDTH, HEIGHT = 40, 30
CONTENT = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}, {"id": 2, "file_name": "b.png"}],
    "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "plane"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 5, 20, 10]},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [10, 8, 6, 5]},
    ],
}
BOXES = [[[4, 5, 24, 15]], [[10, 8, 16, 13]]]


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE).save(tmp_path / name)
    return tmp_path


def edit(content=CONTENT, **changes):
    """Return the content with each entry of a table changed: `annotations={...}` changes all annotations."""
    content = copy.deepcopy(content)
    for table, change in changes.items():
        for entry in content[table]:
            entry.update({key: value(entry) if callable(value) else value for key, value in change.items()})
    return content


def read(folder, content, split="train", **options):
    path = folder / "train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_dataset(f"coco:{path}", split, **options)


def refusal(folder, content, **options):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(folder, content, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def boxes_of(dataset):
    return [record.boxes.tolist() for record in dataset.records]


# --- values of another type -----------------------------------------------------------------------------


def polygons(entry):
    x, y, w, h = entry["bbox"]
    return [[x, y, x + w / 2, y, x + w / 2, y + h], [x + w, y, x, y + h, x, y]]


WITHOUT_BBOX = edit(annotations={"segmentation": polygons})
for entry in WITHOUT_BBOX["annotations"]:
    del entry["bbox"]
REPAIRED = {
    "as-it-is": (CONTENT, None),
    "crowd-texts": (edit(annotations={"iscrowd": "0"}), None),
    "crowd-words": (edit(annotations={"iscrowd": "False"}), None),
    "crowd-floats": (edit(annotations={"iscrowd": 0.0}), None),
    "crowd-nan": (json.dumps(edit(annotations={"iscrowd": math.nan})), "NaN in line 1"),
    "nan-in-sizes": (json.dumps(edit(images={"width": math.nan})), "NaN in line 1"),
    "sizes-of-text": (edit(images={"width": "40", "height": " 30.0 "}), None),
    "sizes-unknown": (edit(images={"width": -1, "height": 0}), None),
    "float-ids": (edit(images={"id": lambda e: float(e["id"])}, categories={"id": lambda e: float(e["id"])}), None),
    "float-images": (edit(annotations={"image_id": lambda e: float(e["image_id"])}), None),
    "float-categories": (edit(annotations={"category_id": lambda e: float(e["category_id"])}), None),
    "ids-repeated": (edit(annotations={"id": 7}), "ids that several annotations share"),
    "ids-lists": (edit(annotations={"id": [7]}), None),
    "polygons": (WITHOUT_BBOX, "without bbox, read as the box around their polygons: 2"),
    "not-turned": (edit(annotations={"attributes": {"rotation": 0.0}}), None),
    "turned-by-half": (edit(annotations={"attributes": {"rotation": "180"}}), "turned boxes (rotation)"),
    "turned-beside": (edit(annotations={"rotation": 180}), "turned boxes (rotation)"),
    "turned-nan": (json.dumps(edit(annotations={"attributes": {"rotation": math.nan}})), "NaN in line 1"),
    "ignored": (edit(annotations={"ignore": 1}), "marked to ignore, read as objects like others: 2"),
    "category-again": ({**CONTENT, "categories": CONTENT["categories"] * 2}, "listed again, left out: 2"),
    "area-of-a-mask": (edit(annotations={"area": 40}), None),
    "no-attributes": (edit(annotations={"attributes": []}), None),
}  # fmt: skip


@pytest.mark.parametrize(("content", "remark"), REPAIRED.values(), ids=REPAIRED)
def test_values_of_another_type_are_read_as_what_they_mean(folder, content, remark):
    dataset = read(folder, content)
    np.testing.assert_allclose([boxes for [boxes] in boxes_of(dataset)], [boxes for [boxes] in BOXES], atol=1e-4)
    assert [record.labels.tolist() for record in dataset.records] == [[1], [2]]
    assert [remark in line for line in dataset.remarks] == [True] * (remark is not None)


def test_what_is_repaired_is_told_with_its_line(folder, caplog):
    text = json.dumps(edit(annotations={"area": math.nan}), indent=1)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "NaN" in line)
    read(folder, text)
    told = f"coco:train.json: NaN or infinite values, read as if nothing stood there: 2 (first: NaN in line {line})"
    assert caplog.messages == [told]


REFUSED = {
    "crowd": (edit(annotations={"iscrowd": "perhaps"}), r"annotations[0]: iscrowd 'perhaps' is neither 0 nor 1"),
    "crowd-two": (edit(annotations={"iscrowd": 2}), "annotations[0]: iscrowd 2 is neither 0 nor 1"),
    "half-id": (edit(images={"id": 1.5}), "images: id 1.5 is not a whole number or a text"),
    "half-size": (edit(images={"width": "40.5"}), "width '40.5' is not a number of pixels"),
    "nan-box": (json.dumps(edit(annotations={"bbox": [1, 2, math.nan, 4]})), "annotations[0]: bbox"),
    "mask-alone": (edit(annotations={"bbox": None, "segmentation": {"counts": [1]}}), "annotations[0]: has no bbox"),
    "two-points": (edit(annotations={"bbox": [], "segmentation": [[1, 2, 3, 4]]}), "annotations[0]: has no bbox"),
    "turned": (edit(annotations={"attributes": {"rotation": "left"}}), "[0]: rotation 'left' is not a number of"),
    "two-names": (edit(categories={"id": 1}), "categories: id 1 is given to 'ship' and 'plane'"),
    "cut-text": (edit(categories={"name": "ship\ud83d"}), r"categories: name 'ship\ud83d' is not valid Unicode"),
    "two-lines": (edit(images={"file_name": lambda e: f"x{e['id']}\n"}), r"x1\n: no such image"),
    "corners": (edit(annotations={"bbox": [4, 5, 14, 25], "area": 200}), "bbox [4, 5, 14, 25], like every other, has"),
    "corner-mode": (edit(annotations={"bbox_mode": 0}), "annotations[0]: bbox_mode 0 is not 1; COCO has [x, y, width"),
    "normalised": (edit(annotations={"bbox": [0.1, 0.2, 0.3, 0.25]}), "multiply x and width by the image's width"),
    "all-of-it": (edit(annotations={"bbox": [0, 0, 1, 1.0001]}), "lies in [0, 1]"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "fault"), REFUSED.values(), ids=REFUSED)
def test_what_could_mean_two_things_is_refused_with_its_place(folder, content, fault):
    assert fault in refusal(folder, content)


def test_a_turned_box_becomes_the_upright_box_around_it(folder):
    content = edit(annotations={"bbox": [12, 11, 20, 4], "attributes": {"rotation": 90.0}})
    np.testing.assert_allclose(boxes_of(read(folder, content))[0], [[20, 3, 24, 23]], atol=1e-4)


@given(st.tuples(*[st.floats(-50, 50)] * 2, *[st.floats(0.1, 50)] * 2), st.floats(-720, 720))
def test_the_corners_of_a_turned_box_touch_the_upright_box_around_it(box, degrees):
    x, y, width, height = box
    centre = np.array([x + width / 2, y + height / 2])
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * [width / 2, height / 2]
    angle = math.radians(degrees)
    turned = corners @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) + centre
    found = turn_box(list(box), degrees)
    np.testing.assert_allclose(found[:2], turned.min(0), atol=1e-6)
    np.testing.assert_allclose(np.add(found[:2], found[2:]), turned.max(0), atol=1e-6)


# --- boxes that are none --------------------------------------------------------------------------------

BAD = {
    "sticks-out": ([-3, 5, 20, 10], [0, 5, 17, 15]),
    "zero-height": ([4, 5, 20, 0], None),
    "negative": ([24, 5, -20, 10], None),
    "elsewhere": ([100, 100, 5, 5], None),
    "share": ([0.2, 0.2, 0.5, 0.5], None),
}


@pytest.mark.parametrize(("box", "cut"), BAD.values(), ids=BAD)
def test_a_bad_box_is_refused_cut_or_left_out_as_the_option_says(folder, box, cut):
    content = copy.deepcopy(CONTENT)
    content["annotations"].append({"image_id": 1, "category_id": 1, "bbox": box})
    assert "--bad-boxes" in refusal(folder, content)
    skipped, clipped = (read(folder, content, bad_boxes=policy) for policy in ("skip", "clip"))
    assert boxes_of(skipped) == BOXES
    assert boxes_of(clipped)[0] == [[4, 5, 24, 15], *([cut] if cut else [])]
    for dataset, word in ((skipped, "left out"), (clipped, "cut" if cut else "left out")):
        [line] = dataset.remarks
        assert word in line and ": 1 (first: " in line


def test_a_box_that_is_not_four_numbers_can_only_be_left_out(folder):
    content = copy.deepcopy(CONTENT)
    content["annotations"].append({"image_id": 1, "category_id": 1, "bbox": [1, 2, "3", 4]})
    assert "annotations[2]: bbox" in refusal(folder, content, bad_boxes="clip")
    assert boxes_of(read(folder, content, bad_boxes="skip")) == BOXES


def test_a_box_that_is_there_twice_is_told(folder):
    content = copy.deepcopy(CONTENT)
    content["annotations"] += [{**CONTENT["annotations"][0], "id": 3}, {**CONTENT["annotations"][0], "category_id": 2}]
    dataset = read(folder, content)
    assert len(dataset.records[0].boxes) == 3
    assert dataset.remarks[-1] == "boxes that are in their image twice, with the same class: 1 (first: image a.png)"


@given(st.lists(st.tuples(*[st.floats(-60, 60)] * 4), max_size=6), st.sampled_from(["clip", "skip"]))
def test_whatever_the_boxes_those_that_remain_lie_inside_and_have_an_area(corners, policy):
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    remarks = Remarks()
    settled, kept = settle_boxes(boxes, SIZE, policy, "image a.png", remarks)
    assert ((settled >= 0) & (settled <= [*SIZE, *SIZE])).all() and (settled[:, 2:] > settled[:, :2]).all()
    assert len(settled) == kept.sum() and any("left out" in line for line in remarks.lines()) == (not kept.all())


# --- categories -----------------------------------------------------------------------------------------


def with_categories(*categories):
    content = copy.deepcopy(CONTENT)
    content["categories"] += [{"id": 0, "name": "root", "supercategory": "none"}, *categories]
    return content


def test_categories_without_boxes_are_no_classes_of_training_data(folder):
    content = with_categories({"id": 9, "name": "bridge"})
    dataset = read(folder, content)
    assert dataset.classes == ("ship", "plane")
    [line] = dataset.remarks
    assert "'root', 'bridge'" in line
    # Validation data need not hold every class; a category that only groups others is none in any data.
    assert read(folder, content, "val").classes == ("ship", "plane", "bridge")


def test_classes_are_chosen_by_name_in_the_order_given(folder):
    content = with_categories({"id": 9, "name": "bridge"})
    chosen = read(folder, content, classes=["bridge", "plane"])
    assert chosen.classes == ("bridge", "plane")
    assert [record.labels.tolist() for record in chosen.records] == [[], [2]]
    assert boxes_of(chosen) == [[], BOXES[1]]
    assert chosen.remarks == ("boxes of other classes, left out: 1 (first: 'ship')",)
    assert "lists no category 'boat'; it lists 'root', 'ship'" in refusal(folder, content, classes=["boat"])
    assert "'ship' is given twice" in refusal(folder, content, classes=["ship", "ship"])


def test_categories_of_one_name_become_one_class(folder):
    content = edit(categories={"name": "ship", "supercategory": "ship"})
    dataset = read(folder, content)
    assert dataset.classes == ("ship",) and dataset.box_counts() == {"ship": 2}
    assert dataset.remarks == ("categories of one name, read as one class: 2 (first: 'ship')",)


# --- names of images ------------------------------------------------------------------------------------

SPELLINGS = {
    "backslash": ("deep\\in\\c 1.png", "deep/in/c 1.png"),
    "url": ("deep/c%201%C3%A9.png", "deep/c 1é.png"),
    "both": ("deep%5Cc.png", "deep/c.png"),
    "composed": (unicodedata.normalize("NFC", "Großer Häfen.png"), unicodedata.normalize("NFD", "Großer Häfen.png")),
    "capitals": ("Deep/C.PNG", "deep/c.png"),
    "decomposed": (unicodedata.normalize("NFD", "Häfen.png"), unicodedata.normalize("NFC", "Häfen.png")),
}


@pytest.mark.parametrize(("written", "real"), SPELLINGS.values(), ids=SPELLINGS)
def test_names_that_another_system_wrote_are_found(folder, written, real):
    (folder / real).parent.mkdir(parents=True, exist_ok=True)
    (folder / "a.png").rename(folder / real)
    content = copy.deepcopy(CONTENT)
    content["images"][0]["file_name"] = written
    dataset = read(folder, content)
    assert boxes_of(dataset) == BOXES
    [line] = dataset.remarks
    assert "another spelling" in line and ": 1 (first: " in line


def test_a_name_is_taken_as_it_stands_if_there_is_such_a_file(folder):
    (folder / "a.png").rename(folder / "a%20.png")
    Image.new("RGB", (8, 8)).save(folder / "a .png")
    content = copy.deepcopy(CONTENT)
    content["images"][0]["file_name"] = "a%20.png"
    assert read(folder, content).remarks == ()


def test_capitals_that_fit_two_files_find_neither(folder):
    for name in ("c.png", "C.png"):
        Image.new("RGB", SIZE).save(folder / name)
    content = copy.deepcopy(CONTENT)
    content["images"][0]["file_name"] = "c.PNG"
    assert "c.PNG: no such image" in refusal(folder, content)


def test_two_names_of_one_file_are_refused(folder):
    content = copy.deepcopy(CONTENT)
    content["images"][1]["file_name"] = ".\\a.png"
    assert "is the same file as image 'a.png'" in refusal(folder, content)


@pytest.mark.parametrize(
    "name", ["../c.png", "x/../../c.png", "..\\c.png", "%2e%2e/c.png", "/c.png", "C:\\c.png", "link.png", "link/c.png"]
)
def test_no_name_leads_out_of_the_folder_of_images_unless_that_is_wanted(folder, name):
    inside = folder / "images"
    (inside / "x").mkdir(parents=True)
    (folder / "a.png").rename(folder / "c.png")
    (folder / "b.png").rename(inside / "b.png")
    if name.startswith("link"):
        (inside / name.split("/")[0]).symlink_to(folder / "c.png" if name == "link.png" else folder)
    content = copy.deepcopy(CONTENT)
    content["images"][0]["file_name"] = str(folder / "c.png") if name == "/c.png" else name
    said = refusal(folder, content, root=inside)
    assert "out of the folder of images" in said and "--allow-outside" in said and "train.json, image " in said
    if name[0] != "C":  # a drive, which only Windows has
        assert boxes_of(read(folder, content, root=inside, allow_outside=True)) == BOXES


# --- paperlib data check FILE ---------------------------------------------------------------------------


def check(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def test_a_check_reads_every_image_and_tells_what_a_training_would_meet(folder):
    content = with_categories()
    content["annotations"] += [{"image_id": 1, "category_id": 1, "bbox": [-3, 5, 20, 10]}]
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    refused = check(path)
    assert refused.exit_code == 2 and "--bad-boxes" in refused.stderr and refused.stderr.count("\n") == 1
    told = check(path, "--bad-boxes", "clip")
    assert told.exit_code == 0 and "2 images and 3 boxes" in told.stdout
    for remark in ("boxes cut at the border of their image: 1", "categories without boxes are left out: 'root'"):
        assert f"remark  {remark}" in told.stdout
    assert "the same picture: a.png, b.png" in told.stdout
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:50])
    broken = check(path, "--bad-boxes", "skip", "--classes", "plane,ship")
    assert broken.exit_code == 2 and "FAULT  " in broken.stdout and "b.png: the image does not decode" in broken.stdout
    assert "bad_boxes 'cut': not one of error, clip, skip" in check(path, "--bad-boxes", "cut").stderr
