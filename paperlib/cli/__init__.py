"""The command `paperlib`."""
