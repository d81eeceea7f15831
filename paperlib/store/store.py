"""Finished steps (train, prune, distil, …), found again by what made them.

A step's folder is named by a digest of its kind, settings, parents, data, code and libraries. If the folder exists, the
step is finished, and nothing in it is ever edited. A change of anything that can change a number gives another name.
"""

import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from paperlib import files
from paperlib.progress import group
from paperlib.progress.slots import lend_slots
from paperlib.store import contents, imported, provenance
from paperlib.store.ancestry import find_step_folder
from paperlib.store.code_digest import Code

LIBRARIES = ("accelerate", "faster-coco-eval", "numpy", "torch", "torchvision")
"""Libraries that compute the numbers: with another version of one it is another step."""
PROCESSES = "processes"
"""The setting that says by how many processes a step is made together; every other step is made by one."""
SECONDS_TO_APPEAR = 60.0
"""How long a folder that machines share may need to show what another of them has written."""
STEP_DEVICE = "PAPERLIB_STEP_DEVICE"
"""The variable that names the device of steps made elsewhere, such as `cuda`, for a process that only reads them."""
CODE = "code"
"""Folder in the store: for each state of the code that made a step, what that code was."""

_log = logging.getLogger(__name__)


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, floats by their shortest exact `repr`.

    Tuples count as lists. `1`, `1.0` and `true` stay distinct on purpose: a needless second training costs time, a
    wrongly shared one costs the truth. Raises ValueError naming the place of NaN, an infinity or a non-JSON value.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def installed_libraries() -> dict[str, str]:
    """Return the installed versions of `LIBRARIES`."""
    return {name: provenance.package_version(name) for name in LIBRARIES}


