"""Augmentation: boxes go where the pixels go, and a batch is a function of its seed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paperlib.data.augment import Augmentation, augment

SIDE = 64
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)
NOTHING = Augmentation(zoom=1.0, shift=0.0, symmetries=False, colour=0.0, visible=0.0)
seeds = given(seed=st.integers(0, 2**31))
examples = settings(max_examples=40, deadline=None)


def rectangles(seed: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Four grey pictures, each with one rectangle of its own colour; its label is the number of the colour."""
    generator = torch.Generator().manual_seed(seed)
    images, boxes = torch.full((4, 3, SIDE, SIDE), 127, dtype=torch.uint8), []
    for image, colour in zip(images, COLOURS, strict=True):
        wide, high = torch.randint(14, 34, (2,), generator=generator).tolist()
        left = int(torch.randint(0, SIDE - wide + 1, (), generator=generator))
        top = int(torch.randint(0, SIDE - high + 1, (), generator=generator))
        image[:, top : top + high, left : left + wide] = colour[:, None, None]
        boxes.append(torch.tensor([[left, top, left + wide, top + high]], dtype=torch.float32))
    return images, boxes, [torch.tensor([1 + number]) for number in range(4)]


def run(seed: int, how: Augmentation, batch=None) -> tuple[Tensor, list[dict[str, Tensor]]]:
    return augment(*(batch or rectangles(seed)), how, torch.Generator().manual_seed(seed))


def visible(picture: Tensor, origin: int, across: int) -> dict[int, Tensor]:
    """Per colour, the bounds of the pixels of `picture` `[3, h, w]` that are nearer to it than to grey."""
    bounds = {}
    for number, colour in enumerate(COLOURS.float() / 255, 1):
        near = ((picture - colour[:, None, None]).abs() < 0.26).all(0)
        if near.any():
            rows, columns = near.any(1).nonzero(), near.any(0).nonzero()
            low, high = torch.stack([columns.min(), rows.min()]), torch.stack([columns.max(), rows.max()]) + 1
            bounds[number] = torch.cat([low, high]) + torch.tensor([across, origin]).repeat(2)
    return bounds


def check_boxes_lie_on_their_pixels(pictures: Tensor, targets: list[dict[str, Tensor]], side: int) -> int:
    """Compare both ways, in every tile of `side` pixels; returns how many boxes were compared."""
    compared = 0
    for picture, target in zip(pictures, targets, strict=True):
        assert len(target["boxes"]) == len(target["labels"])
        for top in range(0, SIDE, side):
            for left in range(0, SIDE, side):
                seen = visible(picture[:, top : top + side, left : left + side], top, left)
                centre = (target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2 // side * side
                here = (centre == torch.tensor([left, top])).all(1)
                told = dict(zip(target["labels"][here].tolist(), target["boxes"][here], strict=True))
                for label in told.keys() | seen.keys():
                    narrow = min(
                        (box[2:] - box[:2]).min() for box in (told.get(label), seen.get(label)) if box is not None
                    )
                    if narrow >= 4:
                        assert (told[label] - seen[label]).abs().max() <= 1.5, (label, told, seen)
                        compared += 1
    return compared


@examples
@seeds
def test_without_strength_nothing_changes(seed):
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    boxes = [torch.tensor([[1.5, 2.0, 30.0, 64.0]]), torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 3.0, 2.0]])]
    labels = [torch.tensor([3]), torch.zeros(0, dtype=torch.int64), torch.tensor([1])]
    out, targets = run(seed, NOTHING, (images, boxes, labels))
    # float32 grid coordinates over 64 pixels, on noise: far below one step of 1/255.
    torch.testing.assert_close(out, images.float() / 255, atol=1e-5, rtol=0)
    for target, box, label in zip(targets, boxes, labels, strict=True):
        torch.testing.assert_close(target["boxes"], box, atol=1e-5, rtol=0)
        assert torch.equal(target["labels"], label)


@examples
@seeds
def test_boxes_move_with_their_pixels(seed):
    how = Augmentation(zoom=1.4, shift=0.2, colour=0.0, visible=0.0)
    assert check_boxes_lie_on_their_pixels(*run(seed, how), SIDE) >= 1


