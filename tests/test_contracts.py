"""The package keeps its structure: which module may import which, how many lie at its root, what its face shows."""

import ast
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import paperlib

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent


def modules_at_the_root(package):
    return {module.name for module in pkgutil.iter_modules(package.__path__)}


def run_lint_imports(folder):
    """Run lint-imports on the `paperlib` in `folder`, not on the installed one."""
    return subprocess.run(
        [TOOLS / "lint-imports", "--no-cache", "--config", folder / "pyproject.toml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def package_copy(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "paperlib", tmp_path / "paperlib", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_contracts_hold_and_an_upward_import_breaks_them(package_copy):
    before = run_lint_imports(package_copy)
    assert before.returncode == 0 and "0 broken" in before.stdout, before.stdout + before.stderr

    costs = package_copy / "paperlib" / "costs.py"
    costs.write_text(costs.read_text() + "\nfrom paperlib.training import loop  # noqa\n")
    after = run_lint_imports(package_copy)
    assert after.returncode == 1
    assert "Imports point one way BROKEN" in after.stdout
    assert "paperlib.costs -> paperlib.training.loop" in after.stdout


@pytest.mark.parametrize(
    ("importer", "imported", "contract"),
    [
        ("training/loop.py", "paperlib.pruning.sparsity", "Training knows neither pruning nor distillation"),
        ("pruning/plan.py", "paperlib.distillation.assistants", "Pruning and distillation know nothing of each other"),
        (
            "distillation/assistants.py",
            "paperlib.detectors.yolov4",
            "Training, pruning and distillation name no detector",
        ),
        ("files.py", "paperlib.paths", "Imports point one way"),
        ("data/records.py", "paperlib.data.coco", "No cycles between modules or packages"),
    ],
)
def test_each_contract_notices_what_it_forbids(package_copy, importer, imported, contract):
    path = package_copy / "paperlib" / importer
    path.write_text(f"{path.read_text()}\nimport {imported}  # noqa\n")
    output = run_lint_imports(package_copy).stdout
    assert f"{contract} BROKEN" in output
    source, target = Path(importer).stem, imported.split(".")[-1]
    assert re.search(rf"\.{source} -> \S*\.{target}\b", output)


def test_the_contract_on_detectors_lists_every_implementation():
    """A new file in `detectors/` is forbidden to training, pruning and distillation until someone decides otherwise."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (listed,) = [c["forbidden_modules"] for c in contracts if c["name"].endswith("name no detector")]
    present = {f"paperlib.detectors.{path.stem}" for path in (ROOT / "paperlib" / "detectors").glob("*.py")}
    shared = {f"paperlib.detectors.{name}" for name in ("__init__", "base", "files")}
    assert set(listed) == present - shared


def test_the_root_has_at_most_twelve_modules():
    assert len(list((ROOT / "paperlib").glob("*.py"))) <= 12


def test_no_public_name_is_also_a_module():
    """Importing `paperlib.NAME` would put the module where the public name was."""
    assert not modules_at_the_root(paperlib) & set(paperlib.__all__)


def test_type_checkers_and_the_interpreter_see_the_same_public_names():
    tree = ast.parse(Path(paperlib.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen_by_checkers = {node.module: tuple(alias.name for alias in node.names) for node in imports}
    assert seen_by_checkers == paperlib._MODULES
    names = [name for names in paperlib._MODULES.values() for name in names]
    assert sorted(names) == paperlib.__all__
    assert set(names) <= set(dir(paperlib))


def test_importing_the_face_loads_no_torch():
    program = "import sys, paperlib; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow  # most of it is the start of the checker
def test_a_type_checker_knows_the_public_functions(tmp_path):
    program = tmp_path / "user.py"
    program.write_text("import paperlib as pl\n\nreveal_type(pl.fit)\nreveal_type(pl.Recipe)\npl.fitt\n")
    settings = {"include": ["user.py"], "extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    answer = subprocess.run(
        [TOOLS / "basedpyright", "--outputjson", "--pythonpath", sys.executable, "-p", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    messages = [found["message"] for found in json.loads(answer.stdout)["generalDiagnostics"]]
    fit, recipe, misspelt = messages
    assert "(detector: Module, dataset: ImageSet, recipe: Recipe" in fit and fit.endswith('-> History"')
    assert recipe == 'Type of "pl.Recipe" is "type[Recipe]"'
    assert misspelt.startswith('"fitt" is not a known attribute')
