"""The project's folders: where it reads its notebooks and tables, and where it writes. Variables move them.

=====================  ===================  ==========================================================
function               variable             default
=====================  ===================  ==========================================================
`source_root()`        `PAPERLIB_ROOT`      the repository, or its copy inside an installed package: notebooks,
                                            profiles, claims, registry, splits, reported tables, workflow
`repository_root()`    `PAPERLIB_ROOT`      the repository; for an installed package the current folder
`data_root()`          `PAPERLIB_DATA`      `<root>/data`: the data sets, one folder each
`weights_root()`       `PAPERLIB_WEIGHTS`   `weights` in the data folder, else `weights` beside it
`results_root()`       `PAPERLIB_RESULTS`   `<root>/results`: metrics, tables, figures, provenance
`store_root()`         `PAPERLIB_STORE`     `<root>/.store`: finished training steps
`pictures_root()`      `PAPERLIB_PICTURES`  `<store>/pictures`: squares of data sets that are too large for memory
`models_root()`        `PAPERLIB_MODELS`    `<root>/models`: trained detectors that are used by name
=====================  ===================  ==========================================================

An empty variable counts as not set. No function here creates a folder or requires that it exists.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def source_root() -> Path:
    """Return the folder that holds `notebooks/`, `workflow/`, `data/registry.yaml` and `results/reported/`."""
    return _moved_folder("PAPERLIB_ROOT") or _checkout() or PACKAGE / "assets"


def repository_root() -> Path:
    """Return the folder in which data, results and finished steps are by default."""
    return _moved_folder("PAPERLIB_ROOT") or _checkout() or Path.cwd()


def data_root() -> Path:
    """Return the folder that holds the data sets."""
    return _moved_folder("PAPERLIB_DATA") or repository_root() / "data"


def weights_root() -> Path:
    """Return the folder that holds pretrained weights (`yolov4-tiny.weights`, …)."""
    inside = data_root() / "weights"
    default = inside if inside.is_dir() else data_root().parent / "weights"
    return _moved_folder("PAPERLIB_WEIGHTS") or default


def results_root() -> Path:
    """Return the folder of results: `<results>/<profile>/<notebook>/`."""
    return _moved_folder("PAPERLIB_RESULTS") or repository_root() / "results"


def store_root() -> Path:
    """Return the folder of finished steps."""
    return _moved_folder("PAPERLIB_STORE") or repository_root() / ".store"


def pictures_root() -> Path:
    """Return the folder of data sets that are too large for memory (`paperlib.data.squares`)."""
    return _moved_folder("PAPERLIB_PICTURES") or store_root() / "pictures"


def models_root() -> Path:
    """Return the folder of trained detectors that are used by name, one file each."""
    """Return the folder of trained detectors that are used by name, one file each."""
    return _moved_folder("PAPERLIB_MODELS") or source_root() / "models"


def as_environment() -> dict[str, str]:
    """Return the variables with absolute paths, for a child process that may start in another folder."""
    folders = {
        "PAPERLIB_DATA": data_root(),
        "PAPERLIB_WEIGHTS": weights_root(),
        "PAPERLIB_RESULTS": results_root(),
        "PAPERLIB_STORE": store_root(),
    }
    for variable in ("PAPERLIB_ROOT", "PAPERLIB_PICTURES"):
        if moved := _moved_folder(variable):
            folders[variable] = moved
    return {variable: str(folder) for variable, folder in folders.items()}


def _checkout() -> Path | None:
    """Return the repository that this package lies in; None if it was installed, as into `site-packages`."""
    return PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else None


def _moved_folder(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser().absolute() if value else None
