"""Files that are damaged, hostile or in another encoding are refused in one short line, soon, by name."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paperlib.files import MAX_DEPTH, parse_json, quote_value, read_json, read_yaml

DEEP = 100_000
TEXT = '{"name": "Überführung"}'
JSON = {
    "nested lists": (b"[" * DEEP + b"]" * DEEP, "nested more than"),
    "nested lists that never end": (b'{"images":' + b"[" * DEEP, "nested more than"),
    "nested objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested more than"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    "a constant": (b'{"b": "NaN",\n "a": [1,\n -Infinity]}', "line 3: not JSON: -Infinity"),
    "utf-16": (TEXT.encode("utf-16"), "UTF-16; save it as UTF-8"),
    "utf-16 without a mark": (TEXT.encode("utf-16-be"), "UTF-16"),
    "utf-32": (TEXT.encode("utf-32"), "UTF-32"),
    "latin-1": (TEXT.encode("latin-1"), "line 1: not UTF-8 (byte 0xDC, perhaps Latin-1)"),
    "nothing": (b"", "line 1: not JSON"),
    "a long text that never ends": (b'{"a": "' + b"x" * 100_000, "not JSON"),
}
YAML = {
    "nested lists": (b"[" * DEEP, "nested more than"),
    "nested mappings": (b"{a: " * DEEP, "nested more than"),
    "nested dashes": (b"- " * DEEP, "nested more than"),
    "nested lines": (b"".join(b" " * i + b"a:\n" for i in range(1000)), "nested more than"),
    "aliases of aliases": (
        b"a0: &a0 [x, x]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)),
        "aliases included",
    ),
    "merged aliases": (
        b"a0: &a0 {x: 1}\n" + b"".join(b"a%d: &a%d {b: *a%d, c: *a%d}\n" % (i, i, i - 1, i - 1) for i in range(1, 40)),
        "aliases included",
    ),
    "an alias of itself": (b"a: &a [*a]", "stands inside what it names"),
    "an alias of nothing": (b"a: *" + b"b" * 9000, "undefined alias"),
    "a key twice": (b"a: 1\n" + b"k" * 900 + b": 1\n" + b"k" * 900 + b": 2\n", "line 3: not YAML (key 'kkk"),
    "a key that is a list": (b"? [a]\n: 1", "a key is not a single value"),
    "a tag that does not fit": (b"a: !!bool x", "line 1: not YAML ('x' is no bool)"),
    "a number that is none": (b"a: !!int " + b"x" * 9000, "is no int"),
    "a date that is none": (b"a: 2026-13-45", "is no timestamp"),
    "a mapping that is none": (b"a: !!map [1]", "not YAML"),
    "digits": (b"a: " + b"9" * 5000, "is no int"),
    "not a number": (b"a: 1\nb: .nan", "line 2: not YAML ('.nan' is not a finite number)"),
    "code": (b"a: !!python/object/apply:os.system ['true']", "line 1: not YAML"),
    "utf-16": ("a: Übung".encode("utf-16"), "UTF-16; save it as UTF-8"),
    "latin-1": ("b: 1\na: Übung".encode("latin-1"), "line 2: not UTF-8 (byte 0xDC, perhaps Latin-1)"),
    "a control character": (b"a: \x01", "not YAML"),
    "a megabyte": (b"a: 1\n" * 300_000, "more than 1 MiB"),
}


def refusal(read, path: Path, content: bytes) -> str:
    path.write_bytes(content)
    began = time.perf_counter()
    with pytest.raises(ValueError) as caught:
        read(path)
    assert time.perf_counter() - began < 10
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert "\n" not in message
    assert len(message) - len(str(path)) < 300
    return message


@pytest.mark.parametrize(("content", "fault"), JSON.values(), ids=JSON)
def test_json_that_is_none_is_one_short_line(tmp_path, content, fault):
    assert fault in refusal(read_json, tmp_path / "a.json", content)


@pytest.mark.parametrize(("content", "fault"), YAML.values(), ids=YAML)
def test_yaml_that_is_none_is_one_short_line(tmp_path, content, fault):
    assert fault in refusal(read_yaml, tmp_path / "a.yaml", content)


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b" " * 2**20 + b"]")
    assert read_json(path) == []
    with pytest.raises(ValueError, match="a.json: more than 1 MiB are not read"):
        read_json(path, max_bytes=2**20)


def test_what_is_usual_is_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfbase: &base {a: 1}\nother:\n  <<: *base\n  b: [*base, *base]\n")
    assert read_yaml(path) == {"base": {"a": 1}, "other": {"a": 1, "b": [{"a": 1}, {"a": 1}]}}


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('[]{}"\\é,a:')
)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text('[]{}"\\,a:'), inner))


@given(values)
def test_brackets_in_texts_do_not_count_as_depth(value):
    assert parse_json(json.dumps(value), "a") == value
    assert parse_json(json.dumps({"[" * 99 + '"' + "\\" * 7: ["{[" * 99, value]}), "a")


@given(values, st.integers(MAX_DEPTH, 200))
def test_depth_is_found_among_texts(value, depth):
    inner = json.dumps(['"]]' * 99, value])
    with pytest.raises(ValueError, match="nested more than"):
        parse_json("[" * depth + inner + "]" * depth, "a")


@given(st.binary(max_size=200) | st.text("[]{}:&*!-? \n\"'ab1.", max_size=60).map(str.encode))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_whatever_stands_in_a_file_it_is_read_or_refused_by_name(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    for read in (read_json, read_yaml):
        try:
            read(path)
        except ValueError as error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
            assert len(str(error)) < 500


@given(values | st.integers(-(10**4000), 10**4000) | st.text(min_size=1000))
def test_quotations_are_short_lines(value):
    quoted = quote_value(value)
    assert "\n" not in quoted
    assert len(quoted) <= 60


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x1f\x8b", b"\x89PNG\r\n"], ids=["zip", "gzip", "png"])
def test_a_binary_file_in_place_of_json_is_named_for_what_it_is(tmp_path, start):
    path = tmp_path / "annotations.json"
    path.write_bytes(start + bytes(range(256)))
    with pytest.raises(ValueError, match=r"annotations\.json: not JSON: it is a \w+ \w+"):
        read_json(path)
