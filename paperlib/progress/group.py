"""The processes that `torchrun` or `accelerate launch` started together: messages, the first one's work, a common end.

Every process runs the same program. The first one alone writes files; what it has done or found out, and every error,
is told to the others. These messages pass through a group of their own on CPUs (gloo), apart from the gradients. Each
carries what it is about, so that processes that are not at the same place fail and never mix up their answers.
A process that ends in any way closes its connections, by which the others notice it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

COUNT_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
MEETING_VARIABLES = ("RANK", "MASTER_ADDR", "MASTER_PORT")
LONGEST_STEP = timedelta(minutes=30)
"""How long gradients of another process are waited for: one that has stopped without ending is given up then."""
LONGEST_WORK = timedelta(days=1)
"""How long the others wait for what the first process does alone, such as an evaluation, or for a lock."""
SECONDS_TO_SPEAK = 1.0

Result = TypeVar("Result")
Item = TypeVar("Item")


class LostProcessError(RuntimeError):
    """Another process of the group has ended, so that this one cannot go on."""


@dataclass
class _Group:
    rank: int = 0
    count: int = 1
    messages: Any = None  # the process group of the messages; None unless this is one of several processes
    has_left: bool = False
    shares_items: bool = False


_group = _Group()


def count_started() -> int:
    """Return as one of how many processes this one was started by `accelerate launch`, `torchrun` or MPI."""
    values = [int(text) for name in COUNT_VARIABLES if (text := os.environ.get(name, "")).isdigit()]
    return next((value for value in values if value > 0), 1)


def count_processes() -> int:
    """Return how many processes are in this one's group: 1 unless it has joined one."""
    return _group.count


def is_first() -> bool:
    """Return whether this is the process that writes the files."""
    return _group.rank == 0


def refuse_several_processes(what: str, remedy: str) -> None:
    """Check that this process was started alone.

    Raises:
        ValueError: it was started as one of several by `accelerate launch`, `torchrun` or MPI.
    """
    if (count := count_started()) > 1:
        raise ValueError(f"{what} cannot be shared by {count} processes (WORLD_SIZE); {remedy}")


def join_group() -> None:
    """Join the processes that this one was started with, if any; all have to call this at the same place.

    Raises:
        ValueError: the variables by which processes find each other are incomplete.
        LostProcessError: another process has ended.
    """
    if count_started() == 1 or _group.messages is not None or _group.has_left:
        return
    if missing := [name for name in MEETING_VARIABLES if "WORLD_SIZE" in os.environ and name not in os.environ]:
        raise ValueError(f"WORLD_SIZE is {count_started()}, but {missing[0]} is not set; use torchrun, or unset it")
    import torch
    from accelerate import PartialState
    from torch import distributed

    # Without its own variables, as under `torchrun`, Accelerate would let processes without GPUs train one by one.
    with warnings.catch_warnings(action="ignore"), naming_lost_processes():
        PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_STEP)
        _group.messages = distributed.new_group(backend="gloo", timeout=LONGEST_WORK)
    _group.rank, _group.count = distributed.get_rank(), distributed.get_world_size()


def leave_group() -> bool:
    """Wait for all processes, then part; return whether this is the first, which alone should go on."""
    _exchange("the end")
    goes_on = is_first()
    _group.rank, _group.count, _group.messages, _group.has_left = 0, 1, None, _group.count > 1
    return goes_on


def require_same(what: str, parts: Mapping[str, Any]) -> None:
    """Check that the same is about to be done by every process.

    Args:
        what: what is about to be done.
        parts: all that decides its result, by name, as JSON values.

    Raises:
        ValueError: on every process, if one differs from the first; the message names the parts.
    """
    texts = {name: json.dumps(value, sort_keys=True) for name, value in parts.items()}
    mine = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    found = _exchange(what, mine)
    for rank, other in enumerate(found):
        if differing := sorted(name for name in mine | other if found[0].get(name) != other.get(name)):
            raise ValueError(
                f"{what}: process {rank} differs from process 0 in {', '.join(differing)}; "
                "start all with the same code, libraries, data and options"
            )


