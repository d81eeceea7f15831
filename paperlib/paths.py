"""The project's folders. Each has a default inside the repository and a variable that moves it.

=====================  ==================  ===========================================================
function               variable            default
=====================  ==================  ===========================================================
`repository_root()`    `PAPERLIB_ROOT`     the folder above the package if it holds `notebooks/`,
                                           else the current folder
`data_root()`          `PAPERLIB_DATA`     `<root>/data`: the data sets, one folder each
`weights_root()`       `PAPERLIB_WEIGHTS`  `weights` in the data folder, else `weights` beside it
`results_root()`       `PAPERLIB_RESULTS`  `<root>/results`: metrics, tables, figures, provenance
`store_root()`         `PAPERLIB_STORE`    `<root>/.store`: finished training steps
=====================  ==================  ===========================================================

An empty variable counts as not set. No function here creates a folder or requires that it exists.
"""

import os
from pathlib import Path


def repository_root() -> Path:
    """Return the folder that holds `notebooks/`, `workflow/` and `results/`."""
    above = Path(__file__).resolve().parent.parent
    # An installed package lies in site-packages, where there are no notebooks.
    default = above if (above / "notebooks").is_dir() else Path.cwd()
    return _moved_folder("PAPERLIB_ROOT") or default


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


def as_environment() -> dict[str, str]:
    """Return all five variables with absolute paths, for a child process that may start in another folder."""
    folders = {
        "PAPERLIB_ROOT": repository_root(),
        "PAPERLIB_DATA": data_root(),
        "PAPERLIB_WEIGHTS": weights_root(),
        "PAPERLIB_RESULTS": results_root(),
        "PAPERLIB_STORE": store_root(),
    }
    return {variable: str(folder) for variable, folder in folders.items()}


def _moved_folder(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser().absolute() if value else None
