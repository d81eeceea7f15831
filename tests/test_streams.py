"""What the commands write: in every encoding, to readers that go away, on a full disk, nothing of other libraries."""

import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import paperlib
from paperlib import files
from paperlib.cli.errors import LONGEST_LINE, describe_error
from paperlib.cli.main import app
from paperlib.cli.streams import make_plain, prepare_streams

ROOT = Path(paperlib.__file__).resolve().parent.parent


def run(script, **environment):
    command = ["bash", "-c", f'paperlib() {{ "{sys.executable}" -m paperlib "$@"; }}; {script}']
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, env=variables)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("2–4", "2-4"),
        ("±1 × γ", "+-1 x gamma"),
        ("Δλ", "Deltalambda"),
        ("Zürich, Straße", "Zurich, Strasse"),
        ("日", "?"),
    ],
)
def test_text_is_transliterated(text, plain):
    assert make_plain(text) == plain


@given(
    st.text(st.characters()), st.sampled_from(["ascii", "latin-1", "cp1252", "cp437", "utf-8", "koi8-r", "shift-jis"])
)
def test_no_text_is_lost_on_any_stream(text, encoding):
    with pytest.MonkeyPatch.context() as patch:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", io.StringIO())
        prepare_streams()
        stream.write(text)
        stream.flush()
    assert text.isspace() or not text or stream.buffer.getvalue() or not make_plain(text)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_help_is_written_in_every_encoding(encoding):
    done = run("paperlib reproduce --help", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    script = f"paperlib store list --store {tmp_path} | true; paperlib --help | head -1 >/dev/null"
    assert run(script).stderr == b""


@pytest.mark.parametrize("arguments", ["store list --store .", "--version", "reproduce --help"])
def test_a_full_disk_behind_the_output_is_one_line(arguments):
    done = run(f"paperlib {arguments} >/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith(b"paperlib: no space left") and done.stderr.count(b"\n") == 1


def test_other_libraries_say_nothing_before_our_line(tmp_path):
    done = run("paperlib export nowhere.safetensors x.onnx", CUDA_HOME=str(tmp_path), HOME="/nonexistent")
    assert done.returncode == 2
    assert done.stderr.startswith(b"paperlib: nowhere.safetensors") and done.stderr.count(b"\n") == 1


def test_a_quota_is_one_line_that_names_the_path_and_the_command_continues_with_more_room(tmp_path):
    from paperlib.detectors.files import save_detector

    save_detector(tiny.detector(), tmp_path / "d.safetensors")
    command = ["export", f"{tmp_path}/d.safetensors", f"{tmp_path}/d.onnx", "--image-size", "64"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        done = CliRunner().invoke(app, command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"paperlib: {tmp_path}/d.onnx: ") and done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"d.safetensors"}
    assert CliRunner().invoke(app, command).exit_code == 0


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_a_full_disk_is_named_by_the_file_that_was_to_be_written(tmp_path, monkeypatch, call, code):
    import errno

    path = tmp_path / "metrics.json"
    path.write_text("old")

    def fill_the_disk(*_, **__):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(Path, "write_text", fill_the_disk)
        else:
            patch.setattr(os, call, fill_the_disk)
        with pytest.raises(OSError) as caught:
            files.write_json_atomically(path, {"new": 1})
    assert files.is_disk_full(caught.value)
    assert describe_error(caught.value).startswith(f"paperlib: {path}: ")
    assert "free some space" in describe_error(caught.value)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_no_line_is_longer_than_can_be_read():
    line = describe_error(ValueError("x" * 10**6 + "\n" + "y" * 10**6))
    assert len(line) <= LONGEST_LINE and line[-1] == "y"
