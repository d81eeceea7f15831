"""What makes a step stale: the content of code that can change its numbers, and nothing else."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import paperlib
from paperlib.store.code_digest import code_digest, code_of, notebook_digest
from paperlib.store.store import Step, Store

SOURCE = {
    "__init__.py": "_FACE = {'mini.training.loop': ('train', 'Recipe'), 'mini.drawing': ('plot',)}\n",
    "training/__init__.py": '"""Training."""\n',
    "training/loop.py": (
        '"""Train."""\n'
        "from typing import TYPE_CHECKING\n"
        "from mini.rates import RATE\n"
        "from mini.progress import report\n\n"
        "if TYPE_CHECKING:\n"
        "    from mini.drawing import plot\n\n\n"
        "def train(x: float) -> float:\n"
        '    """Return x, trained."""\n'
        "    from mini.layers import Conv  # late\n"
        "    report(x)\n"
        "    return Conv().run(x) * RATE\n"
    ),
    "training/files.py": "def _read(x):\n    return x + 1\n",
    "training/other.py": "def _read(x):\n    return x + 2\n",
    "rates.py": "import math as m\n\nRATE = m.sqrt(0.1)\n",
    "layers/__init__.py": "from .conv import Conv\n\n__all__ = ['Conv']\n",
    "layers/conv.py": (
        "class Conv:\n"
        '    """A convolution."""\n\n'
        "    size: int = 3\n"
        '    """Its side."""\n\n'
        "    def run(self, x: float) -> float:\n"
        "        return x * self.size  # in pixels\n"
    ),
    "progress/__init__.py": "def report(x): ...\n",
    "drawing.py": "def plot() -> None: ...\n",
    "bench.py": (
        "from mini.drawing import plot\n"
        "from mini.training import loop as training\n\n"
        "POWER = 2\n\n\n"
        "class Bench:\n"
        "    def train(self, x: plot):\n"
        "        def make():\n"
        "            return self.power(training.train(x))\n\n"
        "        return make\n\n"
        "    def power(self, x):\n"
        "        return x**POWER\n\n"
        "    def draw(self):\n"
        "        return plot()\n"
    ),
}


@pytest.fixture
def mini(tmp_path: Path) -> Iterator[Path]:
    """A small package: bench ─▶ training ─▶ rates, layers."""
    for name, text in SOURCE.items():
        path = tmp_path / "mini" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (0, 0))
    yield tmp_path / "mini"
    for name in [name for name in sys.modules if name.split(".")[0] == "mini"]:
        del sys.modules[name]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    later = path.stat().st_mtime_ns + 10**9  # edits of one tick of the file system's clock must differ, too
    os.utime(path, ns=(later, later))


def makes(store: Store, mini: Path) -> int:
    """Ask the store for the step that runs Bench.train; return how often that step was made so far."""
    step = Step("train", {}, parents=(), data="", code=code_digest("mini.bench:Bench.train", root=mini))
    store.get_step(step, lambda folder: None)
    return len(list(store.root.glob("train-*/step.json")))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("training/loop.py", "* RATE", "+ RATE"),
        ("training/loop.py", "    from mini.layers", "    x += 1\n    from mini.layers"),
        ("training/other.py", "2", "3"),
        ("rates.py", "0.1", "0.2"),
        ("rates.py", "import math as m", "import cmath as m"),
        ("layers/__init__.py", "from .conv", "X = 1\nfrom .conv"),
        ("layers/conv.py", "int = 3", "int = 5"),
        ("layers/conv.py", "x * self.size", "x / self.size"),
        ("bench.py", "POWER = 2", "POWER = 3"),
        ("bench.py", "self.power(training.train(x))", "training.train(x)"),
    ],
)
def test_a_change_of_code_that_can_change_a_number_never_reuses_an_old_artefact(
    mini: Path, tmp_path: Path, name: str, old: str, new: str
) -> None:
    store = Store(tmp_path / "store")
    assert makes(store, mini) == 1
    edit(mini / name, old, new)
    assert makes(store, mini) == 2
    edit(mini / name, new, old)
    assert makes(store, mini) == 2


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("training/loop.py", '"""Train."""\n', ""),
        ("training/loop.py", "Return x, trained.", "Return x after one\n    epoch."),
        ("training/loop.py", "# late", "# only when called"),
        ("training/loop.py", "return Conv().run(x) * RATE", "return (\n        Conv().run(x)\n        * RATE\n    )"),
        ("training/loop.py", "from mini.layers import", "from mini.layers.conv import"),
        ("layers/conv.py", '"""Its side."""', '"""Its side, in cells."""'),
        ("layers/__init__.py", "['Conv']", '["Conv"]'),
        ("progress/__init__.py", "...", "print(x)"),
        ("drawing.py", "...", "print()"),
        ("bench.py", "return plot()", "return None"),
    ],
)
def test_edits_of_texts_layout_paths_or_unrelated_code_keep_the_artefact(
    mini: Path, name: str, old: str, new: str
) -> None:
    before = code_digest("mini.bench:Bench.train", root=mini)
    edit(mini / name, old, new)
    assert code_digest("mini.bench:Bench.train", root=mini) == before


@pytest.mark.parametrize(
    "statement",
    [
        "import mini.training.other",
        "import mini.training as t",
        "import mini as m\nm.train(1)",
        "from mini.training import *",
        "from mini import training",
        "from .training import other",
        "from . import training",
        "def f():\n    import mini.training.other",
        "import importlib\nimportlib.import_module('mini.training.other')",
        "__import__('mini.training.other')",
    ],
)
def test_every_form_of_import_is_followed(mini: Path, statement: str) -> None:
    (mini / "user.py").write_text(statement + "\n")
    before = code_digest("mini.user", root=mini)
    edit(mini / "training" / "other.py", "2", "3")
    assert code_digest("mini.user", root=mini) != before


def test_an_object_stands_for_the_units_of_its_classes(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(mini.parent)
    kind = importlib.import_module("mini.layers").Conv
    own = type("Own", (kind,), {})()
    assert list(code_of(own, root=mini).units) == list(code_of(kind(), root=mini).units) == ["layers"]
    assert code_of(None, root=mini).units == {}
    bench = importlib.import_module("mini.bench").Bench
    assert code_digest(bench.train, root=mini) == code_digest(bench().train(1), root=mini)
    assert code_digest(bench.train, root=mini) == code_digest("mini.bench:Bench.train", root=mini)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nimport_module(f'mini.{x}')\n", r"rates\.py, line 2: imports by a computed name"),
        ("x = 1\ny = (\n", r"rates\.py, line 2: "),
    ],
)
def test_source_that_cannot_be_followed_is_refused_by_file_and_line(mini: Path, text: str, message: str) -> None:
    (mini / "rates.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        code_digest("mini.training", root=mini)


@pytest.mark.parametrize("name", ["mini.trian", "mini.trian:Bench.train", "mini.bench:Bench.trian"])
def test_what_does_not_exist_is_refused_by_name(mini: Path, name: str) -> None:
    with pytest.raises(ValueError, match="trian"):
        code_digest(name, root=mini)


@pytest.mark.parametrize("name", ["rates.py", "bench.py"])
def test_code_edited_after_this_process_loaded_it_is_refused(
    mini: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.syspath_prepend(mini.parent)
    train = importlib.import_module("mini.bench").Bench.train
    code_digest(train, root=mini)
    os.utime(mini / name)
    with pytest.raises(ValueError, match=rf"{name}: edited after this process loaded it; restart"):
        code_digest(train, root=mini)


def test_code_that_is_dated_ahead_of_the_clock_is_not_taken_for_edited(tmp_path: Path) -> None:
    script = "from paperlib.store.code_digest import code_of\nimport paperlib.seeding\n"
    script += "print(code_of('paperlib.seeding').digest)\nimport os\nos.utime(paperlib.seeding.__file__)\n"
    script += "code_of('paperlib.seeding')"
    # A copy, because other tests run at the same time and would find their own code edited.
    package = shutil.copytree(Path(paperlib.__file__).parent, tmp_path / "paperlib")
    os.utime(package / "seeding.py", (2**31, 2**31))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-B", "-c", script]
    # `-c` puts the working folder before PYTHONPATH.
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert said.stdout == f"{code_of('paperlib.seeding').digest}\n"
    assert "edited after this process loaded it" in said.stderr


def test_a_notebook_depends_on_what_its_cells_import_and_on_no_other_code(mini: Path, tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["import mini.rates"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "import mini as m\n"]},
        {"cell_type": "code", "source": ["m.plot()"]},
    ]
    notebook = tmp_path / "notebook.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    seen = [notebook_digest(notebook, mini)]
    for name, old, new in (("rates.py", "0.1", "0.2"), ("drawing.py", "...", "print()")):
        edit(mini / name, old, new)
        seen.append(notebook_digest(notebook, mini))
    assert seen[0] == seen[1] != seen[2]


def test_a_digest_imports_neither_torch_nor_what_it_reads() -> None:
    script = (
        "import sys; from paperlib.store.code_digest import code_digest; code_digest('paperlib.training.loop'); "
        "sys.exit(bool({'torch', 'paperlib.training', 'paperlib.data'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(paperlib.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
