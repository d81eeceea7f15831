"""`python -m paperlib` is the command `paperlib`."""

from paperlib.cli import app

app(prog_name="paperlib")