@dataclass(frozen=True)
class Step:
    """What identifies a step. Raises ValueError for a part that cannot identify it (NaN, an object, …)."""

    kind: str
    """What is done: "train", "prune", "distil", …; lower-case letters, digits and hyphens."""
    settings: dict[str, Any]
    """All that was chosen, as JSON values; copied, so that the caller's later changes do not reach the step."""
    parents: tuple[str, ...]
    """Digests of the steps that this one starts from; their order counts (a teacher is not a student)."""
    data: str
    """Digest of the data, "" for a step that reads none."""
    code: str
    """Digest of the code that can change the step's numbers (see `code_of`)."""
    libraries: dict[str, str] = field(default_factory=installed_libraries)
    """Installed versions of `LIBRARIES`."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.kind) or self.kind.startswith(contents.ASIDE):
            raise ValueError(f"step kind {self.kind!r}: use lower-case letters, digits and hyphens")
        # A frozen dataclass lets its fields be set only in this way.
        object.__setattr__(self, "parents", tuple(self.parents))
        for parent in self.parents:
            if not re.fullmatch(r"[0-9a-f]{64}", parent):
                raise ValueError(f"{self.kind} step: parent {parent!r} is not the digest of a step")
        object.__setattr__(self, "settings", _plain(self.settings, f"{self.kind} step, settings"))

    @property
    def digest(self) -> str:
        """Return the SHA-256 (64 hex digits) of the step's canonical JSON."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Return the name of the step's folder: "<kind>-<first 16 digits of the digest>"."""
        return f"{self.kind}-{self.digest[:16]}"


class Store:
    """A folder of finished steps, shared by any number of processes."""

    def __init__(self, root: Path | None = None) -> None:
        if root is None:
            from paperlib.paths import store_root

            root = store_root()
        self.root = Path(root).absolute()
        self._lacking: dict[str, tuple[Step, Callable[[Path], None]]] = {}
        """By digest: each step without weights that was asked for, and what makes it."""

    def get_step(self, step: Step, make: Callable[[Path], None], code: Code | None = None) -> Path:
        """Return the folder of the finished step; `make(folder)` fills it if it does not exist yet.

        `make` works in "<name>.partial", which is renamed once it returns. If it is killed or fails, the partial folder
        stays, and the next call gives it to `make` as it was, so that a resumable training continues. One process makes
        a step at a time; the others wait. `step.json` in the folder belongs to the store: the step, its digest, when,
        how long and on what machine it was made, and the SHA-256 of every file. A finished step whose files differ
        from that is set aside, which one line says, and made again. `code`, the state behind `step.code`, is written
        beside the steps, so that `paperlib store why` can tell what changed.

        A step that was imported without its weights is finished, too. Only if another step has to be made that starts
        from it, it is made again first, by the `make` with which it was asked for (see `paperlib.store.imported`).

        In a group of processes all must ask for the same step at the same time. The first one does all that is said
        above while the others wait; of a step with the setting `processes` each calls `make`, in the same folder.

        Raises whatever `make` raises; ValueError if the processes do not ask for the same step; MissingWeightsError if
        what it starts from has no weights here and was not asked for before.
        """
        if group.count_processes() == 1:
            return self._get_step(step, make, code)
        _require_same_step(step)
        together = PROCESSES in step.settings
        final = group.let_first_lead(lambda call_all: self._get_step(step, call_all if together else make, code), make)
        _wait_until_visible(final, step.digest)
        return final

    def _get_step(self, step: Step, make: Callable[[Path], None], code: Code | None) -> Path:
        final = self.root / step.name
        self.record_code(code)
        if not _is_intact(final, step.digest):
            self._complete_parents(step)
            with _alone(final):
                # While this process waited for the lock, another one may have finished the step.
                if not _is_intact(final, step.digest, aside=True):
                    with files.name_path(final):
                        # Everything is on the disk before the folder gets its final name: a power failure leaves no
                        # half step under it.
                        os.rename(_make(step, final, make), final)
                        files.sync_path(final.parent)
        if group.count_processes() == 1 and contents.read_omitted(final):
            self._lacking[step.digest] = step, make
            # A new network is built in seconds.
            if not step.parents:
                self._make_again(final, step.digest)
        return final

    def _complete_parents(self, child: Step) -> None:
        """Make again what a step starts from, as far as it has no weights here."""
        for digest in child.parents:
            if (folder := find_step_folder(self.root, digest)) and contents.read_omitted(folder):
                self._make_again(folder, digest)

    def _make_again(self, final: Path, digest: str) -> None:
        if digest not in self._lacking:
            raise imported.MissingWeightsError(final)
        step, make = self._lacking[digest]
        self._complete_parents(step)
        with _alone(final), files.name_path(final):
            # While this process waited for the lock, another one may have made the weights.
            if contents.read_omitted(final):
                _log.warning("%s was imported without its weights, which are needed: it is made again", final.name)
                imported.complete_step(final, _make(step, final, make))

    def record_code(self, code: Code | None) -> None:
        """Write down the state of the code, by its digest, unless the store has it already."""
        if code and not is_code_intact(path := self.root / CODE / f"{code.digest}.json"):
            if path.is_dir():
                contents.remove_path(path)
            files.write_json_atomically(path, contents.seal_record(asdict(code)))


class UnfinishedError(LookupError):
    """A step that is not finished was asked of a store that makes none."""


class FinishedSteps(Store):
    """A store that only looks: it makes no step that is not finished."""

    def get_step(self, step: Step, make: Callable[[Path], None], code: Code | None = None) -> Path:
        """Return the folder of the finished step.

        Raises UnfinishedError if it does not exist or is damaged.
        """
        final = self.root / step.name
        if not _is_intact(final, step.digest):
            raise UnfinishedError(step.name)
        return final


def is_code_intact(path: Path) -> bool:
    """Return whether a file of `code/` is what was written for the digest in its name."""
    try:
        return contents.read_sealed(path).get("digest") == path.stem
    except ValueError:
        return False


def _is_intact(final: Path, digest: str, *, aside: bool = False) -> bool:
    """Return whether a step is finished and as it was written; with `aside`, a damaged one is set aside."""
    if not os.path.lexists(final):
        return False
    try:
        contents.check_step(final, digest)
    except ValueError as fault:
        if aside:
            contents.set_aside(final, fault, "the step is made again")
        return False
    return True


def _require_same_step(step: Step) -> None:
    parts = asdict(step)
    settings = {f"the setting {name}": value for name, value in parts.pop("settings").items()}
    group.require_same(f"{step.kind} step", parts | settings)


def _wait_until_visible(final: Path, digest: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while not _is_intact(final, digest):
        if time.monotonic() > deadline:
            raise FileNotFoundError(f"{final}: made by process 0 and not seen here; all processes need the same store")
        time.sleep(0.2)


@contextmanager
def _alone(final: Path) -> Iterator[None]:
    """Hold the step's lock, which the operating system frees even if this process is killed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(final.with_name(f"{final.name}.lock"))
    try:
        # The first attempt does not wait, so that a long wait is announced.
        lock.acquire(blocking=False)
    except Timeout:
        _log.warning("waiting for another process that is making %s", final.name)
        with lend_slots():
            lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def _make(step: Step, final: Path, make: Callable[[Path], None]) -> Path:
    """Make a step in its partial folder, and return that folder, which only lacks its final name."""
    partial = final.with_name(f"{final.name}.partial")
    identity = {"digest": step.digest, "step": asdict(step)}
    # `step.json` is the first file in the folder, so whatever else is there belongs to this step.
    resumed = _can_resume(partial, step.digest)
    if not resumed:
        files.write_json_atomically(partial / contents.RECORD, contents.seal_record(identity))
    start = time.perf_counter()
    try:
        make(partial)
    except Exception as error:
        error.add_note(f"What was done so far is kept in {partial}; delete that folder to start afresh.")
        raise
    made = {
        "finished": provenance.utc_now(),
        "wall_seconds": round(time.perf_counter() - start, 3),
        "resumed": resumed,
        "versions": provenance.installed_versions(),
        "machine": provenance.describe_machine(),
        "files": contents.digest_files(partial),
    }
    files.write_json_atomically(partial / contents.RECORD, contents.seal_record(identity | made))
    files.sync_tree(partial)
    return partial


def _can_resume(partial: Path, digest: str) -> bool:
    """Return whether work on the step was begun; what cannot be of this step is set aside."""
    if not os.path.lexists(partial):
        return False
    try:
        if not any(partial.iterdir()):
            return False
        if contents.read_sealed(partial / contents.RECORD).get("digest") == digest:
            return True
        fault = f"{partial / contents.RECORD} is of another step"
    except (ValueError, NotADirectoryError, FileNotFoundError) as error:
        fault = str(error)
    contents.set_aside(partial, fault, "the step is begun again")
    return False


def _plain(value: Any, place: str = "value") -> Any:
    return files.map_leaves(_number_keys_as_text(value), _finite, place)


def _number_keys_as_text(value: Any) -> Any:
    """Write whole numbers that are keys, such as indices of classes, as JSON does, unless one would meet its text."""
    if isinstance(value, dict):
        named = {str(key) if type(key) is int else key: _number_keys_as_text(item) for key, item in value.items()}
        return named if len(named) == len(value) else value
    return [_number_keys_as_text(item) for item in value] if isinstance(value, list | tuple) else value


def _finite(leaf: Any, place: str) -> Any:
    if isinstance(leaf, float) and not math.isfinite(leaf):
        raise ValueError(f"{place}: {leaf} identifies nothing (NaN is not even equal to itself)")
    return leaf
