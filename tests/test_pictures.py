"""Pictures are read as they are meant: turned as displayed, with all their bits, large ones by parts."""

import json
import warnings

import numpy as np
import pytest
import pyvips
from PIL import Image

from paperlib.data import load_dataset, pictures
from paperlib.data.pictures import decode_image, image_size, read_header
from paperlib.data.records import Record, turn_boxes
from paperlib.data.row_reader import read_part
from paperlib.data.tiles import FilePart
from paperlib.data.value_range import value_range

SIZE = (64, 48)
RAMP = np.linspace(0, 1, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0])
ORIENTATIONS = range(1, 9)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def write_deep(path, values, kind):
    """Write a picture with libvips, which knows every depth."""
    image = pyvips.Image.new_from_array(values.astype(np.float64)).cast(kind)
    image.copy(interpretation="rgb16" if image.bands == 3 else "grey16").write_to_file(str(path))
    return path


def expected(black, white, values):
    return np.rint((values - black) * (255 / (white - black)))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize(
    ("low", "high", "black", "white"),
    [(0, 65535, 0, 65535), (200, 4095, 0, 4095), (0, 1000, 0, 1023), (0, 200, 0, 255), (29000, 31000, 29000, 31000)],
)
def test_pictures_of_16_bits_are_scaled_by_the_range_that_they_use(tmp_path, suffix, bands, low, high, black, white):
    values = np.rint(low + RAMP * (high - low))
    deep = np.dstack([values] * 3) if bands == 3 else values
    file = write_deep(tmp_path / f"a.{suffix}", deep, "ushort")
    pixels = decode_image(file)
    assert pixels.shape == (48, 64, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == expected(black, white, values)[..., None]).all()
    assert (FilePart(file, (10, 20, 30, 40)).read_pixels() == pixels[20:40, 10:30]).all()


@pytest.mark.parametrize(
    ("kind", "low", "high", "black", "white"),
    [
        ("float", 0, 1, 0, 1),
        ("float", 0.1, 0.7, 0, 1),
        ("float", -40, 35, -40, 35),
        ("float", 0.5, 0.51, 0.5, 0.51),
        ("short", -500, 900, -500, 900),
        ("int", 0, 100_000, 0, 100_000),
        ("uint", 0, 4e9, 0, 2**32 - 1),
    ],
)
def test_floats_and_other_whole_numbers_are_scaled_by_the_same_rule(tmp_path, kind, low, high, black, white):
    values = low + RAMP * (high - low)
    pixels = decode_image(write_deep(tmp_path / "a.tif", values, kind))
    found = pixels[..., 0].astype(int)
    assert abs(found - expected(black, white, values)).max() <= 1
    assert (np.diff(found.reshape(-1)) >= 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    values = RAMP.astype(np.float32)
    values[3, 4] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="a.tif: has pixels that are NaN or infinite"):
        decode_image(tmp_path / "a.tif")


@pytest.mark.parametrize("value", [0, 7, 40_000, 65_535])
def test_a_deep_picture_of_one_value_is_one_grey(tmp_path, value):
    file = write_deep(tmp_path / "a.png", np.full((8, 8), value), "ushort")
    assert len(np.unique(decode_image(file))) == 1


def test_the_range_never_clips():
    for low, high in [(0, 1), (-3, 9), (5, 5), (-5, -5), (2**33, 2**34), (0, 255), (254, 256)]:
        for is_float in (False, True):
            black, white = value_range(low, high, is_float=is_float, place="a")
            assert black <= low <= high <= white
            assert black < white


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_picture_is_displayed_as_its_orientation_says_and_boxes_turn_with_it(tmp_path, suffix, orientation):
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[8:24, 8:40] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).save(file, exif=exif, quality=95)
    pixels = decode_image(file)
    assert image_size(file) == (pixels.shape[1], pixels.shape[0]) == ((48, 64) if orientation > 4 else (64, 48))
    assert read_header(file).stored_size() == SIZE
    box = turn_boxes(np.array([[8.0, 8.0, 40.0, 24.0]]), SIZE, orientation)
    left, top, right, bottom = box[0].astype(int)
    assert pixels[top:bottom, left:right].mean() > 250
    assert pixels.mean() < 255 * 0.2
    if suffix != "webp":
        assert abs(read_part(file, left, top, right, bottom).astype(int) - pixels[top:bottom, left:right]).max() <= 2


@pytest.mark.parametrize(
    ("stated", "box"),
    [
        ((48, 64), [0, 0, 48, 10]),
        ((64, 48), [0, 0, 10, 48]),
        (("48", "64"), [0, 0, 48, 10]),
        ((-1, -1), [0, 0, 48, 10]),
        (("0", 0), [0, 0, 48, 10]),
        ((None, 64.0), [0, 0, 48, 10]),
    ],
)
def test_boxes_of_a_coco_file_are_those_of_the_size_that_it_states(tmp_path, stated, box):
    data = load_dataset(f"coco:{write_coco(tmp_path, stated, box)}", "train")
    assert data.records[0].boxes.tolist() == [[0, 0, 48, 10]]
    assert data.records[0].size() == (48, 64)