def let_first(work: Callable[[], Result]) -> Result:
    """Have the first process do `work` while the others wait; all return its result or raise its error."""
    return let_first_lead(lambda _: work(), lambda _: None)


def let_first_lead(work: Callable[[Callable[[Any], None]], Result], together: Callable[[Any], None]) -> Result:
    """Have the first process do a work of which every process does a part.

    Args:
        work: done by the first process alone. It is given a function, and has all processes call `together` by
            calling that function with the argument.
        together: the part of every process.

    Returns:
        What `work` returns, on every process.

    Raises:
        Exception: what `work` raises, on every process.
    """
    if _group.count == 1:
        return work(together)
    return _lead(work, together) if is_first() else _follow(together)


def do_in_turn(work: Callable[[], Result]) -> Result:
    """Do `work` on the first process, and then on all others."""
    if is_first():
        done = []
        let_first(lambda: done.append(work()))
        return done[0]
    let_first(lambda: None)
    return work()


@contextmanager
def sharing_items() -> Iterator[None]:
    """Inside the block `map_items` divides its items among the processes."""
    _group.shares_items = _group.count > 1
    try:
        yield
    finally:
        _group.shares_items = False


def map_items(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return what a function makes of each item: all of them here or, inside `sharing_items`, a part per process."""
    if not _group.shares_items:
        return [function(item) for item in items]
    mine = [function(item) for item in items[_group.rank :: _group.count]]
    parts = _exchange("shared items", mine)
    return [parts[index % _group.count][index // _group.count] for index in range(len(items))]


def may_speak() -> bool:
    """Return whether this process tells why all end: the one that first asks; the others wait until it has spoken."""
    if _group.count == 1:
        # Before processes have joined they meet with what all of them share, such as the command line.
        return _group.has_left or int(os.environ.get("RANK", "0") or 0) == 0
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    key = f"paperlib/spoken/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        shared = TCPStore(address, port, wait_for_workers=False, timeout=timedelta(seconds=2))
        speaks = shared.compare_set(key, "", str(_group.rank)) == str(_group.rank).encode()
    except RuntimeError:
        return True  # the process that keeps these notes has ended
    if not speaks:
        time.sleep(SECONDS_TO_SPEAK)
    return speaks


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Raise `LostProcessError` where a message fails because the process at its other end has ended."""
    try:
        yield
    except RuntimeError as error:
        from torch import distributed

        if count_started() == 1 or not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise LostProcessError(
            f"another of the {count_started()} processes has ended or does not answer; the same command continues "
            "from what is finished"
        ) from error


def _lead(work: Callable[[Callable[[Any], None]], Result], together: Callable[[Any], None]) -> Result:
    is_shared = False

    def call_all(argument: Any) -> None:
        nonlocal is_shared
        _exchange("work", ("call", argument))
        is_shared = True
        together(argument)
        is_shared = False

    try:
        result = work(call_all)
    except BaseException as error:
        # In the middle of a shared part the others do not listen. They notice when this process ends.
        if not is_shared:
            _exchange("work", ("error", _portable(error)))
        raise
    _exchange("work", ("result", result))
    return result


def _follow(together: Callable[[Any], None]) -> Any:
    while True:
        kind, content = _exchange("work")[0]
        if kind == "error":
            raise content
        if kind == "result":
            return content
        together(content)


def _exchange(about: str, content: Any = None) -> list[Any]:
    """Return what each process says, by rank, once all have said it.

    Raises:
        ValueError: they do not speak about the same.
        LostProcessError: one has ended.
    """
    if _group.count == 1:
        return [content]
    from torch import distributed

    found: list[Any] = [None] * _group.count
    with naming_lost_processes():
        distributed.all_gather_object(found, (about, content), group=_group.messages)
    for rank, (other, _) in enumerate(found):
        if other != found[0][0]:
            places = f"process {rank} does another thing ({other}) than process 0 ({found[0][0]})"
            raise ValueError(f"{places}; start all with the same code, libraries, data and options")
    return [said for _, said in found]


def _portable(error: BaseException) -> BaseException:
    """Return an error of the same kind and text that the other processes can raise."""
    for kind in (KeyboardInterrupt, FileNotFoundError, OSError, ValueError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
