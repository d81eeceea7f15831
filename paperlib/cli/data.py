"""The commands `paperlib data …`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from paperlib import limits

app = typer.Typer(help="List, fetch and check data sets.", no_args_is_help=True, rich_markup_mode=None)

Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="A COCO file, a YOLO data.yaml, or a folder in any known format."),
]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to make.")]
FormatName = Literal["coco", "yolo", "voc", "dota"]
ImageFiles = Annotated[
    Literal["copy", "link", "keep"],
    typer.Option(help="copy them; link: a second name of the same file; keep: leave them where they are (COCO only)."),
]
Images = Annotated[Path | None, typer.Option(help="Folder of your own images. Default: as the annotations imply.")]
BadBoxes = Annotated[str, typer.Option(help="As in `paperlib compress`: error, clip or skip.")]
Classes = Annotated[str | None, typer.Option(help="As in `paperlib compress`.")]
AllowOutside = Annotated[bool, typer.Option("--allow-outside", help="As in `paperlib compress`.")]

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
        typer.Argument(
            metavar="NAME", help="A name from `paperlib data list`, your own data as in `compress`, or scenes:FOLDER."
        ),
    ],
    images: Images = None,
    bad_boxes: BadBoxes = "error",
    classes: Classes = None,
    allow_outside: AllowOutside = False,
    image_size: Annotated[
        int, typer.Option(min=32, max=limits.LARGEST_SIDE, help="Side in pixels at which boxes of own data are judged.")
    ] = 416,
) -> None:
    """Read every image and box; compare published counts, or describe your own data. Exit status 2 tells of faults."""
    from paperlib.data import own, registry
    from paperlib.data.annotated import make_options
    from paperlib.data.check import check_entry
    from paperlib.data.check_own import check_own
    from paperlib.data.check_scenes import check_own_scenes
    from paperlib.data.scene_folders import SCENES_PREFIX

    options = make_options(bad_boxes, classes, allow_outside=allow_outside)
    if name.startswith(SCENES_PREFIX):
        report = check_own_scenes(name)
    elif name not in registry.load_registry() and own.is_own_place(name):
        report = check_own(own.name_own(name), images, options, image_size)
    else:
        entry = registry.find_entry(name)
        report = check_entry(name, entry, registry.entry_folder(entry))
    typer.echo(report.as_text())
    if report.faults:
        raise typer.Exit(2)


@app.command()
def convert(
    source: Source,
    target: Target,
    to: Annotated[FormatName, typer.Option(help="The format to write.")],
    image_files: ImageFiles = "copy",
    images: Images = None,
    bad_boxes: BadBoxes = "error",
    classes: Classes = None,
    allow_outside: AllowOutside = False,
) -> None:
    """Write your own data, all splits of them, in another format into a new folder."""
    from paperlib.data import own
    from paperlib.data.annotated import make_options
    from paperlib.data.convert import convert_data

    options = make_options(bad_boxes, classes, allow_outside=allow_outside)
    _show(*convert_data(own.name_own(source), target, to, image_files, images, options))


@app.command()
def split(
    source: Source,
    target: Target,
    fractions: Annotated[
        tuple[float, float, float], typer.Option(metavar="TRAIN VAL TEST", help="They add up to 1.")
    ] = (0.7, 0.15, 0.15),
    seed: Annotated[int, typer.Option(min=0, max=limits.LARGEST_SEED, help="Of the random distribution.")] = 0,
    to: Annotated[FormatName | None, typer.Option(help="The format to write. Default: that of the source.")] = None,
    image_files: ImageFiles = "copy",
    images: Images = None,
    bad_boxes: BadBoxes = "error",
    classes: Classes = None,
    allow_outside: AllowOutside = False,
) -> None:
    """Distribute your own data over train, val and test: stratified by class, equal pictures together."""
    from paperlib.data import own
    from paperlib.data.annotated import make_options
    from paperlib.data.convert import split_data

    options = make_options(bad_boxes, classes, allow_outside=allow_outside)
    name = own.name_own(source)
    written = to or name.partition(":")[0]
    _show(*split_data(name, target, written, image_files, images, options, fractions, seed))


def _show(text: str, remarks: list[str]) -> None:
    for remark in remarks:
        typer.echo(f"paperlib: {remark}", err=True)
    typer.echo(text)
