"""The command `paperlib`."""

from paperlib.cli.main import app

__all__ = ["app"]
