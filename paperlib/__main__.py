"""`python -m paperlib` is the command `paperlib`."""

from paperlib.cli.main import app

app(prog_name="paperlib")
