"""How far a notebook is: a bar for the reader in JupyterLab, a line of JSON for the batch.

In the batch the variable `PAPERLIB_PROGRESS` names a file. It holds one object,

    {"step": "fine-tune, seed 1", "done": 12, "of": 19, "detail": "epoch 5/12", "fraction": 0.652, "weight": 0}

replaced as a whole, so that whoever reads it never sees half of one. A process that `multiprocessing` started
writes beside it, to `<file>.<pid>`, until it withdraws. Without the variable nothing is written.
"""

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

VARIABLE = "PAPERLIB_PROGRESS"
SECONDS_BETWEEN_WRITES = 0.5

_step: dict[str, str | int] = {}
_weights: tuple[float, float, float] = (0, 0, 0)
_bars: list[tuple[str, int, int]] = []
_last_write = 0.0


def report(step: str, done: int, of: int) -> None:
    """Say that `step` begins now, after `done` of `of` steps are finished."""
    _step.update(step=step, done=done, of=of)
    _write()


def weigh(done: float, step: float, of: float) -> None:
    """Say how much work, in any unit, lies behind the step that is reported next, in it, and in all (0: not known).

    Without this, all steps count alike.
    """
    global _weights
    _weights = (done, step, of)


def withdraw() -> None:
    """Say that this worker has nothing more to report."""
    if _is_worker() and (target := _target()):
        Path(target).unlink(missing_ok=True)


def bar(iterable: Iterable[Item], desc: str) -> Iterable[Item]:
    """Pass `iterable` on and show how much of it is done; `desc` names one item ("epoch", "image").

    Bars may be nested. In the batch they fill in the `detail` of the step last reported.
    """
    if os.environ.get(VARIABLE):
        return _reported(iterable, desc)
    from tqdm.auto import tqdm

    step = _step.get("step")
    return tqdm(iterable, desc=f"{step}: {desc}" if step else desc, leave=False)


@contextmanager
def reporting() -> Iterator[tuple[Path, bool]]:
    """The file that progress goes to, and whether somebody else shows it (the batch) or the caller must."""
    if place := os.environ.get(VARIABLE):
        yield Path(place), True
        return
    with tempfile.TemporaryDirectory(prefix="paperlib-") as folder:
        place = Path(folder) / "progress.json"
        os.environ[VARIABLE] = str(place)
        try:
            yield place, False
        finally:
            del os.environ[VARIABLE]


def read(path: Path) -> dict | None:
    """Return what was last reported to `path`, with what the workers are at; None if nothing was."""
    said = _load(path)
    if said is None:
        return None
    workers = [worker for file in sorted(path.parent.glob(f"{path.name}.*[0-9]")) if (worker := _load(file))]
    for worker in workers:
        at = " · ".join(filter(None, [worker["step"], worker["detail"]]))
        said["detail"] = ", ".join(filter(None, [said["detail"], at]))
    if said["of"]:
        ahead = sum(worker["fraction"] for worker in workers) / said["of"]
        said["fraction"] = min(said["fraction"] + ahead, 1.0)
    return said


def _load(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _is_worker() -> bool:
    return multiprocessing.parent_process() is not None


def _target() -> str | None:
    target = os.environ.get(VARIABLE)
    return f"{target}.{os.getpid()}" if target and _is_worker() else target


def _reported(iterable: Iterable[Item], desc: str) -> Iterator[Item]:
    of = len(iterable) if hasattr(iterable, "__len__") else 0
    _bars.append((desc, 0, of))
    depth = len(_bars)
    try:
        for done, item in enumerate(iterable):
            _bars[depth - 1 :] = [(desc, done, of)]
            if time.monotonic() - _last_write >= SECONDS_BETWEEN_WRITES:
                _write()
            yield item
        # What is over stays in view, so that nobody sees work undone until something new is reported.
        _bars[depth - 1 :] = [(desc, of, of)]
        _write()
    finally:
        del _bars[depth - 1 :]


def _write() -> None:
    global _last_write
    target = _target()
    if not target:
        return
    at = [(desc, min(done + 1, of) if of else done + 1, of) for desc, done, of in _bars]
    detail = " · ".join(f"{desc} {number}/{of}" if of else f"{desc} {number}" for desc, number, of in at)
    state = {"step": "", "done": 0, "of": 0, **_step, "detail": detail, "fraction": _fraction(), "weight": _weights[2]}
    temporary = Path(f"{target}.tmp")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    os.replace(temporary, target)
    _last_write = time.monotonic()


def _fraction() -> float:
    fraction = 0.0
    for _, done, of in reversed(_bars):
        fraction = (done + fraction) / of if of else fraction
    done, step, of = _weights
    if not of:
        done, step, of = _step.get("done", 0), 1, _step.get("of", 0)
    return min((done + step * fraction) / of if of else fraction, 1.0)
