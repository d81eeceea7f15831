"""Progress that long work reports: a bar for the reader in JupyterLab, and a small file for the display of a batch.

The variable `PAPERLIB_PROGRESS` names the file. It holds one JSON object, the fields of `Report`, and is always
replaced as a whole, so that no reader sees half of one. A process that `multiprocessing` started writes beside it, to
`<file>.<pid>`, until it withdraws. `PAPERLIB_PROGRESS_LOG` names a text file that gets one line per step and epoch.
Without the variables nothing is written.

Work is counted in epochs. What an earlier run has finished counts as `found`: it takes no time, so it must not enter
the pace from which `paperlib.progress.display` estimates the time left.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from paperlib.progress import group

Item = TypeVar("Item")

VARIABLE = "PAPERLIB_PROGRESS"
LOG_VARIABLE = "PAPERLIB_PROGRESS_LOG"
SECONDS_BETWEEN_WRITES = 0.5
SECONDS_BETWEEN_PARTS = 2.0


@dataclass(frozen=True)
class Report:
    """How far a process is.

    Attributes:
        step: what it does now ("fine-tune, seed 1").
        detail: how far it is with that ("epoch 5/12, 40 % · loss 2.31 · mAP 41.2 %").
        done, total: finished and expected work in epochs; `total` is 0 if it is not known.
        found: the part of `done` that an earlier run had finished.
        seconds: expected duration of what follows the epochs, such as export and timing.
    """

    step: str = ""
    detail: str = ""
    done: float = 0.0
    found: float = 0.0
    total: float = 0.0
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """Return the step and its detail in one line."""
        return " · ".join(filter(None, [self.step, self.detail]))


@dataclass
class _Loop:
    """A loop under way: `done` of `count` items are finished, and `part` of the next, 0 to 1."""

    label: str
    count: int
    done: int
    part: float = 0.0

    def describe(self) -> str:
        part = f", {100 * self.part:.0f} %" if 0 < self.part < 1 else ""
        return f"{self.label} {min(self.done + 1, self.count)}/{self.count}{part}"


@dataclass
class _Work:
    """All work of this process, in epochs."""

    done: float = 0.0  # in finished steps
    found: float = 0.0
    job_end: float = 0.0  # `done` when the present job ends
    later: float = 0.0  # the jobs after it
    seconds: float = 0.0  # the steps that are counted in seconds and have not begun
    step: str = ""
    step_epochs: float = 0.0
    step_seconds: float = 0.0
    loops: list[_Loop] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


_work = _Work()
_last_write = float("-inf")


def plan_work(epochs: float, seconds: float = 0.0) -> None:
    """Begin work of so many epochs in all, followed by steps that take so many seconds."""
    global _work
    _work = _Work(job_end=epochs, seconds=seconds)


def expect_work(epochs: float, later: float | None = None) -> None:
    """Correct how many epochs the present job still needs, and the jobs that come `later`."""
    _work.job_end = _work.done + epochs
    if later is not None:
        _work.later = later


def begin_step(step: str, *, epochs: float = 0.0, seconds: float = 0.0) -> None:
    """Begin a step that needs so many epochs, or that takes so many of the planned seconds."""
    _work.seconds = max(_work.seconds - _work.step_seconds, 0.0)
    _work.step = step
    _work.step_epochs = epochs
    _work.step_seconds = seconds
    _work.numbers = {}
    _write()
    _append_to_log(step)


def end_step(epochs: float, found: float | None = None) -> None:
    """Count a step of so many epochs as done, `found` of them by an earlier run: all, if the step was never begun."""
    if found is None:
        found = 0.0 if _work.step_epochs else epochs
    # Work beyond the plan, such as reading again what the jobs have stored, is not counted.
    counted = min(epochs, _work.job_end + _work.later - _work.done)
    _work.done += counted
    _work.found += min(found, counted)
    _work.step_epochs = 0.0
    _write()


def track_items(items: Collection[Item], label: str, *, first: int = 0) -> Iterable[Item]:
    """Yield `items` and show how many are done.

    Args:
        items: what is worked on, one after the other. Such loops may be nested.
        label: the name of one item ("epoch", "image").
        first: how many items before these an earlier run has finished.
    """
    if not group.is_first():
        return items  # the first of several processes shows the progress of all
    if os.environ.get(VARIABLE):
        return _report_items(items, label, first)
    from tqdm.auto import tqdm

    title = f"{_work.step}: {label}" if _work.step else label
    return tqdm(items, title, first + len(items), initial=first, leave=False)


def is_due() -> bool:
    """Return whether it is time for `report_part`. Reading a loss off an accelerator has its price: ask this first."""
    return bool(_target()) and time.monotonic() - _last_write >= SECONDS_BETWEEN_PARTS


def report_part(part: float, **numbers: float) -> None:
    """Report that `part` (0 to 1) of the current item is done, with the latest `loss`, `map50` or `top1` (0 to 1)."""
    _work.numbers.update(numbers)
    if _work.loops:
        _work.loops[-1].part = part
    _write()


def report_epoch(**numbers: float) -> None:
    """Report that the current item is done, and add it to the log with its numbers, as for `report_part`."""
    report_part(1.0, **numbers)
    _append_to_log(f"{_work.step} · {_describe_detail(numbers)}")


def withdraw_report() -> float:
    """Remove the report of this worker and return how many epochs it found finished."""
    if target := _target():
        target.unlink(missing_ok=True)
    return _work.found


@contextmanager
def report_file(log: Path | None = None) -> Iterator[tuple[Path, bool]]:
    """Yield the file that progress goes to, and whether the batch shows it, so that the caller need not.

    Unless the batch has chosen a log, `log` is the one.
    """
    if target := os.environ.get(VARIABLE):
        yield Path(target), True
        return
    with tempfile.TemporaryDirectory(prefix="paperlib-") as folder:
        target = Path(folder) / "progress.json"
        os.environ[VARIABLE] = str(target)
        if log:
            os.environ[LOG_VARIABLE] = str(log.absolute())
        try:
            yield target, False
        finally:
            del os.environ[VARIABLE]
            os.environ.pop(LOG_VARIABLE, None)


def read_report(path: Path) -> Report | None:
    """Return what was last reported to `path`, together with what its workers do; None if nothing was."""
    report = _load_report(path)
    if report is None:
        return None
    for file in sorted(path.parent.glob(f"{path.name}.*[0-9]")):
        if worker := _load_report(file):
            detail = ", ".join(filter(None, [report.detail, worker.text]))
            done = report.done + min(worker.done, worker.total)
            report = replace(report, detail=detail, done=done, found=report.found + min(worker.found, worker.total))
    return report


def _load_report(path: Path) -> Report | None:
    try:
        return Report(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:  # nothing is reported yet, or a worker has just withdrawn its report
        return None


def _target() -> Path | None:
    target = os.environ.get(VARIABLE)
    if target and multiprocessing.parent_process():
        target = f"{target}.{os.getpid()}"
    return Path(target) if target else None


def _report_items(items: Collection[Item], label: str, first: int) -> Iterator[Item]:
    loop = _Loop(label, first + len(items), first)
    if first and not _work.loops:
        _work.found += _work.step_epochs * first / loop.count
    depth = len(_work.loops)
    _work.loops.append(loop)
    try:
        for item in items:
            if time.monotonic() - _last_write >= SECONDS_BETWEEN_WRITES:
                _write()
            yield item
            loop.done += 1
            loop.part = 0.0
        # What is over stays in view until something else is reported, so that no work seems undone.
        _write()
    finally:
        del _work.loops[depth:]


def _write() -> None:
    global _last_write
    if target := _target():
        part = 0.0
        for loop in reversed(_work.loops):  # an inner loop is a part of one item of the outer loop
            part = min((loop.done + max(loop.part, part)) / max(loop.count, 1), 1.0)
        report = Report(
            step=_work.step,
            detail=_describe_detail(_work.numbers),
            done=_work.done + _work.step_epochs * part,
            found=_work.found,
            total=_work.job_end + _work.later,
            seconds=_work.seconds,
        )
        temporary = Path(f"{target}.tmp")
        temporary.write_text(json.dumps(asdict(report)), encoding="utf-8")
        os.replace(temporary, target)
        _last_write = time.monotonic()


def _describe_detail(numbers: dict[str, float]) -> str:
    parts = [loop.describe() for loop in _work.loops]
    if "loss" in numbers:
        parts.append(f"loss {numbers['loss']:.3g}")
    for name, label in (("map50", "mAP"), ("top1", "top-1")):
        if name in numbers:
            parts.append(f"{label} {100 * numbers[name]:.1f} %")
    return " · ".join(parts)


def _append_to_log(text: str) -> None:
    log = os.environ.get(LOG_VARIABLE)
    # The folder is missing as long as nothing has been finished: input that is refused leaves no trace.
    if log and Path(log).parent.is_dir():
        # Workers share the file: one short line, appended by one call, is not torn apart.
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
