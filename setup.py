"""Add to a wheel what `paperlib` reads beside its modules; in a checkout it lies in the folders of the repository.

Everything else about the distribution stands in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ASSETS = (
    "notebooks/*.ipynb",
    "notebooks/*.yaml",
    "notebooks/profiles/*/*.yaml",
    "workflow/Snakefile",
    "workflow/profiles/*/*.yaml",
    "data/registry.yaml",
    "data/splits/*.json",
    "data/folds/*.json",
    "data/overlap/*.json",
    "results/reported/*.csv",
    "models/*.onnx",
    "models/*.safetensors",
    "models/*.md",
)
"""What `paperlib.paths.source_root` must hold. MANIFEST.in lists the same files for a source distribution."""


class BuildWithAssets(build_py):
    """Copy the modules, and the assets into the folder `paperlib/assets`."""

    def run(self) -> None:
        """Build; an editable installation reads the assets of the checkout, so nothing is copied."""
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "paperlib" / "assets"
        # A file that an earlier build copied may no longer exist.
        shutil.rmtree(folder, ignore_errors=True)
        for path in (path for pattern in ASSETS for path in sorted(Path().glob(pattern))):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithAssets})