@examples
@seeds
def test_boxes_move_with_their_pixels_into_a_mosaic(seed):
    how = Augmentation(zoom=1.3, shift=0.1, colour=0.0, mosaic=1.0, visible=0.0)
    assert check_boxes_lie_on_their_pixels(*run(seed, how), SIDE // 2) >= 4


def beside_grey(seed: int) -> tuple:
    """Like `rectangles`, in images of 64 x 32 and of 32 x 64 pixels; and the rectangles that these fill."""
    areas = [torch.tensor([[0.0, 0.0, *size]]) for size in ((64, 32), (32, 64), (32, 64), (64, 32))]
    images, _, labels = rectangles(seed)
    boxes = []
    images.fill_(127)
    for image, colour, area, start in zip(images, COLOURS, areas, range(seed % 7, seed % 7 + 4), strict=True):
        right, bottom = (area[0, 2:] - start).int().tolist()
        image[:, bottom - 20 : bottom, right - 16 : right] = colour[:, None, None]
        boxes.append(torch.tensor([[right - 16.0, bottom - 20.0, right, bottom]]))
    return images, boxes, labels, areas


@examples
@seeds
def test_a_cropped_batch_has_the_shape_of_its_images_and_shows_all_of_them(seed):
    images, boxes, labels, areas = beside_grey(seed)
    how = Augmentation(zoom=1.0, shift=0.0, colour=0.0, visible=0.0, crop=True)
    out, targets = augment(images, boxes, labels, how, torch.Generator().manual_seed(seed), areas)
    assert out.shape[2:] in ((64, 32), (32, 64))
    assert check_boxes_lie_on_their_pixels(out, targets, SIDE) == 4
    for target in targets:
        assert (target["boxes"][0, 2:] - target["boxes"][0, :2]).prod() == pytest.approx(16 * 20)
        torch.testing.assert_close(target["visible"], torch.tensor([[0.0, 0.0, out.shape[3], out.shape[2]]]))


@examples
@seeds
def test_boxes_move_with_their_pixels_into_a_cropped_batch(seed):
    images, boxes, labels, areas = beside_grey(seed)
    how = Augmentation(zoom=1.4, shift=0.2, colour=0.0, visible=0.0, crop=True)
    out, targets = augment(images, boxes, labels, how, torch.Generator().manual_seed(seed), areas)
    check_boxes_lie_on_their_pixels(out, targets, SIDE)
    limit = torch.tensor([out.shape[3], out.shape[2]]).repeat(2)
    assert all((target[name] <= limit).all() for target in targets for name in ("boxes", "visible"))


def test_cropped_batches_are_upright_or_on_their_side_and_hold_no_mosaics():
    shapes = set()
    for seed in range(12):
        images, boxes, labels, areas = beside_grey(seed)
        out, _ = augment(images, boxes, labels, Augmentation(crop=True), _generator(seed), areas)
        shapes.add(tuple(out.shape[2:]))
    assert shapes == {(32, 64), (64, 32)}
    # Without quarter turns images of both positions share a square.
    out, _ = augment(images, boxes, labels, Augmentation(crop=True, symmetries=False), _generator(0), areas)
    assert out.shape[2:] == (64, 64)
    with pytest.raises(ValueError, match="mosaic is 0.5: mosaics are squares; set it to 0, or crop_padding to false"):
        augment(images, boxes, labels, Augmentation(crop=True, mosaic=0.5), _generator(0), areas)


@examples
@seeds
def test_a_batch_is_a_function_of_its_seed(seed):
    how = Augmentation(zoom=1.5, shift=0.2, mosaic=0.5)
    given_batch = rectangles(seed)
    first, second = run(seed, how, given_batch), run(seed, how)
    assert torch.equal(first[0], second[0])
    for one, other in zip(first[1], second[1], strict=True):
        assert torch.equal(one["boxes"], other["boxes"]) and torch.equal(one["labels"], other["labels"])
    assert all(torch.equal(a, b) for a, b in zip(given_batch[1], rectangles(seed)[1], strict=True))
    assert torch.equal(given_batch[0], rectangles(seed)[0])


def test_other_seeds_give_other_batches():
    how = Augmentation()
    assert not torch.equal(run(0, how, rectangles(0))[0], run(1, how, rectangles(0))[0])


@examples
@given(seed=st.integers(0, 2**31), zoom=st.floats(1.0, 3.0), shift=st.floats(0.0, 1.0), mosaic=st.floats(0.0, 1.0))
def test_what_comes_out_is_a_valid_batch(seed, zoom, shift, mosaic):
    out, targets = run(seed, Augmentation(zoom=zoom, shift=shift, colour=0.9, mosaic=mosaic))
    assert (out.shape, out.dtype) == ((4, 3, SIDE, SIDE), torch.float32)
    assert (out >= 0).all() and (out <= 1).all()
    for target in targets:
        boxes = target["boxes"]
        assert (boxes.dtype, boxes.shape[1:], target["labels"].dtype) == (torch.float32, (4,), torch.int64)
        assert (boxes >= 0).all() and (boxes <= SIDE).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 2).all()


