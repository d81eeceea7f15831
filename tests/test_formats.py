"""Pascal VOC and DOTA folders, and the one door: what is meant is read, and what is wrong is said in one line."""

import json

import numpy as np
import pytest
from PIL import Image

from paperlib.data import load_dataset
from paperlib.data.own import find_own_splits, name_own

SIZE = WIDTH, HEIGHT = 80, 40


def write_image(path, size=SIZE, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, colour, colour)).save(path)


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def voc_object(name="ship", corners=(1, 1, 80, 40), extra=""):
    # Fewer corners than names are one of the faults.
    inner = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{inner}</bndbox></object>"


def voc(*objects, size=f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>", name="a.png"):
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def folder(tmp_path):
    """Return a Pascal VOC folder of two splits, with an image without annotation in each."""
    for index, name in enumerate(("a.png", "b.jpg", "c.png", "d.png")):
        write_image(tmp_path / "JPEGImages" / name, colour=index)
    write_text(tmp_path / "Annotations" / "a.xml", voc(voc_object(), voc_object("plane", (11.5, 2, 20.25, 9))))
    write_text(tmp_path / "Annotations" / "c.xml", voc(voc_object("ship", (1, 1, 1, 1)), name="c.png"))
    write_text(tmp_path / "ImageSets/Main/train.txt", "a\nb\n")
    write_text(tmp_path / "ImageSets/Main/val.txt", "c.png 1\nd -1\n")
    write_text(tmp_path / "ImageSets/Main/ship_train.txt", "a 1\n")
    return tmp_path


# --- Pascal VOC -----------------------------------------------------------------------------------------


def test_corners_count_pixels_from_one_and_the_last_pixel_belongs_to_the_box(folder):
    train = load_dataset(f"voc:{folder}", "train")
    assert train.classes == ("plane", "ship") and [record.name for record in train.records] == ["a.png", "b.jpg"]
    assert train.records[0].boxes.tolist() == [[0, 0, 80, 40], [10.5, 1, 20.25, 9]]
    assert train.records[0].labels.tolist() == [2, 1]
    assert train.remarks == ("images without a file of labels, read as images without objects: 1 (first: 'b.jpg')",)
    val = load_dataset(f"voc:{folder}", "val", classes=train.classes)
    assert val.records[0].boxes.tolist() == [[0, 0, 1, 1]] and val.records[0].labels.tolist() == [2]
    assert find_own_splits(f"voc:{folder}") == ("train", "val")


VOC_VARIANTS = {
    "no-size": (voc(voc_object(), size=""), ()),
    "size-of-zero": (voc(voc_object(), size="<size><width>0</width><height>0</height></size>"), ()),
    "size-as-float": (voc(voc_object(), size="<size><width>80.0</width><height>40.0</height></size>"), ()),
    "declaration-late": ("\n<?xml version='1.0'?>" + voc(voc_object()), ()),
    "flags": (
        voc(voc_object(extra="<pose>Unspecified</pose><difficult>1</difficult><truncated>Unspecified</truncated>")),
        ("difficult objects, read as any other: 1",),
    ),
    "parts": (voc(voc_object(extra="<part><name>bow</name><bndbox><xmin>3</xmin></bndbox></part>")), ()),
    "zero": (voc(voc_object(corners=(0, 0, 80, 40))), ("corners of 0, though VOC counts pixels from 1: 1",)),
    "polygon": (
        voc(
            "<object><name>ship</name><polygon><x1>0</x1><y1>0</y1><x2>80</x2><y2>0</y2><x3>80</x3><y3>40</y3>"
            "</polygon></object>"
        ),
        ("objects without bndbox, read as the box around their polygon: 1",),
    ),
    "turned": (
        voc(
            "<object><name>ship</name><robndbox><cx>40</cx><cy>20</cy><w>40</w><h>80</h><angle>1.5707963267948966"
            "</angle></robndbox></object>"
        ),
        ("turned boxes (robndbox), read as the upright box around each: 1",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "remarks"), VOC_VARIANTS.values(), ids=VOC_VARIANTS)
def test_what_tools_write_is_read_as_what_it_means(folder, text, remarks):
    write_text(folder / "Annotations/a.xml", text)
    dataset = load_dataset(f"voc:{folder}", "train")
    np.testing.assert_allclose(dataset.records[0].boxes, [[0, 0, 80, 40]], atol=1e-5)
    found = [remark for remark in dataset.remarks if "without a file" not in remark]
    assert [remark.partition(" (first")[0] for remark in found] == list(remarks)


VOC_FAULTS = {
    "not-xml": ("<annotation>", r"a\.xml: not XML \("),
    "empty": ("", r"a\.xml: not XML \("),
    "cvat": ("<annotations/>", r"a\.xml: not Pascal VOC: <annotations> instead of <annotation>"),
    "entities": ('<!DOCTYPE a [<!ENTITY b "c">]>' + voc(), r"a\.xml: defines XML entities"),
    "nested": (voc(f"<objects>{voc_object()}</objects>"), r"a\.xml: not Pascal VOC: an <object> is not directly"),
    "no-name": (voc("<object/>"), r"a\.xml, object 1: has no name"),
    "no-box": (voc("<object><name>ship</name></object>"), r"a\.xml, object 1: has no bndbox with xmin, ymin"),
    "three-corners": (voc(voc_object(corners=(1, 2, 3))), r"object 1: its bndbox has no ymax"),
    "comma": (voc(voc_object(corners=("1,5", 2, 3, 4))), r"bndbox/xmin '1,5' is not a number of pixels"),
    "nan": (voc(voc_object(), voc_object(corners=("nan", 2, 3, 4))), r"object 2: bndbox/xmin 'nan' is not a number"),
    "shares": (voc(voc_object(corners=(0.1, 0.1, 0.9, 0.9))), r"object 1: its corners lie in \[0, 1\]"),
    "size": (voc(size="<size><width>8x</width></size>"), r"a\.xml: width '8x' is not a number of pixels"),
    "other-size": (
        voc(size="<size><width>81</width><height>40</height></size>"),
        r"is 80 x 40 pixels, .* says 81 x 40",
    ),
    "reversed": (
        voc(voc_object(corners=(20, 1, 10, 30))),
        r"Annotations|a\.xml: box 1 .* corners reversed; --bad-boxes",
    ),
    "outside": (voc(voc_object(corners=(1, 1, 90, 30))), r"a\.xml: box 1 .* is not inside .*; --bad-boxes"),
}


@pytest.mark.parametrize(("text", "fault"), VOC_FAULTS.values(), ids=VOC_FAULTS)
def test_a_damaged_annotation_is_refused_in_one_line_that_says_where(folder, text, fault):
    write_text(folder / "Annotations/a.xml", text)
    with pytest.raises(ValueError, match=fault) as refusal:
        load_dataset(f"voc:{folder}", "train")
    assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)


def test_lists_that_name_nothing_and_splits_that_are_not_there_are_refused(folder):
    with pytest.raises(ValueError, match=r"ImageSets/Main: has no test; it has train, val \(#NAME"):
        load_dataset(f"voc:{folder}", "test")
    write_text(folder / "ImageSets/Main/train.txt", "a\n\nx\n")
    with pytest.raises(FileNotFoundError, match=r"train\.txt, line 3: 'x' has no image and no annotation"):
        load_dataset(f"voc:{folder}", "train")
    write_text(folder / "ImageSets/Main/train.txt", "a\n")
    (folder / "JPEGImages/a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.xml: its image 'a\.png' is not in .*JPEGImages"):
        load_dataset(f"voc:{folder}", "train")


def test_a_list_of_another_name_is_chosen_behind_the_path(folder):
    write_text(folder / "ImageSets/Main/trainval.txt", "a\nb\nc\nd\n")
    assert len(load_dataset(f"voc:{folder}#trainval", "train")) == 4
    assert len(load_dataset(f"voc:{folder}#val", "train")) == 2


def test_a_folder_of_annotations_beside_images_is_one_split(folder, tmp_path_factory):
    flat = tmp_path_factory.mktemp("flat")
    for path in (*folder.glob("Annotations/*"), *folder.glob("JPEGImages/*")):
        path.rename(flat / path.name)
    assert name_own(str(flat)) == f"voc:{flat}" and find_own_splits(f"voc:{flat}") == ()
    for split in ("train", "val"):
        assert [record.name for record in load_dataset(f"voc:{flat}", split).records] == [
            "a.png", "c.png", "b.jpg", "d.png"
        ]  # fmt: skip
    write_image(flat / "a.jpg")
    assert len(load_dataset(f"voc:{flat}", "train")) == 5
    write_text(flat / "a.xml", voc(voc_object(), name="other.png"))
    with pytest.raises(ValueError, match=r"a\.xml: two images could be meant, 'a\.jpg' and 'a\.png'"):
        load_dataset(f"voc:{flat}", "train")


# --- DOTA -----------------------------------------------------------------------------------------------

DOTA_LABELS = "imagesource:GoogleEarth\nGSD:0.146\n40 0 80 20 40 40 0 20 ship 1\n0 0 10 0 10 10 0 10 small-vehicle\n"


@pytest.fixture
def scenes(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / split / "images/P1.png")
        write_image(tmp_path / split / "images/P2.png")
        write_text(tmp_path / split / "labelTxt/P1.txt", DOTA_LABELS)
    return tmp_path


def test_oriented_boxes_become_the_upright_ones_around_them(scenes):
    dataset = load_dataset(name_own(str(scenes)), "train")
    assert dataset.classes == ("ship", "small vehicle")
    assert dataset.records[0].boxes.tolist() == [[0, 0, 80, 40], [0, 0, 10, 10]]
    assert len(dataset.records[1].labels) == 0
    assert [remark.partition(":")[0] for remark in dataset.remarks] == [
        "difficult objects, read as any other",
        "oriented boxes, read as the upright box around each",
        "images without a file of labels, read as images without objects",
    ]
    assert find_own_splits(f"dota:{scenes}") == ("train", "val")
    assert len(load_dataset(f"dota:{scenes / 'val'}", "train")) == 2


DOTA_FAULTS = {
    "seven": ("1 2 3 4 5 6 7 ship 0", "is not x1 y1 x2 y2"),
    "yolo-obb": ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2", "is not x1 y1 x2 y2"),
    "no-class": ("1 2 3 4 5 6 7 8", "is not x1 y1 x2 y2"),
    "difficulty": ("1 2 3 4 5 6 7 8 ship hard", "is not x1 y1 x2 y2"),
    "nan": ("1 2 3 4 5 6 7 nan ship 0", "has a corner that is not a number of pixels"),
}


@pytest.mark.parametrize(("line", "fault"), DOTA_FAULTS.values(), ids=DOTA_FAULTS)
def test_a_damaged_line_is_refused_with_its_number(scenes, line, fault):
    write_text(scenes / "train/labelTxt/P1.txt", f"gsd:null\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"P1\.txt, line 3: .*{fault}") as refusal:
        load_dataset(f"dota:{scenes}", "train")
    assert "\n" not in str(refusal.value)


def test_a_label_file_without_image_and_a_missing_split_are_refused(scenes):
    with pytest.raises(ValueError, match="has no test; it has train, val"):
        load_dataset(f"dota:{scenes}", "test")
    write_text(scenes / "train/labelTxt/P9.txt", "")
    with pytest.raises(FileNotFoundError, match=r"P9\.txt: there is no image 'P9' in .*images"):
        load_dataset(f"dota:{scenes}", "train")


# --- one door -------------------------------------------------------------------------------------------


def write_coco(path, names, folder=""):
    images = [{"id": number, "file_name": folder + name} for number, name in enumerate(names)]
    boxes = [{"image_id": each["id"], "category_id": 1, "bbox": [1, 2, 10, 20]} for each in images]
    content = {"images": images, "categories": [{"id": 1, "name": "ship"}], "annotations": boxes}
    write_text(path, json.dumps(content))


def test_a_folder_is_recognised_by_what_it_holds(folder, scenes, tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    write_image(made / "roboflow/train/a.png")
    write_coco(made / "roboflow/train/_annotations.coco.json", ["a.png"])
    write_image(made / "roboflow/valid/b.png")
    write_coco(made / "roboflow/valid/_annotations.coco.json", ["b.png"])
    write_image(made / "official/train2017/a.png")
    write_coco(made / "official/annotations/instances_train2017.json", ["a.png"])
    write_text(made / "official/annotations/captions_train2017.json", "{}")
    write_image(made / "tool/a.png")
    write_text(made / "tool/a.txt", "1 0.5 0.5 0.5 0.5")
    write_text(made / "tool/classes.txt", "ship\nplane\n")
    assert load_dataset(name_own(f"{made}/roboflow"), "val").records[0].name == "b.png"
    assert find_own_splits(f"coco:{made}/roboflow") == ("train", "val")
    assert load_dataset(name_own(f"{made}/official"), "train").box_counts() == {"ship": 1}
    tool = load_dataset(name_own(f"{made}/tool"), "val")
    assert name_own(f"{made}/tool") == f"yolo:{made}/tool" and tool.box_counts() == {"ship": 0, "plane": 1}
    assert name_own("a/data.yaml") == "yolo:a/data.yaml" and name_own("a.json") == "coco:a.json"
    write_text(made / "tool/a.xml", voc())
    for place, fault in ((made / "tool", "holds data in YOLO and Pascal VOC format; say which, with yolo: or voc:"),
                         (made, "no data of a known format; known are a COCO file"),
                         (made / "tool/a.xml", "name the folder of the data instead")):  # fmt: skip
        with pytest.raises(ValueError, match=fault):
            name_own(str(place))


def test_one_split_is_distributed_by_a_seed_whatever_the_order_and_names_of_its_files(tmp_path):
    for number in range(20):
        write_image(tmp_path / f"{number:02d}.png", colour=number // 2)  # each picture twice
    names = [f"{number:02d}.png" for number in range(20)]
    write_coco(tmp_path / "all.json", names)
    write_coco(tmp_path / "back.json", names[::-1])
    splits = {split: load_dataset(f"coco:{tmp_path}/all.json#0.6/0.2/0.2", split) for split in ("train", "val", "test")}
    found = {split: {record.name for record in data.records} for split, data in splits.items()}
    assert [len(each) for each in found.values()] == [12, 4, 4]
    assert all((names[i] in each) == (names[i + 1] in each) for each in found.values() for i in range(0, 20, 2))
    again = load_dataset(f"coco:{tmp_path}/back.json#60/20/20", "val")
    assert {record.name for record in again.records} == found["val"]
    for chosen, fault in (("1/1/1", "add up to 3"), ("50/50", "not three numbers"), ("0/50/50", "not three numbers")):
        with pytest.raises(ValueError, match=fault):
            load_dataset(f"coco:{tmp_path}/all.json#{chosen}", "train")
