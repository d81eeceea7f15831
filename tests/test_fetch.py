"""Downloads from a server that misbehaves: what arrives is right and whole, or nothing is there."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.data import PUBLISHED, SCENE_LAYOUTS, registry, vhr10
from paperlib.data import fetch as fetching
from paperlib.data.fetch import DOWNLOADS, fetch_entry
from paperlib.data.unpack import unpack_archive

UNPACK = {"*/positive image set/*.jpg": vhr10.IMAGES, "*/ground truth/*.txt": vhr10.ANNOTATIONS}


def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (250, 250, 3), dtype=np.uint8)).save(out, "JPEG")
    return out.getvalue()


CONTENT = {
    "VHR/readme.txt": b"not asked for",
    "VHR/positive image set/001.jpg": picture(),
    "VHR/positive image set/002.jpg": picture(),
    "VHR/ground truth/001.txt": b"(1,2),(3,4),5\n",
    "VHR/ground truth/002.txt": b"(1,2),(3,4),6\n",
}


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("VHR/", b"")
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves the server's `body`, in the way that its `manners` say."""

    def do_GET(self):  # noqa: N802 (the name that http.server calls)
        manners, body = self.server.manners, self.server.body
        self.server.asked.append(self.headers.get("Range"))
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if "ignores ranges" in manners:
            start = 0
        if "is gone" in manners:
            self.send_error(404)
            return
        rest = body[start:]
        self.send_response(206 if start else 200)
        if "gives no length" not in manners:
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        breaks = self.server.breaks > 0
        self.server.breaks -= 1
        self.wfile.write(rest[: len(rest) // 2] if breaks else rest)

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.manners, serving.breaks, serving.asked, serving.body = set(), 0, [], zipped(CONTENT)
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture
def entry(server):
    """The registry's entry for what the server serves at first."""
    address = f"http://127.0.0.1:{server.server_port}/NWPU%20VHR.zip"
    file = {"address": address, "size": len(server.body), "sha256": hashlib.sha256(server.body).hexdigest()}
    texts = dict.fromkeys(("title", "page", "licence", "citation"), "made")
    return registry.Entry(**texts, folder="vhr10", images=2, files=[{**file, "unpack": UNPACK}])


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "vhr10"


def assert_whole(target):
    files = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert files == {name.removeprefix("VHR/"): content for name, content in list(CONTENT.items())[1:]}
    assert [path.name for path in target.parent.iterdir() if path.name != DOWNLOADS] == ["vhr10"]
    assert not any((target.parent / DOWNLOADS).rglob("*"))


def test_a_good_archive_is_downloaded_once_and_unpacked(server, entry, target):
    fetch_entry("vhr10", entry, target)
    assert_whole(target)
    fetch_entry("vhr10", entry, target)
    assert server.asked == [None]


@pytest.mark.parametrize("manners", [set(), {"gives no length"}, {"ignores ranges"}])
def test_a_server_that_breaks_off_is_asked_for_the_rest(server, entry, target, manners):
    server.manners, server.breaks = manners, 2
    fetch_entry("vhr10", entry, target)
    assert_whole(target)
    first, second, third = server.asked
    assert first is None and 0 < int(second[6:-1]) <= int(third[6:-1])
    assert (second == third) == (manners == {"ignores ranges"})


def test_when_it_breaks_off_for_good_the_next_call_goes_on(server, entry, target):
    server.breaks = fetching.ATTEMPTS
    with pytest.raises(OSError, match=r"VHR.zip: the connection broke off; [\d,]+ of [\d,]+ bytes are here, the same"):
        fetch_entry("vhr10", entry, target)
    assert not target.exists()
    fetch_entry("vhr10", entry, target)
    assert_whole(target)
    assert server.asked[-1].startswith("bytes=") and len(server.asked) == fetching.ATTEMPTS + 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda body: body + b"more", r"VHR.zip: is [\d,]+ bytes long, the registry says [\d,]+$"),
        (lambda body: body[:-4], r"VHR.zip: is [\d,]+ bytes long, the registry says [\d,]+$"),
        (lambda body: body[:-1] + b"x", r"VHR.zip: its SHA-256 is not [0-9a-f]{64}; nothing was kept$"),
    ],
    ids=["longer", "shorter", "another"],
)
def test_what_is_not_what_the_registry_says_is_refused_and_nothing_is_kept(server, entry, target, change, fault):
    server.body = change(server.body)
    with pytest.raises(ValueError, match=fault):
        fetch_entry("vhr10", entry, target)
    assert [path for path in target.parent.rglob("*") if path.is_file()] == []


