"""What is in a store: the finished steps, which results they belong to, and what can be removed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from paperlib import files
from paperlib.progress.processes import is_held
from paperlib.store.contents import ASIDE, IMPORTED, RECORD, check_step, read_omitted
from paperlib.store.pictures import ends_with_digest, find_pictures, find_removable_pictures, remove_picture
from paperlib.store.store import CODE, is_code_intact

_FOLDER = re.compile(r"[a-z][a-z0-9-]*-[0-9a-f]{16}")
MEASUREMENTS = ("evaluate", "detect")
"""Kinds of the steps that belong to the model from which they start; nothing starts from them."""
UNPACKED = ".import-"
"""How the name of a folder begins in which an archive of steps is unpacked."""
_REMOVED = ".removed-"
"""How the name of a folder begins that is being removed: a kill must not leave half a step under its own name."""


@dataclass(frozen=True)
class StoredStep:
    """A finished step and what its `step.json` says; `record` is empty if that cannot be read."""

    folder: Path
    record: dict[str, Any]

    @property
    def key(self) -> str:
        """Return the digits of the digest that stand in the folder's name."""
        return self.folder.name[-16:]

    @property
    def kind(self) -> str:
        """Return what was done: "train", "prune", …"""
        return self.folder.name[:-17]

    @property
    def identity(self) -> dict[str, Any]:
        """Return what identifies the step: its settings, parents, data, code and libraries."""
        return self.record.get("step", {})

    @property
    def parents(self) -> list[str]:
        """Return the keys of the steps that this one starts from."""
        return [digest[:16] for digest in self.identity.get("parents", ())]

    @property
    def imported(self) -> bool:
        """Return whether the step came from another machine."""
        return (self.folder / IMPORTED).exists()

    @property
    def has_weights(self) -> bool:
        """Return whether it lacks no weights; a damaged `imported.json` counts as a lack."""
        try:
            return not read_omitted(self.folder)
        except ValueError:
            return False

    @property
    def finished(self) -> datetime:
        """Return when the step was finished; if that is unknown, when its folder was changed last."""
        if "finished" in self.record:
            return datetime.fromisoformat(self.record["finished"])
        return datetime.fromtimestamp(self.folder.stat().st_mtime, UTC)


@dataclass(frozen=True)
class Removable:
    """What `paperlib store prune` removes.

    Attributes:
        steps: finished steps that no result refers to.
        leftovers: unfinished steps and locks of processes that have ended, damaged steps that were set aside, and
            records of code that made nothing left.
        pictures: files of mapped pictures, which are written again from the data when they are needed.
        megabytes: size of all.
        in_use: how many steps running processes are making at the moment.
    """

    steps: list[StoredStep]
    leftovers: list[Path]
    pictures: list[Path]
    megabytes: float
    in_use: int


def find_steps(store: Path) -> list[StoredStep]:
    """Return the finished steps of a store, by kind, the newest first."""
    folders = [path for path in store.glob("*-*") if _FOLDER.fullmatch(path.name) and path.is_dir()]
    folders = [path for path in folders if not path.name.startswith(ASIDE)]
    steps = [StoredStep(folder, _read_record(folder)) for folder in folders]
    return sorted(steps, key=lambda step: (step.kind, -step.finished.timestamp(), step.key))


def find_results(results: Path, store: Path) -> dict[str, Path]:
    """Return `provenance.json` of every result by "scale/notebook", and that of the folder around the store, if any."""
    found = {f"{path.parts[-3]}/{path.parts[-2]}": path for path in sorted(results.glob("*/*/provenance.json"))}
    beside = store.parent / "provenance.json"  # `paperlib compress --out DIR` keeps its steps in DIR/steps
    return found | ({store.parent.name: beside} if beside.is_file() else {})


