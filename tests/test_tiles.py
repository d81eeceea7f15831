"""Tiles: every pixel and object is in some tile, large files stay on the disk, and merging undoes cutting."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from paperlib.data import load_dataset
from paperlib.data.records import Dataset, Record
from paperlib.data.tiles import Tiles, Tiling, cut_into_tiles, merge_detections
from paperlib.evaluation.evaluate import evaluate

SMALL = Tiling(side=80, overlap=20, visible=0.5, empty=0.25)


def whole(*images: tuple[tuple[int, int], list[list[float]]]) -> Dataset:
    """Images of (width, height) with boxes of class 1; no two pixels of a column are alike."""
    records = []
    for number, ((width, height), boxes) in enumerate(images):
        pixels = np.add.outer(np.arange(height) * 7, np.arange(width))[..., None] + [0, 85, 170]
        array = np.array(boxes, np.float32).reshape(-1, 4)
        records.append(Record(f"{number}", pixels.astype(np.uint8), array, np.ones(len(array), np.int64)))
    return Dataset("made", ("ship", "bridge"), records)


def perfect(tiles: Tiles, index: int) -> tuple[list[dict[str, Tensor]], list]:
    """What a perfect detector finds in the tiles of one image, and where these lie."""
    mine = [
        (place[1], record) for place, record in zip(tiles.locations, tiles.records, strict=True) if place[0] == index
    ]
    found = [
        {"boxes": torch.tensor(r.boxes), "labels": torch.tensor(r.labels), "scores": torch.ones(len(r.labels))}
        for _, r in mine
    ]
    return found, [part for part, _ in mine]


def rows(boxes, labels) -> list[tuple[float, ...]]:
    return sorted((*np.round(np.asarray(box, float), 3).tolist(), int(k)) for box, k in zip(boxes, labels, strict=True))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 90), st.data())
def test_tiles_cover_the_image_and_none_reaches_outside(width, height, side, data):
    tiling = Tiling(side=side, overlap=data.draw(st.integers(0, side - 1)))
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in tiling.tile_bounds(width, height):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (right - left, bottom - top) == (min(side, width), min(side, height))
        covered[top:bottom, left:right] = True
    assert covered.all()
    starts = sorted({part[0] for part in tiling.tile_bounds(width, height)})
    assert all(b - a <= side - tiling.overlap for a, b in zip(starts, starts[1:], strict=False))


def test_a_cut_object_is_kept_when_the_stated_share_is_left_and_empty_tiles_at_the_stated_rate():
    tiles = cut_into_tiles(whole(((140, 80), [[70, 10, 90, 30], [75, 40, 95, 60], [2, 2, 12, 12]])), SMALL)
    assert [record.name for record in tiles.records] == ["0@0,0", "0@60,0"]
    assert tiles.records[0].boxes.tolist() == [[70, 10, 80, 30], [2, 2, 12, 12]]  # a half stays, a quarter does not
    assert tiles.records[1].boxes.tolist() == [[10, 10, 30, 30], [15, 40, 35, 60]]
    empty = whole(*[((140, 80), [])] * 10, ((140, 80), [[1, 1, 9, 9]]))
    thinned = cut_into_tiles(empty, SMALL, thin=True)
    assert sum(not len(record.labels) for record in thinned.records) == round(0.25 * 21)
    assert sum(len(record.labels) for record in thinned.records) == 1
    assert len(cut_into_tiles(empty, SMALL)) == 22


def test_a_tiling_that_is_none_is_refused():
    with pytest.raises(ValueError, match="tiles of 80 pixels cannot overlap by 80"):
        Tiling(side=80, overlap=80)
    with pytest.raises(ValueError, match="visible is a share, 1.5 is not"):
        Tiling(visible=1.5)


@st.composite
def scenes(draw):
    """An image and objects of it, one to a cell of 40 pixels, or larger ones one below the other."""
    width, height = draw(st.integers(60, 260)), draw(st.integers(60, 260))
    boxes = []
    if draw(st.booleans()):
        for top in range(0, height - 39, 40):
            x = sorted(draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
            boxes.append([x[0], top + 3, x[1], top + 3 + draw(st.integers(1, 36))])
    else:
        for top in range(0, height - 39, 40):
            for left in range(0, width - 39, 40):
                if draw(st.booleans()):
                    x, y = left + draw(st.integers(0, 10)), top + draw(st.integers(0, 10))
                    boxes.append([x, y, x + draw(st.integers(1, 29)), y + draw(st.integers(1, 29))])
    return whole(((width, height), boxes))


@given(scenes())
def test_merging_a_perfect_detectors_answers_gives_the_whole_images_objects(data):
    tiles = cut_into_tiles(data, Tiling(side=80, overlap=30, visible=0.0))
    found, parts = perfect(tiles, 0)
    merged = merge_detections(found, parts, data.records[0].size())
    assert rows(merged["boxes"], merged["labels"]) == rows(data.records[0].boxes, data.records[0].labels)


def answer(*boxes: tuple[list[float], float, int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([box for box, _, _ in boxes]).reshape(-1, 4),
        "scores": torch.tensor([score for _, score, _ in boxes]),
        "labels": torch.tensor([label for _, _, label in boxes], dtype=torch.int64),
    }


PARTS = [(0, 0, 80, 80), (60, 0, 140, 80)]


def test_each_side_of_a_merged_box_is_told_by_the_best_detection_that_saw_it():
    # 20 to 121 across: cut in both tiles; the tops differ, and the better detection's counts.
    found = [answer(([20.0, 10, 79, 30], 0.6, 1)), answer(([0.0, 11, 61, 32], 0.9, 1))]
    merged = merge_detections(found, PARTS, (140, 80))
    assert merged["boxes"].tolist() == [[20, 11, 121, 32]]
    assert merged["scores"].tolist() == pytest.approx([0.9])


def test_detections_of_one_tile_of_other_classes_or_without_agreement_stay_apart():
    one, two = [62.0, 10, 78, 30], [2.0, 10, 18, 30]
    assert len(merge_detections([answer((one, 0.9, 1)), answer((two, 0.8, 1))], PARTS, (140, 80))["boxes"]) == 1
    assert len(merge_detections([answer((one, 0.9, 1)), answer((two, 0.8, 2))], PARTS, (140, 80))["boxes"]) == 2
    assert len(merge_detections([answer((one, 0.9, 1), (one, 0.5, 1)), answer()], PARTS, (140, 80))["boxes"]) == 2
    lower = [2.0, 45, 18, 70]
    assert len(merge_detections([answer((one, 0.9, 1)), answer((lower, 0.8, 1))], PARTS, (140, 80))["boxes"]) == 2
    nothing = merge_detections([answer(), answer()], PARTS, (140, 80))
    assert nothing["boxes"].shape == (0, 4) and nothing["labels"].dtype == torch.int64


class Oracle(nn.Module):
    """Finds in each batch of tiles what the squares of a perfect answer hold."""

    def __init__(self, tiles: Tiles, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        boxed = tiles.letterboxed(side)
        self.answers = [
            {"boxes": boxes, "labels": labels, "scores": torch.full((len(labels),), 0.9)}
            for boxes, labels in zip(boxed.boxes, boxed.labels, strict=True)
        ]

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return [self.answers.pop(0) for _ in images]


def test_evaluation_on_whole_images_looks_at_every_tile_and_judges_the_merged_boxes():
    grid = [[x, y, x + 4, y + 4] for x in range(0, 180, 8) for y in range(0, 60, 8)]
    data = whole(((180, 90), grid), ((50, 40), [[1, 2, 30, 20]]), ((180, 90), []))
    assert len(grid) > 100  # COCO's limit of detections per image would cost recall here
    tiles = cut_into_tiles(data, SMALL, thin=True)
    everything = cut_into_tiles(data, SMALL)
    metrics = evaluate(Oracle(everything, 80), tiles, image_size=80, batch_size=5, full_images=True)
    assert (metrics.map50, metrics.map, metrics.recall) == pytest.approx((1, 1, 1))
    assert evaluate(Oracle(tiles, 80), tiles, image_size=80).map50 == pytest.approx(1)
    with pytest.raises(ValueError, match="made: its images were not cut into tiles, so there is nothing to merge"):
        evaluate(Oracle(everything, 80), data, image_size=80, whole=True)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("L", "png"), ("P", "png"), ("RGBA", "png"), ("L", "jpg")]
)
def test_tiles_of_a_file_hold_the_pixels_that_the_whole_image_has(tmp_path, mode, suffix):
    file = tmp_path / f"image.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (210, 170, 4), dtype=np.uint8)
    Image.fromarray(noise).convert("RGB").convert(mode).save(file)
    record = Record("0", file, np.array([[100, 150, 120, 170]], np.float32), np.array([1]))
    data = Dataset("made", ("ship",), [record])
    tiles = pickle.loads(pickle.dumps(cut_into_tiles(data, SMALL)))
    expected = record.read_pixels()
    for order in (1, -1):
        for (_, (left, top, right, bottom)), tile in list(zip(tiles.locations, tiles.records, strict=True))[::order]:
            np.testing.assert_array_equal(tile.read_pixels(), expected[top:bottom, left:right])
    assert len(tiles) == 12 and tiles.digest == cut_into_tiles(data, SMALL).digest


def test_a_file_that_is_cut_short_is_named(tmp_path):
    file = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 100, 3), dtype=np.uint8)).save(file)
    tiles = cut_into_tiles(Dataset("made", (), [Record("0", file, np.zeros((0, 4)), np.zeros(0))]), SMALL)
    file.write_bytes(file.read_bytes()[:60_000])
    with pytest.raises(ValueError) as caught:
        [record.read_pixels() for record in tiles.records]
    assert str(caught.value).startswith(f"{file}: the image does not decode (") and "\n" not in str(caught.value)


MEMORY = """
import sys
from pathlib import Path
from paperlib.data.records import Dataset, Record
from paperlib.data.tiles import Tiling, cut_into_tiles
import numpy as np
def peak(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
def tiles(file):
    record = Record("", Path(file), np.zeros((0, 4)), np.zeros(0))
    return cut_into_tiles(Dataset("", (), [record]), Tiling())
small, large = map(tiles, sys.argv[1:])
for record in small.records: record.read_pixels()
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = peak()
total = sum(int(record.read_pixels()[0, 0, 0]) for record in large.records)
print(len(large), (peak() - before) / (800 * 800 * 3))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of memory")
def test_cutting_a_large_image_takes_the_memory_of_a_dozen_tiles_at_most(tmp_path):
    pattern = np.arange(4000, dtype=np.uint16)
    pixels = np.stack([np.bitwise_xor.outer(pattern, pattern) >> shift for shift in (0, 2, 4)], -1).astype(np.uint8)
    for name, picture in (("small", pixels[:850, :850]), ("large", pixels)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png", compress_level=1)
    files = [str(tmp_path / f"{name}.png") for name in ("small", "large")]
    done = subprocess.run([sys.executable, "-c", MEMORY, *files], capture_output=True, text=True, check=True)
    count, in_tiles = done.stdout.split()
    assert int(count) == 49
    assert float(in_tiles) < 13  # five are the rows being cut, four libvips; decoding the whole takes fifty


# --- the real images ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dota(data_root) -> list[Tiles]:
    if not (data_root / "dota-v1").is_dir():
        pytest.skip(f"{data_root} does not hold dota-v1")
    return [load_dataset("dota", split) for split in ("train", "val", "test")]


def test_on_the_real_images_merging_undoes_cutting_but_for_what_is_below_the_stated_share(dota):
    images = exceptions = 0
    for tiles in (cut_into_tiles(found.full_images, found.tiling) for found in dota):
        for index, record in enumerate(tiles.full_images.records):
            images += 1
            found, parts = perfect(tiles, index)
            merged = merge_detections(found, parts, record.size())
            missing = set(rows(record.boxes, record.labels)) - set(rows(merged["boxes"], merged["labels"]))
            assert all(not _is_covered(box[:4], parts, tiles.tiling.visible) for box in missing)
            assert abs(len(merged["labels"]) - len(record.labels)) <= len(missing)
            exceptions += len(missing)
    assert images == 10 and exceptions <= 5


def _is_covered(box, parts, visible: float) -> bool:
    """Whether the pieces of a box that are large enough to be kept make up all of it."""
    box = np.array(box)
    pieces = [np.concatenate([np.maximum(box[:2], part[:2]), np.minimum(box[2:], part[2:])]) for part in parts]
    area = np.prod(box[2:] - box[:2])
    kept = [p for p in pieces if (p[2:] > p[:2]).all() and np.prod(p[2:] - p[:2]) >= visible * area]
    return bool(kept) and np.allclose([*np.min(kept, 0)[:2], *np.max(kept, 0)[2:]], box)
