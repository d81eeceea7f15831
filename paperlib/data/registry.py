"""The registry of data sets and weights, `data/registry.yaml`: addresses, digests and published counts."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from paperlib import paths
from paperlib.files import read_mapping, shorten_text

WEIGHTS = "weights"


class File(BaseModel):
    """A file to download."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    size: PositiveInt
    """Bytes."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    unpack: dict[str, str] = {}
    """Folder for each pattern of archive members; `{parent}` in it stands for the folder in the archive. If empty, the
    file is not unpacked."""

    @property
    def name(self) -> str:
        """Return the last part of the address."""
        return PurePosixPath(unquote(urlsplit(self.address).path)).name


class Entry(BaseModel):
    """A data set, or weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    folder: str
    """Folder under the data folder; `weights` means the weights folder."""
    page: str
    licence: str
    citation: str
    images: PositiveInt | None = None
    boxes: dict[str, PositiveInt] = {}
    """Published number of objects per class."""
    differs: dict[str, PositiveInt] = {}
    """Number in the published files where it differs from the published one."""
    classes: PositiveInt | None = None
    """Published number of classes of a scene data set."""
    per_class: PositiveInt | None = None
    """Published number of images of each class, where all have the same."""
    files: list[File] = []
    by_hand: str = ""
    """Instructions where no file can be downloaded."""

    @model_validator(mode="after")
    def _check_source(self) -> Entry:
        if bool(self.files) == bool(self.by_hand):
            raise ValueError("needs either files or by_hand")
        return self

    @property
    def size(self) -> int:
        """Return the number of bytes to download."""
        return sum(file.size for file in self.files)


def load_registry() -> dict[str, Entry]:
    """Read the registry, by name.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is damaged; one line names the entry and the fault.
    """
    path = registry_path()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return {name: Entry(**values) for name, values in read_mapping(path).items()}
    # An entry that is not a mapping fails at `**values`.
    except TypeError as error:
        raise ValueError(f"{path}: not a registry ({shorten_text(' '.join(str(error).split()), 200)})") from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = shorten_text(".".join(map(str, fault["loc"])))
        raise ValueError(f"{path}: {error.title} {place}: {shorten_text(fault['msg'], 200)}") from None


def find_entry(name: str) -> Entry:
    """Return one entry.

    Raises:
        ValueError: there is no entry of that name.
    """
    entries = load_registry()
    if name not in entries:
        raise ValueError(f"nothing is known of {name!r}; known: {', '.join(entries)}")
    return entries[name]


def entry_folder(entry: Entry) -> Path:
    """Return the folder of an entry: below the data folder, or the weights folder."""
    return paths.weights_root() if entry.folder == WEIGHTS else paths.data_root() / entry.folder


def registry_path() -> Path:
    """Return the file of the registry."""
    return paths.source_root() / "data" / "registry.yaml"