def find_users(steps: Iterable[StoredStep], results: dict[str, Path]) -> dict[str, list[str]]:
    """Return which results rest on each step, by its key: directly, or because a step that they name started from it.

    Raises:
        ValueError: a `provenance.json` cannot be read, so that it is unknown what its result rests on.
    """
    by_key = {step.key: step for step in steps}
    users: dict[str, list[str]] = {key: [] for key in by_key}
    for name, path in results.items():
        named = files.read_json(path).get("steps", [])
        reached = _ancestors((digest[:16] for digest in named), by_key)
        # A result names its models only; a measurement belongs to the model that was measured.
        reached |= {key for key, step in by_key.items() if step.kind in MEASUREMENTS and reached & {*step.parents}}
        for key in sorted(reached):
            users[key].append(name)
    return users


def list_steps(store: Path, results: Path, kind: str | None = None) -> str:
    """Return a table of finished steps with size, age and the results that rest on them, and the totals.

    Raises:
        ValueError: there is no step of this kind.
    """
    steps = find_steps(store)
    users = find_users(steps, find_results(results, store))
    kinds = sorted({step.kind for step in steps})
    if kind is not None and kind not in kinds:
        raise ValueError(f"no step of kind {kind!r} in {store}; there are {', '.join(kinds) or 'none'}")
    shown = [step for step in steps if kind in (None, step.kind)]
    sizes = {step.key: measure_megabytes(step.folder) for step in shown}
    width = max((len(step.folder.name) for step in shown), default=4)
    lines = [f"{'step':{width}}  {'MB':>9}  {'age':>7}  used by"]
    for step in shown:
        age = format_age((datetime.now(UTC) - step.finished).total_seconds())
        lacking = "" if step.has_weights else "  (without weights)"
        used = _shorten(users[step.key])
        lines.append(f"{step.folder.name:{width}}  {sizes[step.key]:9.2f}  {age:>7}  {used}{lacking}")
    unused = [step.key for step in shown if not users[step.key]]
    lines.append(f"{format_count(len(shown), 'step')}, {sum(sizes.values()):.2f} MB")
    lines.append(f"{len(unused)} of them, {sum(sizes[key] for key in unused):.2f} MB, belong to no result")
    if imported := [step for step in shown if step.imported]:
        lacking = sum(not step.has_weights for step in imported)
        lines.append(f"{len(imported)} of them were imported, {lacking} without weights")
    if pictures := find_pictures(store):
        size = sum(measure_megabytes(path) for path in pictures)
        lines.append(f"{format_count(len(pictures), 'file')} of mapped pictures, {size:.2f} MB")
    return "\n".join(lines)


def find_damage(store: Path) -> list[str]:
    """Read every finished step, the mapped pictures and the records of code; return one line for each damaged file."""
    faults = []
    for step in find_steps(store):
        try:
            check_step(step.folder)
        except (ValueError, OSError) as error:
            faults.append(str(error))
    damaged = [path for path in sorted((store / CODE).glob("*.json")) if not is_code_intact(path)]
    damaged += [path for path in find_pictures(store) if not ends_with_digest(path)]
    return faults + [f"{path} was changed after it was written" for path in damaged]


