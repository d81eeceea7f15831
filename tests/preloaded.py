"""Imported once by the process from which those of tests are forked, so that each of them starts at once."""

import atexit
import gc

from paperlib.compression import command, outputs  # noqa: F401
from paperlib.store.code_digest import code_digest

# Reads the source of all units; what was read stays in memory.
code_digest("paperlib.compression.command")
# Spares each of them a collection of all this.
gc.freeze()
atexit.register(gc.unfreeze)