@pytest.mark.parametrize(
    ("stated", "fault"),
    [
        ((50, 64), r"a.jpg: is 48 x 64 pixels \(as displayed; its EXIF orientation 6 .* says 50 x 64$"),
        ((None, 50), r"says \? x 50$"),
        (("64 px", 48), "width '64 px' is not a number of pixels"),
        ((64.5, 48), "width 64.5 is not a number of pixels"),
        ((-2, 48), "width -2 is not a number of pixels"),
        (([64], 48), r"width \[64\] is not a number of pixels"),
        (("9" * 4000, 48), "width '9999999999"),
        ((10**400, 48), "width a very large number is not"),
    ],
)
def test_other_sizes_are_refused_with_the_reason(tmp_path, stated, fault):
    with pytest.raises(ValueError, match=fault) as caught:
        load_dataset(f"coco:{write_coco(tmp_path, stated, [0, 0, 8, 8])}", "train")
    assert len(str(caught.value)) < 500


def write_coco(folder, stated, box):
    """Write a file of one picture that is stored on its side, white at the edge that is displayed on top."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "a.jpg", exif=exif, quality=95)
    image = {"id": 1, "file_name": "a.jpg", "width": stated[0], "height": stated[1]}
    annotation = {"image_id": 1, "category_id": 1, "bbox": box}
    content = {"images": [image], "categories": [{"id": 1, "name": "ship"}], "annotations": [annotation]}
    (folder / "own.json").write_text(json.dumps(content))
    return folder / "own.json"


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("RGB", "png"), ("RGBA", "png"), ("P", "gif")]
    + [("RGB", "bmp"), ("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "tif"), ("L", "tif"), ("RGB", "webp")],
)
def test_pictures_of_8_bits_are_what_pillow_makes_of_them(tmp_path, mode, suffix):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).convert(mode)
    options = {"transparency": bytes(range(256))} if (mode, suffix) == ("P", "png") else {}
    picture.save(tmp_path / f"a.{suffix}", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = np.array(Image.open(tmp_path / f"a.{suffix}").convert("RGB"))
    assert (decode_image(tmp_path / f"a.{suffix}") == plain).all()


def test_the_first_page_of_several_and_the_first_bands_of_many_are_read(tmp_path):
    pages = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert decode_image(tmp_path / "pages.tif")[0, 0].tolist() == [255, 0, 0]
    bands = np.full((48, 64, 6), (200.0, 100, 50, 1, 2, 3))
    pyvips.Image.new_from_array(bands).cast("uchar").write_to_file(str(tmp_path / "six.tif"))
    assert decode_image(tmp_path / "six.tif")[0, 0].tolist() == [200, 100, 50]


def test_large_pictures_are_read_by_parts_and_scaled_like_others(tmp_path, monkeypatch):
    smooth = np.add.outer(np.arange(300), np.arange(200)) // 2
    file = tmp_path / "a.png"
    Image.fromarray(np.dstack([smooth, smooth[::-1], smooth]).astype(np.uint8)).save(file)
    record = Record("a", file, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    usual, whole = squares(record), decode_image(file)
    monkeypatch.setattr(pictures, "LARGE", 100)
    monkeypatch.setattr("paperlib.data.records.LARGE", 100)
    assert (decode_image(file) == whole).all()
    small = squares(record)
    assert small.sizes == usual.sizes == [(300, 200)]
    assert abs(small.images.int() - usual.images.int()).max() <= 2


def squares(record):
    from paperlib.data.records import Dataset

    return Dataset("one", ["ship"], [record]).letterboxed(64)


def test_a_scene_of_two_hundred_megapixels_is_read_without_a_warning_and_one_beyond_the_limit_is_refused(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    Image.new("1", (14_400, 14_000)).save(tmp_path / "scene.png")
    assert image_size(tmp_path / "scene.png") == (14_400, 14_000)
    Image.new("1", (30_000, 17_000)).save(tmp_path / "huge.png")
    for read in (image_size, decode_image):
        with pytest.raises(ValueError, match="huge.png: 30000 x 17000 pixels, at most 500 megapixels are read; cut it"):
            read(tmp_path / "huge.png")
    assert Image.MAX_IMAGE_PIXELS == limit


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "gif", "webp", "bmp"])
def test_damaged_files_are_refused_in_one_line_by_name(tmp_path, suffix):
    random = np.random.default_rng(0)
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(file)
    good = file.read_bytes()
    for _ in range(60):
        damaged = bytearray(good)
        for place in random.integers(0, len(good) if random.random() < 0.3 else 200, 3):
            damaged[place] = random.integers(256)
        file.write_bytes(bytes(damaged[: random.integers(1, len(good))]) if random.random() < 0.5 else bytes(damaged))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert decode_image(file).shape[2] == 3
            except ValueError as error:
                assert str(error).startswith(f"{file}: ")
                assert "\n" not in str(error)
                assert len(str(error)) < 500
