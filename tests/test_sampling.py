"""The order in which an epoch draws its images."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperlib.data import Dataset, Record
from paperlib.data.sampling import draw_order, group_shapes, repeat_factors


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(labels):
    pixels = np.zeros((8, 8, 3), np.uint8)
    boxes = [np.tile(np.float32([[1, 1, 5, 5]]), (len(each), 1)) for each in labels]
    records = [Record(str(i), pixels, box, np.int64(each)) for i, (box, each) in enumerate(zip(boxes, labels))]  # noqa: B905
    return Dataset("drawn", ("common", "rare"), records)


def test_without_a_threshold_every_image_comes_once_in_the_usual_order():
    order = draw_order(tiny.dataset(), 0.0, generator(3))
    assert torch.equal(order, torch.randperm(8, generator=generator(3)))


def test_an_image_has_the_factor_of_its_rarest_class():
    # Of 16 images one shows the rare class: sqrt(0.25 / (1 / 16)) = 2.
    assert repeat_factors([[1, 1, 2], *[[1]] * 14, []], 0.25) == [2.0, *[1.0] * 15]


def test_images_of_a_rare_class_are_drawn_by_their_factor():
    data = images([[1, 2], *[[1]] * 99])
    drawn = torch.cat([draw_order(data, 0.0625, generator(seed)) for seed in range(400)])  # a factor of 2.5
    share = float((drawn == 0).double().mean())
    assert share == pytest.approx(2.5 / 101.5, rel=0.1)


@given(seed=st.integers(0, 99), threshold=st.floats(0, 1))
def test_an_epoch_stays_as_long_and_repeats_bit_for_bit(seed, threshold):
    data = images([[1], [2], [1, 2], [], [1]])
    order = draw_order(data, threshold, generator(seed))
    assert len(order) == 5 and bool(((order >= 0) & (order < 5)).all())
    assert torch.equal(order, draw_order(data, threshold, generator(seed)))


@given(seed=st.integers(0, 99), count=st.integers(4, 40))
def test_batches_of_similar_shape_hold_every_image_once_upright_or_on_its_side(seed, count):
    sides = [((100, 50), (30, 60), (80, 80), (40, 41))[number % 4] for number in range(count)]
    order = draw_order(images([[1]] * count), 0.0, generator(seed))
    grouped = group_shapes(order, sides, 4, generator(seed))
    assert sorted(grouped.tolist()) == sorted(order[: count // 4 * 4].tolist())
    kinds = [{max(sides[i]) / min(sides[i]) for i in batch} for batch in grouped.view(-1, 4).tolist()]
    # Sorted by three ratios of the sides, so at most two batches hold two of them.
    assert sum(len(kind) - 1 for kind in kinds) <= 2
    assert torch.equal(grouped, group_shapes(order, sides, 4, generator(seed)))
