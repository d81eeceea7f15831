"""The commands `paperlib store …`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="List and check finished steps, explain why one is out of date, remove what no result needs.",
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
    checked = inspect.format_count(len(inspect.find_steps(folder)), "step")
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
def prune(
    store: Store = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove the steps that no result rests on, mapped pictures, and what processes that have ended left behind."""
    from paperlib import paths
    from paperlib.store import inspect

    folder = _existing(store)
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
