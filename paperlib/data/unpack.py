"""Safe unpacking of downloaded archives: only the wanted members, only into their folder, only up to a size."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

CHUNK = 1 << 20
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError)
"""Errors of the standard library for a damaged archive; `RuntimeError` means encrypted or unknown compression."""


@dataclass(frozen=True)
class Member:
    """A member of an archive."""

    name: str
    is_folder: bool
    content: IO[bytes] | None = None
    """None for a folder, a link or a device."""


def unpack_archive(archive: Path, into: Path, wanted: Mapping[str, str], most_bytes: int) -> int:
    """Unpack members of a zip or tar file; folders inside the archive do not matter.

    Args:
        archive: the file.
        into: an existing folder.
        wanted: pattern of member names (`*` stands for anything) to folder below `into`, in which `{parent}` stands for
            the member's own folder; other members stay packed.
        most_bytes: maximum size of all unpacked files together.

    Returns:
        The number of files written.

    Raises:
        ValueError: the file is no archive or is damaged; a member, wanted or not, lies outside the folder or is a link
            or device; two members have the same target; or it unpacks to more than `most_bytes`. One line names the
            archive, the member and the fault. Files written before the error stay: unpack into a temporary folder.
    """
    written: set[Path] = set()
    left = most_bytes
    try:
        for member in _members(archive):
            _check(member, archive)
            target = _target(member, into, wanted)
            if target is None or member.content is None:
                continue
            if target in written:
                raise ValueError(f"{archive.name}: {member.name!r} is a duplicate path in the archive")
            written.add(target)
            left -= _write(member.content, target, left)
            if left < 0:
                raise ValueError(f"{archive.name}: unpacks to more than {most_bytes:,} bytes")
    except DAMAGE as error:
        raise ValueError(f"{archive.name}: damaged ({error})") from error
    return len(written)


def _members(archive: Path) -> Iterator[Member]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                # The upper 16 bits hold the Unix mode of the file.
                kind = stat.S_IFMT(info.external_attr >> 16)
                # Archives made on Windows state no kind (0).
                if info.is_dir() or kind not in (0, stat.S_IFREG):
                    yield Member(info.filename, info.is_dir())
                    continue
                with opened.open(info) as content:
                    yield Member(info.filename, is_folder=False, content=content)
    elif not tarfile.is_tarfile(archive):
        raise ValueError(f"{archive.name}: is neither a zip nor a tar file")
    else:
        with tarfile.open(archive) as opened:
            for info in opened:
                yield Member(info.name, info.isdir(), opened.extractfile(info) if info.isfile() else None)


def _check(member: Member, archive: Path) -> None:
    # Windows rules also find backslashes and drives, such as C:, in a name.
    windows = PureWindowsPath(member.name)
    if PurePosixPath(member.name).is_absolute() or windows.anchor or ".." in windows.parts:
        raise ValueError(f"{archive.name}: {member.name!r} would lie outside the folder")
    if not member.is_folder and member.content is None:
        raise ValueError(f"{archive.name}: {member.name!r} is a link or a device, not a file")


def _target(member: Member, into: Path, wanted: Mapping[str, str]) -> Path | None:
    path = PurePosixPath(member.name)
    folders = [folder for pattern, folder in wanted.items() if fnmatchcase(member.name, pattern)]
    return into / folders[0].replace("{parent}", path.parent.name) / path.name if folders else None


def _write(content: IO[bytes], target: Path, most_bytes: int) -> int:
    """Write a member, at most a little more than `most_bytes` of it; return the number of bytes written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with target.open("wb") as out:
        # Bytes are counted as they are written, because the size in an archive's header may be false.
        while count <= most_bytes and (chunk := content.read(CHUNK)):
            count += out.write(chunk)
    return count