def test_more_bytes_than_the_registry_says_are_not_even_read(server, entry, target):
    server.manners, server.body = {"gives no length"}, server.body + bytes(1 << 22)
    with pytest.raises(ValueError, match=r"is longer than the [\d,]+ bytes that the registry says$"):
        fetch_entry("vhr10", entry, target)
    assert [path for path in target.parent.rglob("*") if path.is_file()] == []


def free_bytes(monkeypatch, count):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: SimpleNamespace(free=count))


def test_what_is_downloaded_already_needs_no_space_again(server, entry, target, monkeypatch):
    server.breaks = fetching.ATTEMPTS
    with pytest.raises(OSError, match="the same command resumes"):
        fetch_entry("vhr10", entry, target)
    (partial,) = (target.parent / DOWNLOADS / "vhr10").iterdir()
    needed = 2 * entry.size - partial.stat().st_size
    free_bytes(monkeypatch, needed - 1)
    with pytest.raises(ValueError, match=r"made needs 0.0 GB, 0.0 GB are free$"):
        fetch_entry("vhr10", entry, target)
    free_bytes(monkeypatch, needed)
    fetch_entry("vhr10", entry, target)
    assert_whole(target)


def test_a_file_that_is_not_unpacked_needs_its_size_and_nothing_once_it_is_there(server, entry, target, monkeypatch):
    entry = entry.model_copy(update={"files": [entry.files[0].model_copy(update={"unpack": {}})]})
    free_bytes(monkeypatch, entry.size - 1)
    with pytest.raises(ValueError, match="are free$"):
        fetch_entry("loose", entry, target)
    free_bytes(monkeypatch, entry.size)
    fetch_entry("loose", entry, target)
    free_bytes(monkeypatch, 0)
    fetch_entry("loose", entry, target)
    assert (target / "NWPU VHR.zip").read_bytes() == server.body and len(server.asked) == 1


def test_a_part_of_a_set_is_not_taken_for_the_set(server, entry, target):
    fetch_entry("vhr10", entry, target)
    (target / vhr10.IMAGES / "002.jpg").unlink()
    with pytest.raises(ValueError, match=r"vhr10: holds 1 of 2 images; move it away to fetch the set$"):
        fetch_entry("vhr10", entry, target)


def test_what_a_killed_call_left_beside_the_whole_set_is_removed(server, entry, target):
    fetch_entry("vhr10", entry, target)
    left = target.parent / DOWNLOADS / "vhr10"
    left.mkdir(parents=True)
    (left / "NWPU VHR.zip").write_bytes(server.body)
    fetch_entry("vhr10", entry, target)
    assert_whole(target)


def test_a_server_that_has_nothing_says_so(server, entry, target):
    server.manners = {"is gone"}
    with pytest.raises(OSError, match=r"VHR.zip: answered 404 Not Found; 0 of [\d,]+ bytes are here"):
        fetch_entry("vhr10", entry, target)
    assert len(server.asked) == 1


def test_an_archive_with_too_few_images_leaves_no_half_set(server, entry, target):
    with pytest.raises(ValueError, match="made: 2 images were unpacked, 3 were published"):
        fetch_entry("vhr10", entry.model_copy(update={"images": 3}), target)
    assert [path.name for path in target.parent.iterdir()] == [DOWNLOADS]


def test_an_archive_that_escapes_leaves_nothing(server, entry, target):
    server.body = zipped({**CONTENT, "VHR/positive image set/../../../../003.jpg": b""})
    file = entry.files[0].model_copy(
        update={"size": len(server.body), "sha256": hashlib.sha256(server.body).hexdigest()}
    )
    with pytest.raises(ValueError, match=r"NWPU VHR.zip: '.*003.jpg' would lie outside the folder"):
        fetch_entry("vhr10", entry.model_copy(update={"files": [file]}), target)
    assert [path.name for path in target.parent.iterdir()] == [DOWNLOADS]


# --- archives -----------------------------------------------------------------------------------------


def with_link() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("a/link.txt")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return out.getvalue()


def tar(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"text") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, len(content) if kind == tarfile.REGTYPE else 0, "/etc/passwd"
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


