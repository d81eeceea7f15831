"""Randomness as a function of numbers, so that interrupted or repeated work draws the same numbers again."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(*numbers: int) -> int:
    """Return one seed that depends on every one of `numbers`."""
    # 56 bits, so that the seed is positive as a signed integer of 64 bits.
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


@contextlib.contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Start torch's global generators from `seed` inside the block, and restore their states afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