@examples
@seeds
def test_a_box_stays_when_enough_of_it_is_visible(seed):
    everything = Augmentation(zoom=1.0, shift=0.5, colour=0.0, visible=0.0)
    half = Augmentation(zoom=1.0, shift=0.5, colour=0.0, visible=0.5)
    _, boxes, _ = rectangles(seed)
    for whole, all_of_it, kept in zip(boxes, run(seed, everything)[1], run(seed, half)[1], strict=True):
        least = 0.5 * float((whole[0, 2:] - whole[0, :2]).prod())
        areas = (all_of_it["boxes"][:, 2:] - all_of_it["boxes"][:, :2]).prod(1)
        expected = all_of_it["boxes"][areas >= least]
        assert torch.equal(kept["boxes"], expected) or (areas - least).abs().min() < 1e-2


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_the_eight_symmetries_all_occur(mosaic):
    """One corner of the picture is marked; with flips and turns it comes to lie in every corner, in two ways each."""
    image = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    image[..., :16, :8] = 255
    how = Augmentation(zoom=1.0, shift=0.0, colour=0.0, mosaic=mosaic)
    seen = set()
    for seed in range(60):
        out, _ = augment(image, [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)], how, _generator(seed))
        seen.add(tuple(out[0, 0].flatten().round(decimals=3).tolist()))
    assert len(seen) == 8 if mosaic == 0 else len(seen) > 8


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_colour_changes_stay_within_their_strength():
    grey = torch.full((64, 3, 8, 8), 100, dtype=torch.uint8)
    nothing = [torch.zeros(0, 4)] * 64, [torch.zeros(0, dtype=torch.int64)] * 64
    out, _ = augment(grey, *nothing, Augmentation(1.0, 0.0, False, colour=0.3), _generator(0))
    gain = out.mean((1, 2, 3)) / (100 / 255)
    assert 0.7 - 1e-4 <= gain.min() < 0.8 and 1.2 < gain.max() <= 1.3 + 1e-4
    assert math.isclose(out.std((1, 2, 3)).max(), 0, abs_tol=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_not_visible_is_grey_and_what_is_visible_is_the_picture(seed: int) -> None:
    images = torch.full((4, 3, SIDE, SIDE), 127, dtype=torch.uint8)
    images[:, :, :40, :50] = 255
    nothing = [torch.zeros(0, 4)] * 4, [torch.zeros(0, dtype=torch.int64)] * 4
    how = Augmentation(zoom=1.5, shift=0.3, colour=0.0, mosaic=0.5)
    shown = [torch.tensor([[0.0, 0.0, 50.0, 40.0]])] * 4
    out, targets = augment(images, *nothing, how, torch.Generator().manual_seed(seed), shown)
    for picture, target in zip(out, targets, strict=True):
        assert target["visible"].shape in {(1, 4), (4, 4)}
        white = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        for left, top, right, bottom in target["visible"].round().long().tolist():
            white[top:bottom, left:right] = True
        # Along its border a pixel is mixed, and a rectangle ends within it.
        differs = (picture[0] > 0.75) != white
        assert differs.sum() <= 4 * SIDE and not differs[1:-1, 1:-1][_eroded(differs)].any()


def _eroded(mask: Tensor) -> Tensor:
    """Where all nine pixels around are in the mask, too."""
    return (torch.nn.functional.avg_pool2d(mask[None].double(), 3, 1) == 1)[0]