EVIL = {
    "zip, above": (zipped({"a/../../b.txt": b"x"}), "would lie outside the folder"),
    "zip, backslash": (zipped({"a\\..\\..\\b.txt": b"x"}), "would lie outside the folder"),
    "zip, drive": (zipped({"C:/b.txt": b"x"}), "would lie outside the folder"),
    "zip, link": (with_link(), "is a link or a device"),
    "zip, bomb": (zipped({"a/b.txt": bytes(10_000_000)}), "unpacks to more than 100,000 bytes"),
    "zip, same place": (zipped({"a/b.txt": b"x", "c/b.txt": b"y"}), "is a duplicate path in the archive"),
    "zip, damaged": (zipped({"a/b.txt": b"text" * 99}).replace(b"PK\x03\x04", b"PK\x03\x05"), r"archive: damaged \("),
    "tar, above": (tar("../b.txt"), "would lie outside the folder"),
    "tar, absolute": (tar("/b.txt"), "would lie outside the folder"),
    "tar, symbolic link": (tar("b.txt", tarfile.SYMTYPE), "is a link or a device"),
    "tar, hard link": (tar("b.txt", tarfile.LNKTYPE), "is a link or a device"),
    "tar, device": (tar("b.txt", tarfile.CHRTYPE), "is a link or a device"),
    "tar, bomb": (tar("b.txt", content=bytes(10_000_000)), "unpacks to more than 100,000 bytes"),
    "tar, cut short": (tar("b.txt", content=np.random.default_rng(0).bytes(9000))[:5000], r"archive: damaged \("),
    "no archive": (b"<html>log in first</html>", "is neither a zip nor a tar file"),
}


@pytest.mark.parametrize(("content", "fault"), EVIL.values(), ids=EVIL.keys())
def test_an_archive_that_is_not_to_be_trusted_is_refused(tmp_path, content, fault):
    (tmp_path / "into").mkdir()
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(ValueError, match=fault) as caught:
        unpack_archive(tmp_path / "archive", tmp_path / "into", {"*.txt": "texts"}, 100_000)
    assert str(caught.value).startswith("archive: ") and "\n" not in str(caught.value)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and "into" not in path.parts]
    assert outside == [tmp_path / "archive"]
    assert sum(path.stat().st_size for path in (tmp_path / "into").rglob("*") if path.is_file()) < 2_000_000


def test_only_wanted_members_are_unpacked_wherever_they_lie_in_the_archive(tmp_path):
    (tmp_path / "archive").write_bytes(tar("deep/er/b.txt"))
    assert unpack_archive(tmp_path / "archive", tmp_path, {"*.png": "images", "*.txt": "texts"}, 100) == 1
    assert (tmp_path / "texts" / "b.txt").read_bytes() == b"text"
    assert unpack_archive(tmp_path / "archive", tmp_path, {"*.png": "images"}, 100) == 0
    assert unpack_archive(tmp_path / "archive", tmp_path, {"*/*.txt": "texts/{parent}"}, 100) == 1
    assert (tmp_path / "texts" / "er" / "b.txt").read_bytes() == b"text"


# --- the registry and the commands --------------------------------------------------------------------


def test_the_registry_says_of_every_data_set_how_it_is_had(monkeypatch):
    entries = registry.load_registry()
    assert set(entries) == {"vhr10", "rsod", "dota", "coco-weights", *SCENE_LAYOUTS}
    assert all(entries[name].folder == layout.folder for name, layout in PUBLISHED.items())
    assert all((e.per_class or 0) * (e.classes or 0) in (0, e.images) for e in entries.values())
    assert all(entry.files or "unpack" in entry.by_hand for entry in entries.values())
    assert all(file.address.startswith("https://") for entry in entries.values() for file in entry.files)
    assert sum(entries["vhr10"].boxes.values()) == 3775
    assert sum(entries["rsod"].boxes.values()) == 6950


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("- a", "registry.yaml: expected lines of the form"),
        ("vhr10: {title: x}", "registry.yaml: Entry folder: Field required"),
        ("vhr10: 3", "registry.yaml: not a registry"),
        ("vhr10: [", "registry.yaml, line 1: not YAML"),
        ("vhr10: 1\nvhr10: 2", "registry.yaml, line 2: not YAML \\(key 'vhr10' is given twice"),
        (
            yaml.safe_dump({"x": dict.fromkeys(("title", "folder", "page", "licence", "citation"), "x")}),
            "registry.yaml: Entry : Value error, needs either files or by_hand",
        ),
    ],
)
def test_a_damaged_registry_is_one_line(tmp_path, monkeypatch, content, fault):
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "registry.yaml").write_text(content)
    with pytest.raises(ValueError, match=fault) as caught:
        registry.load_registry()
    assert "\n" not in str(caught.value)


def test_the_commands_say_what_there_is_and_what_has_to_be_done_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    listed = CliRunner().invoke(app, ["data", "list"])
    assert listed.exit_code == 0 and "NWPU VHR-10" in listed.stdout and "by hand" in listed.stdout
    for arguments, complaint in (
        (["fetch", "rsod"], "RSOD must be downloaded manually (https://github.com/"),
        (["fetch", "nosuch"], "nothing is known of 'nosuch'; known: vhr10, rsod, dota, resisc45, ucmerced, "),
        (["check", "vhr10"], "nwpu-vhr10: no such folder; `paperlib data fetch vhr10` gets it, or says how"),
    ):
        result = CliRunner().invoke(app, ["data", *arguments])
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert complaint in result.stderr
    assert list(tmp_path.iterdir()) == []
