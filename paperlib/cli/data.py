"""The commands `paperlib data …`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List, fetch and check data sets.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name from `paperlib data list`.")]


@app.command("list")
def list_datasets() -> None:
    """Print every known data set: size, licence, and whether it is on this machine."""
    from paperlib.data import registry
    from paperlib.data.check import describe_registry

    typer.echo(describe_registry(registry.load_registry()))


@app.command()
def fetch(name: Name) -> None:
    """Download a data set, check it and put it into the data folder.

    After an interruption the same command continues.
    """
    from paperlib.data import registry
    from paperlib.data.fetch import fetch_entry

    entry = registry.find_entry(name)
    fetch_entry(name, entry, registry.entry_folder(entry))
    typer.echo(f"{entry.title} is in {registry.entry_folder(entry)}\nlicence: {entry.licence}\ncite: {entry.citation}")
    typer.echo(f"`paperlib data check {name}` reads every image and box of it")


@app.command()
def check(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A name from `paperlib data list`, a COCO or YOLO file, scenes:FOLDER."),
    ],
    images: Annotated[Path | None, typer.Option(help="Folder of your own images. Default: that of the file.")] = None,
    bad_boxes: Annotated[str, typer.Option(help="As in `paperlib compress`: error, clip or skip.")] = "error",
    classes: Annotated[str | None, typer.Option(help="As in `paperlib compress`.")] = None,
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="As in `paperlib compress`.")] = False,
) -> None:
    """Read every image and every box, and compare the counts with the published ones. Exit status 2 tells of faults."""
    from paperlib.data import own, registry
    from paperlib.data.annotated import make_options
    from paperlib.data.check import check_entry
    from paperlib.data.check_own import check_own
    from paperlib.data.check_scenes import check_own_scenes
    from paperlib.data.scene_folders import SCENES_PREFIX

    options = make_options(bad_boxes, classes, allow_outside=allow_outside)
    if name.startswith(SCENES_PREFIX):
        report = check_own_scenes(name)
    elif own.is_own(name) or Path(name).is_file():
        report = check_own(own.name_own(name), images, options)
    else:
        entry = registry.find_entry(name)
        report = check_entry(name, entry, registry.entry_folder(entry))
    typer.echo(report.as_text())
    if report.faults:
        raise typer.Exit(2)
