"""Parts of a large image file: the pixels of the file as it is now, or an error."""

import numpy as np
import pytest
from PIL import Image

from paperlib.data.row_reader import read_part


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (600, 40, 3), dtype=np.uint8)


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    file = tmp_path / "a.png"
    for seed in (1, 2):
        Image.fromarray(pixels(seed)).save(file)
        np.testing.assert_array_equal(read_part(file, 5, 10, 25, 30), pixels(seed)[10:30, 5:25])


def test_after_a_read_that_failed_the_pixels_are_right(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(pixels(1)).save(file)
    file.write_bytes(file.read_bytes()[:45_000])
    np.testing.assert_array_equal(read_part(file, 0, 0, 40, 100), pixels(1)[:100])
    with pytest.raises(ValueError, match=r"a\.png: the image does not decode"):
        read_part(file, 0, 330, 40, 430)
    np.testing.assert_array_equal(read_part(file, 0, 0, 40, 100), pixels(1)[:100])


def test_a_file_that_is_gone_is_named(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(pixels(1)).save(file)
    read_part(file, 0, 0, 40, 100)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png: no such file$"):
        read_part(file, 0, 0, 40, 100)
