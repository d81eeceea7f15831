"""The commands `paperlib data …`."""

from typing import Annotated

import typer

app = typer.Typer(
    help="List, fetch and check the data sets of Section 4.1.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name that `paperlib data list` shows.")]


@app.command("list")
def list_() -> None:
    """Print what is known: size, licence, and whether it is here."""
    from paperlib.data import registry
    from paperlib.data.check import describe_registry

    typer.echo(describe_registry(registry.load_registry()))


@app.command()
def fetch(name: Name) -> None:
    """Download a data set, check it and put it in its place. Interrupted, the same command continues."""
    from paperlib.data import registry
    from paperlib.data.fetch import fetch_entry

    entry = registry.find_entry(name)
    fetch_entry(name, entry, registry.entry_folder(entry))
    typer.echo(f"{entry.title} is in {registry.entry_folder(entry)}\nlicence: {entry.licence}\ncite: {entry.citation}")
    typer.echo(f"`paperlib data check {name}` reads all of it")


@app.command()
def check(name: Name) -> None:
    """Read every image and every box, and compare the numbers with the published ones. Faults: exit status 2."""
    from paperlib.data import registry
    from paperlib.data.check import check_entry

    entry = registry.find_entry(name)
    report = check_entry(name, entry, registry.entry_folder(entry))
    typer.echo(report.as_text())
    if report.faults:
        raise typer.Exit(2)
