import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import paperlib
from paperlib.store import code_digest as source
from paperlib.store.code_digest import code_digest
from paperlib.store.store import Step, Store

PACKAGE = {
    "__init__.py": "from mini.train import train\nfrom mini.unrelated import plot\n",
    "train.py": (
        '"""Train."""\n'
        "from mini import rates\n\n\n"
        "def train(x: float) -> float:\n"
        '    """Return x, trained."""\n'
        "    from .layers import Conv  # late\n"
        "    return Conv().run(x) * rates.LR\n"
    ),
    "rates.py": "LR = 0.1\n",
    "layers/__init__.py": "from .conv import Conv\n\n__all__ = ['Conv']\n",
    "layers/conv.py": (
        "from ..maths import constants as c\n\n\n"
        "class Conv:\n"
        '    """A convolution."""\n\n'
        "    size: int = 3\n"
        '    """Its side."""\n\n'
        "    def run(self, x: float) -> float:\n"
        "        return x * c.SCALE  # in pixels\n"
    ),
    "maths/__init__.py": "from mini.maths.other import OTHER\n",
    "maths/constants.py": "import importlib\n\nSCALE = importlib.import_module('mini.deep').DEEP\n",
    "maths/other.py": "OTHER = 1\n",
    "deep.py": "DEEP = 2.0\n",
    "unrelated.py": "def plot() -> None: ...\n",
}


@pytest.fixture
def mini(tmp_path: Path) -> Iterator[Path]:
    """A small package: mini.train ─▶ rates, layers ─▶ layers.conv ─▶ maths.constants ─▶ deep."""
    for name, text in PACKAGE.items():
        path = tmp_path / "mini" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
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
    """Ask the store for the step that runs mini.train; return how often that step was made so far."""
    step = Step("train", {"epochs": 1}, parents=(), data="", code=code_digest("mini.train", root=mini))
    store.get(step, lambda folder: None)
    return len(list(store.root.glob("train-*/step.json")))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("train.py", "* rates.LR", "+ rates.LR"),
        ("train.py", "    from .layers", "    x += 1\n    from .layers"),
        ("rates.py", "0.1", "0.2"),
        ("layers/__init__.py", "from .conv", "X = 1\nfrom .conv"),
        ("layers/conv.py", "size: int = 3", "size: int = 5"),
        ("maths/constants.py", ".DEEP", ".DEEP * 2"),
        ("deep.py", "2.0", "2"),
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
        ("train.py", '"""Train."""\n', ""),
        ("train.py", "Return x, trained.", "Return x after one\n    epoch."),
        ("train.py", "# late", "# only when called"),
        (
            "train.py",
            "return Conv().run(x) * rates.LR",
            "return (\n        Conv().run(x)\n        * rates.LR\n    )",
        ),
        ("layers/conv.py", '"""Its side."""', '"""Its side, in cells."""'),
        ("layers/__init__.py", "['Conv']", '["Conv"]'),
        ("unrelated.py", "...", "print()"),
        ("__init__.py", "from mini.unrelated import plot\n", ""),
        ("maths/other.py", "1", "2"),
    ],
)
def test_edits_of_comments_docstrings_layout_or_unrelated_modules_keep_the_artefact(
    mini: Path, name: str, old: str, new: str
) -> None:
    before = code_digest("mini.train", root=mini)
    edit(mini / name, old, new)
    assert code_digest("mini.train", root=mini) == before


@pytest.mark.parametrize(
    "statement",
    [
        "import mini.maths.constants",
        "import mini.maths as m",
        "from mini.maths import OTHER",
        "from mini.maths import other",
        "from mini.maths import *",
        "from .maths import OTHER",
        "from . import maths",
        "import mini",
        "def f():\n    import mini.maths.other",
        "import importlib\nimportlib.import_module('mini.maths.other')",
        "__import__('mini.maths.other')",
    ],
)
def test_every_form_of_import_is_followed(mini: Path, statement: str) -> None:
    (mini / "user.py").write_text(statement + "\n")
    edit(mini / "__init__.py", "from mini.unrelated", "import mini.maths\nfrom mini.unrelated")
    before = code_digest("mini.user", root=mini)
    edit(mini / "maths" / "other.py", "1", "2")
    assert code_digest("mini.user", root=mini) != before


