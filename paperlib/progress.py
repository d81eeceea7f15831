"""How far a notebook is: a bar for the reader in JupyterLab, a line of JSON for the batch.

In the batch the variable `PAPERLIB_PROGRESS` names a file. It holds one object,

    {"step": "fine-tune, seed 1", "done": 12, "of": 19, "detail": "epoch 5/12", "fraction": 0.652}

replaced as a whole, so that whoever reads it never sees half of one. Without the variable nothing is written.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

VARIABLE = "PAPERLIB_PROGRESS"
SECONDS_BETWEEN_WRITES = 0.5

_step: dict[str, str | int] = {}
_bars: list[tuple[str, int, int]] = []
_last_write = 0.0


def report(step: str, done: int, of: int) -> None:
    """Say that `step` begins now, after `done` of `of` steps are finished."""
    _step.update(step=step, done=done, of=of)
    _write()


def bar(iterable: Iterable[Item], desc: str) -> Iterable[Item]:
    """Pass `iterable` on and show how much of it is done; `desc` names one item ("epoch", "image").

    Bars may be nested. In the batch they fill in the `detail` of the step last reported.
    """
    if os.environ.get(VARIABLE):
        return _reported(iterable, desc)
    from tqdm.auto import tqdm

    return tqdm(iterable, desc=desc, leave=False)


def read(path: Path) -> dict | None:
    """Return what was last reported to `path`, or None if nothing was."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


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
    finally:
        del _bars[depth - 1 :]


def _write() -> None:
    global _last_write
    target = os.environ.get(VARIABLE)
    if not target:
        return
    detail = " · ".join(f"{desc} {done + 1}/{of}" if of else f"{desc} {done + 1}" for desc, done, of in _bars)
    state = {"step": "", "done": 0, "of": 0, **_step, "detail": detail, "fraction": _fraction()}
    temporary = Path(f"{target}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    os.replace(temporary, target)
    _last_write = time.monotonic()


def _fraction() -> float:
    levels = [(_step.get("done", 0), _step.get("of", 0)), *((done, of) for _, done, of in _bars)]
    fraction = 0.0
    for done, of in reversed(levels):
        fraction = (done + fraction) / of if of else fraction
    return min(fraction, 1.0)
