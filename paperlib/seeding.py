"""Randomness as a function of numbers, so that what is interrupted or repeated draws the same again."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


@contextlib.contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Inside, torch's global generators start from `seed`; afterwards they are as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