def find_removable(store: Path, results: Path) -> Removable:
    """Return what no result refers to, neither directly nor through a later step, and no running process is making.

    Raises:
        ValueError: a `provenance.json` cannot be read, so that it is unknown what its result rests on.
    """
    steps = find_steps(store)
    found = find_results(results, store)
    users = find_users(steps, found)
    held = {lock.stem for lock in store.glob("*.lock") if is_held(lock)}
    running = [StoredStep(store / name, _read_record(store / f"{name}.partial")) for name in held]
    # What a running step starts from is needed, though no result names it yet.
    started_from = {key for step in running for key in step.parents}
    needed = _ancestors(started_from, {step.key: step for step in steps}) | {step.key for step in running}
    unused = [step for step in steps if not users[step.key] and step.key not in needed]
    stay = [step for step in steps if step not in unused] + running
    names = {step.folder.name for step in stay}
    codes = {step.identity.get("code") for step in stay}
    codes |= {files.read_json(path).get("code", {}).get("digest") for path in found.values()}
    unfinished = [path for path in store.glob("*.partial") if not path.name.startswith(ASIDE)]
    leftovers = [path for path in unfinished if path.stem not in held]
    leftovers += [path for path in store.glob("*.lock") if path.stem not in names]
    leftovers += [path for path in (store / CODE).glob("*.json") if path.stem not in codes]
    leftovers += store.glob(f"{_REMOVED}*")
    leftovers += store.glob(f"{UNPACKED}*")
    leftovers += store.glob(f"{ASIDE}*")
    pictures = find_removable_pictures(store)
    total = sum(measure_megabytes(path) for path in [*leftovers, *pictures, *(step.folder for step in unused)])
    return Removable(unused, leftovers, pictures, total, len(held))


def find_resting(store: Path, names: Iterable[str]) -> Removable:
    """Return the steps of these names and all that rest on them, whatever results refer to them.

    Raises:
        ValueError: there is no step of a name.
    """
    steps = find_steps(store)
    by_key = {step.key: step for step in steps}
    wanted = set()
    for name in names:
        wanted |= {step.key for step in steps if step.folder.name == name}
        if name[-16:] not in wanted:
            raise ValueError(f"{name}: no step in {store} has this name")
    chosen = [step for step in steps if wanted & _ancestors([step.key], by_key)]
    total = sum(measure_megabytes(step.folder) for step in chosen)
    return Removable(chosen, [], [], total, 0)


def remove_found(found: Removable) -> int:
    """Remove what was found, except for what a process began to make meanwhile; return how many steps were removed."""
    for path in found.pictures:
        remove_picture(path)
    for path in found.leftovers:
        if path.suffix == ".json":
            path.unlink(missing_ok=True)
        elif path.suffix != ".lock":
            _remove_folder(path)
    # Removing a step removes its lock, too. The locks that are left belong to no step.
    removed = sum(_remove_folder(step.folder) for step in found.steps)
    for lock in (path for path in found.leftovers if path.suffix == ".lock"):
        if not is_held(lock):
            lock.unlink(missing_ok=True)
    return removed


def measure_megabytes(path: Path) -> float:
    """Return the size of a file, or of all files in a folder, in megabytes (10^6 bytes)."""
    paths = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in paths if each.is_file()) / 1e6


def format_age(seconds: float) -> str:
    """Return a span of time in its largest unit: "3 d", "5 h", "12 min"."""
    for unit, length in (("d", 86400), ("h", 3600)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} min"


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 step", "3 steps"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = files.read_json(folder / RECORD)
    # A damaged step is listed like any other; nothing rests on it, so it can be removed.
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _ancestors(keys: Iterable[str], by_key: dict[str, StoredStep]) -> set[str]:
    """Return those of the steps that are in the store, and all steps behind them."""
    pending = set(keys) & by_key.keys()
    found: set[str] = set()
    while pending:
        key = pending.pop()
        found.add(key)
        pending |= (by_key.keys() & set(by_key[key].parents)) - found
    return found


def _remove_folder(folder: Path) -> bool:
    """Remove a folder of the store, unless a process is at work in it; return whether it is gone."""
    lock = FileLock(folder.with_name(f"{folder.name.removesuffix('.partial')}.lock"), timeout=0)
    try:
        with lock:
            doomed = folder.with_name(f"{_REMOVED}{folder.name.removeprefix(_REMOVED)}")
            folder.rename(doomed)
            shutil.rmtree(doomed)
            Path(lock.lock_file).unlink(missing_ok=True)
            return True
    except Timeout:
        return False


def _shorten(names: list[str]) -> str:
    return f"{', '.join(names[:2])} and {len(names) - 2} more" if len(names) > 3 else ", ".join(names) or "-"
