"""Data sets larger than memory: their squares lie in a file, with the same bits."""

import logging
import os
import resource
import signal

import pytest
import tiny
import torch

from paperlib.data import squares
from paperlib.training.loop import fit


@pytest.fixture
def on_disk(monkeypatch, tmp_path):
    """Allow no memory for squares; return the folder in which they lie instead."""
    monkeypatch.setenv(squares.VARIABLE, "0")
    monkeypatch.setenv("PAPERLIB_PICTURES", str(tmp_path / "pictures"))
    return tmp_path / "pictures"


def held(folder):
    """Return the names of the files that stay, without locks."""
    return [each.name for each in folder.iterdir() if each.suffix != ".lock"]


def test_squares_on_disk_have_the_bits_of_those_in_memory_and_are_written_once(on_disk, monkeypatch):
    found = tiny.dataset().letterboxed(48), tiny.scenes().squares(24)[0]
    monkeypatch.setattr(squares, "_write_squares", lambda *_: pytest.fail("written twice"))
    again = tiny.dataset().letterboxed(48)
    monkeypatch.delenv(squares.VARIABLE)
    expected = tiny.dataset().letterboxed(48), tiny.scenes().squares(24)[0]
    for boxed in (found[0], again):
        assert torch.equal(boxed.images, expected[0].images)
        assert all(map(torch.equal, boxed.boxes, expected[0].boxes))
        assert (boxed.sizes, boxed.scales.tolist()) == (expected[0].sizes, expected[0].scales.tolist())
    assert torch.equal(found[1], expected[1])
    assert [name.split(".")[-1] for name in held(on_disk)] == ["squares"] * 2


def test_a_training_on_squares_on_disk_ends_with_the_same_weights(on_disk, monkeypatch, tmp_path):
    detectors = [tiny.detector(), tiny.detector()]
    for number, detector in enumerate(detectors):
        fit(detector, tiny.dataset(), tiny.recipe(epochs=1), folder=tmp_path / str(number))
        assert len(held(on_disk)) == 1
        monkeypatch.delenv(squares.VARIABLE, raising=False)
    assert tiny.equal(*detectors)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("damage", [flip_a_bit, cut, lambda path: path.write_bytes(b"")])
def test_a_damaged_file_is_told_and_written_again(on_disk, damage, caplog):
    expected = tiny.dataset().letterboxed(48).images.clone()
    (path,) = on_disk.glob("*.squares")
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(tiny.dataset().letterboxed(48).images, expected)
    assert [record.message for record in caplog.records] == [
        f"{path}: was cut or changed after it was written; it is written again"
    ]


def die_while_writing(environment):
    def images():
        yield torch.zeros(3, 64, 64, dtype=torch.uint8)
        os.kill(os.getpid(), signal.SIGKILL)

    os.environ |= environment
    squares.hold_squares(images(), 2, 64, "digest")


def test_what_a_killed_process_left_is_replaced(on_disk):
    process = tiny.processes.Process(target=die_while_writing, args=(dict(os.environ),))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert [name.split(".")[-1] for name in held(on_disk)] == ["partial"]
    whole = squares.hold_squares(torch.ones(2, 3, 64, 64, dtype=torch.uint8), 2, 64, "digest")
    assert whole.min() == 1
    assert [name.split(".")[-1] for name in held(on_disk)] == ["squares"]


def test_a_full_disk_is_one_line_that_names_the_file(on_disk):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            tiny.dataset().letterboxed(48)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(refused.value.filename).endswith(".squares")
    assert held(on_disk) == []


def test_memory_is_given_back_and_its_limit_is_shared(monkeypatch, tmp_path):
    monkeypatch.setenv("PAPERLIB_PICTURES", str(tmp_path))
    held_before = squares._held["bytes"]
    one = 8 * 3 * 48 * 48
    monkeypatch.setenv(squares.VARIABLE, str((held_before + 1.5 * one) / 2**30))
    first, second = tiny.dataset(), tiny.dataset("val")
    first.letterboxed(48)
    assert held(tmp_path) == []
    second.letterboxed(48)
    assert len(held(tmp_path)) == 1
    assert squares._held["bytes"] == held_before + one
    del first
    assert squares._held["bytes"] == held_before


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf", "1e9"])
def test_a_limit_that_is_no_number_of_gib_is_refused(monkeypatch, text):
    monkeypatch.setenv(squares.VARIABLE, text)
    with pytest.raises(ValueError, match=f"{squares.VARIABLE}={text}: expected GiB, a number from 0 to 4096"):
        squares.memory_limit()
