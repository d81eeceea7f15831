import json
import re
import socket
import subprocess
from pathlib import Path

import pytest
import torch

import paperlib
from paperlib.store import provenance

REPOSITORY = Path(paperlib.__file__).parents[1]


def make_certificate(**settings: object) -> dict[str, object]:
    return provenance.make_certificate(
        settings=settings, data_digest="d1", seeds=(0, 1), wall_seconds=1.23456, training_seconds=60.0, steps=("s1",)
    )


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A committed package within a repository that also has committed results."""
    for name in ("package/__init__.py", "results/metrics.json", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path / "package"


def test_a_certificate_names_no_host_and_no_folder_of_this_machine() -> None:
    paths = {"weights": str(REPOSITORY / "data" / "tiny.weights"), "more": [Path.home() / "x" / "y.json"]}
    certificate = make_certificate(**paths, relative="data/vhr10", note="50/50")
    text = json.dumps(certificate, ensure_ascii=False)
    assert str(REPOSITORY) not in text
    assert str(Path.home()) not in text
    assert not re.search(rf"(?<![\w-]){re.escape(socket.gethostname())}(?![\w-])", text)
    assert certificate["settings"] == {
        "weights": "…/tiny.weights",
        "more": ["…/y.json"],
        "relative": "data/vhr10",
        "note": "50/50",
    }


def test_a_certificate_says_what_decides_a_number() -> None:
    certificate = make_certificate(ratio=0.5)
    assert certificate["data_digest"] == "d1" and certificate["weights_digest"] == {}
    assert certificate["seeds"] == [0, 1]
    assert certificate["steps"] == ["s1"]
    assert certificate["wall_seconds"] == 1.235
    assert set(certificate["versions"]) == {"python", *provenance.PACKAGES}
    machine = certificate["machine"]
    assert machine["threads"] == torch.get_num_threads()
    assert machine["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert machine["processor"]
    assert (machine["gpu"] is not None) == torch.cuda.is_available()


def test_a_setting_that_json_cannot_hold_is_refused_by_its_place() -> None:
    with pytest.raises(ValueError, match=r"settings\.optimiser\.kind: a type is not JSON serialisable"):
        make_certificate(optimiser={"kind": torch.optim.Adam})


def test_a_package_that_is_not_installed_is_absent() -> None:
    assert provenance.package_version("no-such-distribution") == "absent"


def test_a_clean_tree_gives_its_commit_even_when_results_changed(package: Path) -> None:
    (package.parent / "results" / "metrics.json").write_text("2")
    (package.parent / "results" / "new.json").write_text("2")
    commit = git(package, "rev-parse", "HEAD")
    assert provenance.code_version(package) == {"commit": commit, "dirty": False}


@pytest.mark.parametrize("name", ["package/__init__.py", "README.md", "package/untracked.py"])
def test_a_changed_or_new_file_outside_results_makes_the_tree_dirty(package: Path, name: str) -> None:
    (package.parent / name).write_text("2")
    assert provenance.code_version(package)["dirty"] is True


def test_a_git_hook_of_another_repository_does_not_mislead(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere" / ".git"))
    assert provenance.code_version(package)["dirty"] is False


def test_code_that_git_does_not_track_is_unknown_with_a_reason(package: Path) -> None:
    installed = package.parent / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    version = provenance.code_version(installed)
    assert version == {
        "commit": "unknown",
        "dirty": None,
        "reason": "git reports no repository that tracks the code",
    }


def test_code_before_the_first_commit_is_unknown_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    assert provenance.code_version(tmp_path) == {
        "commit": "unknown",
        "dirty": None,
        "reason": "no commit yet",
    }


def test_a_kernel_is_named_by_its_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, numbers in {"6.8.0-45-generic": "6.8.0", "5.15.90.1-host": "5.15.90.1", "": "unknown"}.items():
        monkeypatch.setattr(provenance.platform, "release", lambda named=release: named)
        assert f" {numbers} " in provenance.describe_machine()["system"]
