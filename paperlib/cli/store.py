"""The commands `paperlib store …`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from paperlib.store.inspect import Removable

app = typer.Typer(
    help="List, check, hand on and remove finished steps, and explain why one is out of date.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Store = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="The store. Default: PAPERLIB_STORE, else .store.")
]


@app.command("list")
def list_(
    store: Store = None,
    kind: Annotated[str | None, typer.Option(help="Only steps of this kind, e.g. train.")] = None,
) -> None:
    """Print the finished steps: kind, size, age, and which results rest on them."""
    # Imported only here, as in every command, so that `paperlib --help` stays fast.
    from paperlib import paths
    from paperlib.store import inspect

    typer.echo(inspect.list_steps(_existing(store), paths.results_root(), kind))


@app.command()
def why(
    name: Annotated[str, typer.Argument(metavar="STEP|NOTEBOOK", help="Begin of a step's name or digest; a notebook.")],
    profile: Annotated[str, typer.Option(help="The scale of the notebook's results.")] = "quick",
    store: Store = None,
) -> None:
    """Say whether a step or a notebook's results are up to date and, if not, what changed since they were made."""
    from paperlib import paths
    from paperlib.store import staleness

    try:
        lines = _explain_notebook(name, profile, store) or staleness.explain_step(_existing(store), name)
    except staleness.UnknownStepError as error:
        notebooks = sorted(path.stem for path in (paths.source_root() / "notebooks").glob("*.ipynb"))
        raise ValueError(f"{error}; notebooks: {', '.join(notebooks) or 'none'}") from None
    typer.echo("\n".join(lines))


@app.command()
def verify(store: Store = None) -> None:
    """Read every finished step and all mapped pictures, and compare them with their digests.

    The exit status is 1 if one is damaged.
    """
    from paperlib.store import inspect

    folder = _existing(store)
    steps = inspect.find_steps(folder)
    checked = inspect.format_count(len(steps), "step")
    if lacking := sum(not step.has_weights for step in steps):
        checked += f", {lacking} of them without weights,"
    if count := len(inspect.find_pictures(folder)):
        checked += f" and {inspect.format_count(count, 'file')} of mapped pictures"
    faults = inspect.find_damage(folder)
    for fault in faults:
        typer.echo(fault)
    if faults:
        typer.echo(f"{folder}: {checked} read, {len(faults)} damaged; what needs one of them makes it again")
        raise typer.Exit(1)
    typer.echo(f"{folder}: {checked} read, none damaged")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="The archive to write.")],
    notebook: Annotated[
        list[str] | None,
        typer.Option(help="Only the steps that this notebook asks for; may be given several times. Default: all."),
    ] = None,
    profile: Annotated[str, typer.Option(help="The scale of the notebooks.")] = "quick",
    weights: Annotated[bool, typer.Option("--weights", help="Also write the weights, which are large.")] = False,
    store: Store = None,
) -> None:
    """Write finished steps into an archive, by default without weights, for results from several machines."""
    from paperlib.experiments.finished import find_current, find_finished
    from paperlib.experiments.parameters import load_profile, profile_path
    from paperlib.store import archive, inspect

    folder = _existing(store)
    names = [name.removesuffix(".ipynb") for name in notebook or ()]
    settings = {name: load_profile(name, profile_path(name, profile)) for name in names}
    steps = find_finished(folder, settings) if names else find_current(folder)
    if not steps:
        raise ValueError(f"{folder}: no finished step of {', '.join(names) or 'the present code'} to export")
    archive.write_archive(file, folder, steps, weights=weights)
    size = inspect.measure_megabytes(file)
    kept = "with" if weights else "without"
    typer.echo(f"{file}: {inspect.format_count(len(steps), 'step')} {kept} weights, {size:.2f} MB")


@app.command("import")
def import_(
    archives: Annotated[list[Path], typer.Argument(metavar="FILE.zip…", help="Archives that `export` has written.")],
    store: Store = None,
) -> None:
    """Check archives of finished steps and place those that are not here; import only what you trust."""
    from paperlib import paths

    if missing := [file for file in archives if not file.is_file()]:
        raise FileNotFoundError(f"{missing[0]}: no such archive")
    folder = (store or paths.store_root()).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for file in archives:
        _import_archive(file, folder)


def _import_archive(file: Path, folder: Path) -> None:
    """Check an archive, place its steps in the store, and say what was done."""
    from tempfile import TemporaryDirectory

    from paperlib.data.unpack import unpack_archive
    from paperlib.store import archive, inspect
    from paperlib.training.recipe import fastest_precision

    # On the same file system, so that a step can be moved to its place in one go.
    with TemporaryDirectory(dir=folder, prefix=inspect.UNPACKED) as unpacked:
        most = archive.MOST_EXPANSION * file.stat().st_size
        unpack_archive(file, Path(unpacked), {"*": "{parent}"}, most)
        omitted = archive.check_unpacked(Path(unpacked), file.name)
        recipes = [step.identity["settings"].get("recipe", {}) for step in inspect.find_steps(Path(unpacked))]
        done = archive.place_steps(Path(unpacked), omitted, folder)
    used, here = {recipe["precision"] for recipe in recipes if recipe}, fastest_precision()
    if others := sorted(used - {here}):
        typer.echo(
            f"Trained with precision {', '.join(others)}: here `precision: auto` means {here}, which is another "
            "step; `seed_precisions` in the profile says which seeds have another precision"
        )
    parts = [f"{inspect.format_count(len(done.placed), 'step')} imported"]
    parts += [f"{len(done.completed)} completed with weights"] if done.completed else []
    parts += [f"{len(done.there)} already here"] if done.there else []
    parts += [f"{len(done.busy)} left alone, because running processes are making them"] if done.busy else []
    typer.echo(f"{file.name}: {', '.join(parts)}; {sum(map(bool, omitted.values()))} of all without weights")