def test_a_name_that_is_both_a_module_and_bound_by_its_package_means_both(mini: Path) -> None:
    (mini / "user.py").write_text("from mini.layers import conv\n")
    edit(mini / "layers" / "__init__.py", "from .conv", "from ..unrelated import plot as conv\nfrom .conv")
    before = code_digest("mini.user", root=mini)
    edit(mini / "unrelated.py", "...", "print()")
    assert code_digest("mini.user", root=mini) != before


def test_the_order_of_modules_does_not_matter_and_a_module_object_is_as_good_as_its_name(mini: Path) -> None:
    both = [code_digest(*names, root=mini) for names in (("mini.deep", "mini.rates"), ("mini.rates", "mini.deep"))]
    assert both[0] == both[1] != code_digest("mini.deep", root=mini)
    assert code_digest(source) == code_digest("paperlib.store.code_digest")


def test_of_a_function_its_own_source_counts_wherever_it_is_nested_and_nothing_else(
    mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"train": "x + 1", "prune": "x - 1"}
    method = "    def {}(self):\n        def make(x):\n            return {}\n\n        return make\n\n"
    (mini / "bench.py").write_text("class Bench:\n" + "".join(method.format(*step) for step in steps.items()))
    for path in mini.rglob("*.py"):
        os.utime(path, (0, 0))
    monkeypatch.syspath_prepend(mini.parent)
    make = importlib.import_module("mini.bench").Bench().train()
    copy = mini.parent / "copy" / "mini"
    shutil.copytree(mini, copy)
    before = code_digest(make, "mini.deep", root=copy)
    edit(copy / "bench.py", "x - 1", "x - 2")
    edit(copy / "bench.py", "return x + 1", '"""Return one more."""\n            return x + 1  # on')
    assert code_digest(make, "mini.deep", root=copy) == before
    edit(copy / "bench.py", "x + 1", "x + 2")
    assert code_digest(make, "mini.deep", root=copy) != before
    os.utime(mini / "bench.py")
    with pytest.raises(ValueError, match=r"bench\.py: edited after this process loaded it"):
        code_digest(make, root=mini)


def test_a_module_that_only_shows_progress_is_not_followed(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "ASIDE", frozenset({"mini.rates"}))
    before = code_digest("mini.train", root=mini)
    edit(mini / "rates.py", "0.1", "0.2")
    assert code_digest("mini.train", root=mini) == before
    assert code_digest("mini.rates", root=mini) != code_digest("mini.deep", root=mini)


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
        code_digest("mini.train", root=mini)


def test_a_module_that_does_not_exist_is_refused_by_name(mini: Path) -> None:
    with pytest.raises(ValueError, match=r"no module 'mini\.trian'"):
        code_digest("mini.trian", root=mini)


def test_code_edited_after_this_process_loaded_it_is_refused(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in mini.rglob("*.py"):
        os.utime(path, (0, 0))
    monkeypatch.syspath_prepend(mini.parent)
    train = importlib.import_module("mini.train")
    code_digest(train, root=mini)
    os.utime(mini / "rates.py")
    with pytest.raises(ValueError, match=r"rates\.py: edited after this process loaded it; restart"):
        code_digest(train, root=mini)


def test_a_digest_imports_neither_torch_nor_what_it_reads() -> None:
    script = (
        "import sys; from paperlib.store.code_digest import code_digest; code_digest('paperlib.store.provenance'); "
    )
    script += "sys.exit(bool({'torch', 'paperlib.store.provenance'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(Path(paperlib.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
