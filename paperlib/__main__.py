"""Run the command `paperlib` as `python -m paperlib`."""

from paperlib.cli.main import app

app(prog_name="paperlib")
