"""Downloads that resume after an interruption, are verified, and are complete or absent."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from paperlib.data import PUBLISHED
from paperlib.data.registry import Entry, File
from paperlib.data.unpack import unpack_archive

DOWNLOADS = ".downloads"
"""Folder of archives, beside the data sets, until they are unpacked."""
CHUNK = 1 << 14
"""Bytes written at a time; an incomplete chunk is not kept."""
ATTEMPTS = 4
PAUSE = 2.0
"""Seconds before the second attempt; twice as many before the third."""
TIMEOUT = 30
"""Seconds without a byte after which a connection counts as broken."""
MOST_GROWTH = 15
"""Annotations compress to a tenth; an archive that grows by more than this factor is refused."""


def fetch_entry(name: str, entry: Entry, target: Path) -> None:
    """Download an entry of the registry into the folder `target`, unless it is there.

    After an interruption the same call resumes. A data set is complete and verified, or absent.

    Raises:
        ValueError: it must be downloaded manually (the message says how); a server sends something else than the
            registry says; an archive is unsafe; there is too little space; or `target` holds only a part of the set.
        OSError: the server cannot be reached, or the connection broke too often.
    """
    if entry.by_hand:
        raise ValueError(f"{entry.title} must be downloaded manually ({entry.page}): {entry.by_hand}")
    archives = [file for file in entry.files if file.unpack]
    downloads = target.parent / DOWNLOADS / name
    if archives and target.exists():
        _check_complete(name, entry, target)
        shutil.rmtree(downloads, ignore_errors=True)
        return
    _check_space(entry, downloads, target)
    for file in entry.files:
        download_file(file, downloads if file.unpack else target)
    if archives:
        _unpack_all(name, entry, downloads, target)


def download_file(file: File, folder: Path) -> Path:
    """Download one file into `folder`, unless it is there; errors as in `fetch_entry`."""
    import pooch
    import requests

    folder.mkdir(parents=True, exist_ok=True)
    downloader = Resuming(_partial(file, folder), file.size)
    pooch.get_logger().setLevel("WARNING")
    try:
        # Our downloader follows the protocol of pooch, except for an option that `retrieve` does not use.
        path = pooch.retrieve(
            file.address, f"sha256:{file.sha256}", file.name, folder, downloader=cast(Any, downloader)
        )
    except requests.RequestException as error:
        held = downloader.bytes_held()
        raise OSError(
            f"{file.address}: {_reason(error)}; {held:,} of {file.size:,} bytes are here, the same command resumes"
        ) from error
    except ValueError as error:
        # Our own checks of the length raise ValueError too; only that of pooch speaks of a hash.
        if "hash" not in str(error):
            raise
        raise ValueError(f"{file.address}: its SHA-256 is not {file.sha256}; nothing was kept") from error
    return Path(path)


class Resuming:
    """A downloader for pooch that keeps what it has and requests the rest."""

    def __init__(self, partial: Path, size: int) -> None:
        self.partial, self.size = partial, size

    def bytes_held(self) -> int:
        """Return the number of bytes that are here."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Download `url` to `output_file`."""
        import requests

        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._resume(url)
                break
            # The server answered; asking again would give the same error, for example 404.
            except requests.HTTPError:
                raise
            except requests.RequestException:
                if attempt == ATTEMPTS:
                    raise
                time.sleep(PAUSE * attempt)
        os.replace(self.partial, output_file)

    def _resume(self, url: str) -> None:
        import requests
        from tqdm.auto import tqdm

        held = self.bytes_held()
        # A request for bytes behind the end would be answered with error 416.
        if held == self.size:
            return
        # With compression in transit, Range and size would count other bytes than those that arrive.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={held}-"} if held else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            answer.raise_for_status()
            # A server that ignores Range sends the file from its first byte.
            if answer.status_code != requests.codes.partial_content:
                held = 0
            self._check_announced(url, answer, held)
            bar = tqdm(
                total=self.size, initial=held, desc=unquote(Path(url).name), unit="B", unit_scale=True, leave=False
            )
            with bar, self.partial.open("ab" if held else "wb") as out:
                for chunk in answer.iter_content(CHUNK):
                    held += out.write(chunk)
                    bar.update(len(chunk))
                    if held > self.size:
                        break
        self._check_held(url, held)

    def _check_announced(self, url: str, answer: Any, held: int) -> None:
        length = answer.headers.get("Content-Length")
        if length is not None and held + int(length) != self.size:
            self.partial.unlink(missing_ok=True)
            raise ValueError(f"{url}: is {held + int(length):,} bytes long, the registry says {self.size:,}")

    def _check_held(self, url: str, held: int) -> None:
        import requests

        if held > self.size:
            self.partial.unlink()
            raise ValueError(f"{url}: is longer than the {self.size:,} bytes that the registry says")
        if held < self.size:
            raise requests.ConnectionError("the connection was closed early")


def _partial(file: File, folder: Path) -> Path:
    """Return the file of a download while it is not complete."""
    return folder / f".{file.sha256[:16]}.part"


def _check_complete(name: str, entry: Entry, target: Path) -> None:
    """Refuse a folder that holds only a part of the data set."""
    if name in PUBLISHED and (count := len(PUBLISHED[name].image_names(target))) < (entry.images or 0):
        raise ValueError(f"{target}: holds {count} of {entry.images} images; move it away to fetch the set")


def _check_space(entry: Entry, downloads: Path, target: Path) -> None:
    """Check that the disk can hold what is left to download and as much again for unpacked archives."""
    root = target.parent
    root.mkdir(parents=True, exist_ok=True)
    needed = 0
    for file in entry.files:
        folder = downloads if file.unpack else target
        held = sum(path.stat().st_size for path in (folder / file.name, _partial(file, folder)) if path.is_file())
        needed += max(0, file.size - held) + (file.size if file.unpack else 0)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise ValueError(f"{root}: {entry.title} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def _unpack_all(name: str, entry: Entry, downloads: Path, target: Path) -> None:
    stage = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        for file in entry.files:
            unpack_archive(downloads / file.name, stage, file.unpack, MOST_GROWTH * file.size)
        if name in PUBLISHED and (count := len(PUBLISHED[name].image_names(stage))) != entry.images:
            raise ValueError(f"{entry.title}: {count} images were unpacked, {entry.images} were published")
        # Renamed only when complete: a crash before this line leaves no partial data set.
        stage.rename(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    shutil.rmtree(downloads)


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    return f"answered {response.status_code} {response.reason}" if response is not None else "the connection broke off"