@app.command()
def prune(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STEP]…", help="Names of steps to remove with all that rest on them, used or not."),
    ] = None,
    store: Store = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove the steps that no result rests on, mapped pictures, and what processes that have ended left behind."""
    from paperlib import paths
    from paperlib.store import inspect

    folder = _existing(store)
    if names:
        chosen = inspect.find_resting(folder, names)
        typer.echo(f"{folder}: {', '.join(step.folder.name for step in chosen.steps)}, {chosen.megabytes:.2f} MB")
        _remove(chosen, yes)
        return
    found = inspect.find_removable(folder, paths.results_root())
    if found.in_use:
        steps = inspect.format_count(found.in_use, "step")
        typer.echo(f"Kept: {steps} in the making by running processes, and the steps that these start from.")
    if not found.steps and not found.leftovers and not found.pictures:
        typer.echo(f"Nothing to remove: every step in {folder} belongs to a result.")
        return
    leftovers = f"{inspect.format_count(len(found.leftovers), 'leftover')} of ended processes"
    if found.pictures:
        pictures = inspect.format_count(len(found.pictures), "file")
        leftovers += f", {pictures} of mapped pictures (written again from the data when needed)"
    steps = f"{inspect.format_count(len(found.steps), 'step')} that no result rests on"
    typer.echo(f"{folder}: {steps} and {leftovers}, {found.megabytes:.2f} MB")
    _remove(found, yes)


def _remove(found: "Removable", yes: bool) -> None:
    """Remove what was found, if the answer is yes, and say how many steps were removed."""
    from paperlib.store import inspect

    if not yes:
        # In a script nobody would answer, and the script would hang.
        if not sys.stdin.isatty():
            raise ValueError("store prune asks before it removes anything; without a terminal, say --yes")
        typer.confirm("Remove them?", abort=True)
    typer.echo(f"Removed {inspect.format_count(inspect.remove_found(found), 'step')}.")


def _existing(store: Path | None) -> Path:
    from paperlib import paths

    folder = (store or paths.store_root()).absolute()
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no store yet")
    return folder


def _explain_notebook(name: str, profile: str, store: Path | None) -> list[str]:
    """Return what `why` prints for a notebook; nothing if there is no notebook of this name."""
    from paperlib import files, paths
    from paperlib.experiments.parameters import load_profile
    from paperlib.store import staleness
    from paperlib.store.code_digest import notebook_code

    root = paths.source_root() / "notebooks"
    notebook = root / f"{name.removesuffix('.ipynb')}.ipynb"
    if not notebook.is_file():
        return []
    results = paths.results_root() / profile
    if not (results / notebook.stem / "provenance.json").is_file():
        return [f"{profile}/{notebook.stem} has no results yet."]
    certificate = files.read_json(results / notebook.stem / "provenance.json")
    settings = load_profile(notebook.stem, root / "profiles" / profile / f"{notebook.stem}.yaml").model_dump()
    folder = (store or paths.store_root()).absolute()
    changes = staleness.explain_notebook(folder, certificate, settings, notebook_code(notebook))
    unread = []
    for source, digests in certificate["data_digest"].items():
        if isinstance(digests, str):  # of the scoreboard, which reads the results of the other notebooks
            changes += _changed_results(source, results / source / "metrics.json", digests)
        elif source == "toy-aerial":
            changes += _changed_splits(source, digests)
        else:
            unread.append(f"Not compared: the data of {source}, because to read them takes long.")
    verdict = "out of date:" if changes else "up to date."
    headline = f"{profile}/{notebook.stem}, made {certificate['finished']}, is {verdict}"
    return [headline, *(f"  {change}" for change in changes), *unread]


def _changed_results(name: str, metrics: Path, digest: str) -> list[str]:
    from paperlib.files import file_digest

    if not metrics.is_file():
        return [f"results {name}: gone"]
    return [f"results {name}: changed"] if file_digest(metrics) != digest else []


def _changed_splits(dataset: str, digests: dict[str, str]) -> list[str]:
    from paperlib.data import load_dataset
    from paperlib.data.own import is_own

    # Of one's own data every split was read with the classes of the training data.
    classes = load_dataset(dataset, "train").classes if is_own(dataset) else None
    changed = [split for split, old in digests.items() if load_dataset(dataset, split, classes=classes).digest != old]
    return [f"data {dataset}, {split}: changed" for split in changed]
