"""Finished steps in one ZIP file, with or without their weights, for a machine that has not made them.

The archive holds a folder for each step, as the store has it, the records of the code that made them, and a sealed list
of all files with their digests. Equal steps give equal bytes.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from paperlib import files
from paperlib.store import contents, provenance
from paperlib.store.imported import read_network_metadata
from paperlib.store.inspect import StoredStep, find_steps
from paperlib.store.staleness import find_step_changes
from paperlib.store.store import CODE, Step, is_code_intact

FORMAT = "paperlib-steps-1"
LIST = "archive.json"
"""The member that lists the others."""
MOST_EXPANSION = 200
"""How many times its size an archive may have when it is unpacked; those written here have less than 20."""
_PART = re.compile(r"paperlib(\.\w+)*(:[\w.<>]+)?")
_PACKED = (".npz", contents.WEIGHTS)
"""Suffixes of files that compression makes hardly smaller."""


def write_archive(archive: Path, store: Path, steps: Iterable[StoredStep], *, weights: bool) -> None:
    """Write finished steps of a store into a new archive, atomically.

    Args:
        archive: the file.
        store: the folder of the steps.
        steps: those to write.
        weights: also write the weights, as far as they are in the store.

    Raises:
        ValueError: a step is damaged. Names the file.
    """
    members: dict[str, Path] = {}
    listed: dict[str, Any] = {}
    for step in sorted(steps, key=lambda each: each.folder.name):
        contents.check_step(step.folder)
        omitted = _find_omitted(step, weights)
        kept = {contents.RECORD, *step.record["files"]} - omitted.keys()
        members |= {f"{step.folder.name}/{name}": step.folder / name for name in kept}
        members[f"{CODE}/{step.identity['code']}.json"] = store / CODE / f"{step.identity['code']}.json"
        listed[step.folder.name] = omitted
    digests = {name: files.file_digest(path) for name, path in sorted(members.items())}
    content = contents.seal_record({"format": FORMAT, "omitted": listed, "files": digests})
    with files.replace_file(archive) as temporary, zipfile.ZipFile(temporary, "w") as opened:
        _write_member(opened, LIST, json.dumps(content, sort_keys=True).encode())
        for name, path in sorted(members.items()):
            _write_member(opened, name, path.read_bytes())


def _find_omitted(step: StoredStep, weights: bool) -> dict[str, dict[str, str]]:
    """Return the files of weights of a step that are not written, with the metadata of each."""
    omitted = contents.read_omitted(step.folder)
    if weights:
        return omitted
    names = [name for name in step.record["files"] if name.endswith(contents.WEIGHTS)]
    return {name: read_network_metadata(step.folder / name) for name in sorted(names)}


def _write_member(opened: zipfile.ZipFile, name: str, content: bytes) -> None:
    # Without the time of writing, so that equal steps give equal archives.
    member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    member.create_system, member.external_attr = 3, 0o100644 << 16
    member.compress_type = zipfile.ZIP_STORED if name.endswith(_PACKED) else zipfile.ZIP_DEFLATED
    opened.writestr(member, content, compresslevel=9)


@dataclass
class Imported:
    """What `place_steps` did with the steps of an archive, by the names of their folders.

    Attributes:
        placed: they were not in the store.
        completed: they were there without their weights, which the archive has.
        there: they were in the store, and stayed as they were.
        busy: a running process is making them, so they were left alone.
    """

    placed: list[str] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)


def check_unpacked(folder: Path, name: str) -> Mapping[str, dict[str, dict[str, str]]]:
    """Check an unpacked archive byte by byte, and return for each of its steps what was left out.

    Args:
        folder: where it was unpacked.
        name: of the archive, for messages.

    Raises:
        ValueError: it is no archive of steps, is damaged, holds something else, or its steps were made by other code or
            libraries than those here. One line names the archive, the member and the fault.
    """
    if not (folder / LIST).is_file():
        raise ValueError(f"{name}: no archive of steps, because it has no {LIST}")
    try:
        content = contents.read_sealed(folder / LIST)
        if content.get("format") != FORMAT:
            raise ValueError(f"{folder / LIST} is of another format")
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {LIST}
        if odd := sorted(found ^ content["files"].keys()):
            raise ValueError(f"{folder / odd[0]} is {'not listed' if odd[0] in found else 'missing'}")
        contents.check_files(folder, content["files"])
        folders = {step.folder.name for step in find_steps(folder)}
        if strange := sorted({path.partition("/")[0] for path in found} - {CODE} ^ folders):
            raise ValueError(f"{folder / strange[0]} is no step")
        if content["omitted"].keys() != folders:
            raise ValueError(f"{folder / LIST} lists other steps")
        for step, omitted in content["omitted"].items():
            _check_step(folder / step, omitted, found)
        for path in (folder / CODE).glob("*.json"):
            _check_code(path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: damaged: {LIST} or step.json lacks {error}") from None
    except ValueError as error:
        raise ValueError(f"{name}: damaged: {str(error).replace(f'{folder}{os.sep}', '')}") from None
    _require_current(folder, name)
    return content["omitted"]


def _check_step(folder: Path, omitted: Mapping[str, Mapping[str, str]], found: set[str]) -> None:
    """Check that a folder is the step that its name says, with all files that are not left out. Raises ValueError."""
    record = contents.read_sealed(folder / contents.RECORD)
    step = Step(**record["step"])
    if (step.digest, step.name) != (record["digest"], folder.name):
        raise ValueError(f"{folder / contents.RECORD} is of another step")
    known = {each for each in record["files"] if each.endswith(contents.WEIGHTS)}
    if strange := sorted(omitted.keys() - known):
        raise ValueError(f"{folder / strange[0]} is no file of weights, and may not be left out")
    expected = {contents.RECORD, *record["files"]} - omitted.keys()
    present = {path.removeprefix(f"{folder.name}/") for path in found if path.startswith(f"{folder.name}/")}
    if odd := sorted(expected ^ present):
        raise ValueError(f"{folder / odd[0]} does not belong to it, or is missing")
    contents.check_files(folder, {name: record["files"][name] for name in expected - {contents.RECORD}})
    if lacking := {"machine", "finished"} - record.keys():
        raise ValueError(f"{folder / contents.RECORD} does not say {lacking.pop()}")


def _check_code(path: Path) -> None:
    # What it names is looked for among the sources, so it must not name anything outside of the package.
    if not is_code_intact(path) or not all(_PART.fullmatch(part) for part in contents.read_sealed(path)["parts"]):
        raise ValueError(f"{path} was changed after it was written")


def _require_current(folder: Path, name: str) -> None:
    changed = [(step, changes) for step in find_steps(folder) if (changes := find_step_changes(folder, step))]
    if changed:
        step, changes = changed[0]
        raise ValueError(
            f"{name}: {len(changed)} of {len(find_steps(folder))} steps were made by other code or libraries than are "
            f"here, so nothing would use them ({step.folder.name}: {changes[0]}); nothing was imported"
        )


def place_steps(folder: Path, omitted: Mapping[str, Mapping[str, Mapping[str, str]]], store: Path) -> Imported:
    """Move the steps of an unpacked archive that was checked into a store on the same file system, one by one.

    Args:
        folder: where the archive was unpacked; what it has of the steps is moved away.
        omitted: what `check_unpacked` has returned.
        store: the folder of the steps.
    """
    for path in sorted((folder / CODE).glob("*.json")):
        if not is_code_intact(store / CODE / path.name):
            (store / CODE).mkdir(parents=True, exist_ok=True)
            contents.remove_path(store / CODE / path.name)
            os.rename(path, store / CODE / path.name)
    done, now = Imported(), provenance.utc_now()
    for name, lacking in omitted.items():
        try:
            with FileLock(store / f"{name}.lock", timeout=0):
                getattr(done, _place(folder / name, store / name, lacking, now)).append(name)
        except Timeout:
            done.busy.append(name)
    return done


def _place(source: Path, final: Path, lacking: Mapping[str, Mapping[str, str]], now: str) -> str:
    """Place one step, and return the attribute of `Imported` that says what was done."""
    if os.path.lexists(final):
        try:
            contents.check_step(final)
            return _complete(source, final, lacking)
        except ValueError as fault:
            contents.set_aside(final, fault, "the imported step takes its place")
    contents.write_imported(source, now, lacking)
    files.sync_tree(source)
    os.rename(source, final)
    files.sync_path(final.parent)
    return "placed"


def _complete(source: Path, final: Path, lacking: Mapping[str, Mapping[str, str]]) -> str:
    """Move those weights of a step to where they are missing that belong to the very same record."""
    wanted = {name: each for name, each in contents.read_omitted(final).items() if name not in lacking}
    records = [contents.read_sealed(each / contents.RECORD)["files"] for each in (source, final)]
    if not wanted or any(records[0][name] != records[1][name] for name in wanted):
        return "there"
    imported = contents.read_sealed(final / contents.IMPORTED)["imported"]
    rest = {name: each for name, each in contents.read_omitted(final).items() if name in lacking}
    for name in wanted:
        files.sync_path(source / name)
        os.replace(source / name, final / name)
    contents.write_imported(final, imported, rest)
    return "completed"
