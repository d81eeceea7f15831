import math
from pathlib import Path

import numpy as np
import pytest

from paperlib.files import read_json, replace_file, write_json_atomically, write_text_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_writer_that_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_text_atomically(path, "old")
    with pytest.raises(RuntimeError), replace_file(path) as temporary:
        assert temporary.suffix == path.suffix
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["metrics.json"]


def test_a_written_file_is_whole_and_alone_in_folders_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "quick" / "02" / "table.md"
    write_text_atomically(path, "τ → γ\n")
    assert path.read_bytes() == "τ → γ\n".encode()
    assert names(path.parent) == ["table.md"]


def test_json_comes_back_as_written_with_null_for_what_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json_atomically(path, {"map50": 0.1 + 0.2, "ap": [math.nan, (1, math.inf)], "γ": np.float64(0.5)})
    assert read_json(path) == {"map50": 0.1 + 0.2, "ap": [None, [1, None]], "γ": 0.5}


@pytest.mark.parametrize("value", [{"a": [{"b": Path("x")}]}, {"a": [{"b": {1: 2}}]}])
def test_what_json_lacks_is_refused_by_its_place_and_nothing_is_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match=r"metrics\.json\.a\[0\]\.b: "):
        write_json_atomically(tmp_path / "metrics.json", value)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": }', "broken.json, line 2: not JSON"),
        (b'{"a": 1', "broken.json, line 1: not JSON"),
        (b'{"a": NaN}', "broken.json, line 1: not JSON: NaN"),
        (b'{"a": "\xff"}', "broken.json, line 1: not UTF-8 .byte 0xFF, perhaps Latin-1.; save it as UTF-8"),
    ],
)
def test_broken_json_is_refused_by_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(path)


def test_missing_json_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.json"):
        read_json(tmp_path / "absent.json")
