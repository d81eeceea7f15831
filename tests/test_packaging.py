"""What surrounds the package agrees with it."""

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import paperlib
from paperlib.cli import reproduce
from paperlib.cli.main import app
from paperlib.experiments.parameters import load_profile

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROFILES = sorted((ROOT / "notebooks" / "profiles").glob("*/*.yaml"))


def pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def test_every_direct_dependency_is_pinned_to_a_version_it_allows():
    pinned = pins()
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    for line in (line for line in lines if Requirement(line).name != PROJECT["name"]):
        requirement = Requirement(line)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, line


def test_the_conda_environment_asks_for_what_pyproject_asks_for():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert f"python{PROJECT['requires-python']}" in entries
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    # As `make` installs it, with the same versions.
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    assert '-c constraints.txt -e ".[dev]"' in (ROOT / "Makefile").read_text()
    assert {entry for entry in entries if isinstance(entry, str)} == {"python>=3.11", "pip"}
    assert set(Requirement(PROJECT["optional-dependencies"]["dev"][0]).extras) == {
        extra for extra in PROJECT["optional-dependencies"] if extra != "dev"
    }


@pytest.mark.parametrize("python", ["3.11.0", "3.13.0"])
def test_every_pinned_version_accepts_every_python_that_is_stated(python):
    assert Version(python) in SpecifierSet(PROJECT["requires-python"])
    refused = []
    for name, version in pins().items():
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # it is for another system
            continue
        asked = SpecifierSet(found.metadata.get("Requires-Python") or "")
        if Version(found.version) == version and python not in asked:
            refused.append(f"{name} {asked}")
    assert not refused


def test_ci_runs_the_lowest_and_the_highest_python_that_is_stated():
    stated = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: Python ::" in line]
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == [stated[0], stated[-1]]
    assert f"python:{stated[-1]}-" in (ROOT / "Dockerfile").read_text()
    assert PROJECT["requires-python"] == f">={stated[0]}"


def test_a_wheel_has_every_file_of_the_package_that_is_no_module():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package = ROOT / "paperlib"
    packed = {
        path for pattern in project["tool"]["setuptools"]["package-data"]["paperlib"] for path in package.glob(pattern)
    }
    listed = subprocess.run(["git", "ls-files", "paperlib"], cwd=ROOT, capture_output=True, text=True, check=False)
    # A script among the templates is copied for the user, not imported.
    files = [ROOT / name for name in listed.stdout.splitlines()]
    others = {path for path in files if path.suffix != ".py" or path.parent.name == "templates"}
    assert packed == others


def test_hooks_before_a_commit_run_the_tools_of_the_local_environment():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    tools = {hook["entry"].split()[0] for hook in repository["hooks"]}
    assert tools == {f".venv/bin/{tool}" for tool in ("ruff", "lint-imports", "basedpyright")}
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    assert all(tool.removeprefix(".venv/bin/") in lint for tool in tools)


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.stem)
def test_files_for_github_are_valid_yaml(path):
    content = yaml.safe_load(path.read_text())
    if path.parent.name == "ISSUE_TEMPLATE" and path.stem != "config":
        assert {"name", "description", "body"} <= content.keys()
        assert len({field["id"] for field in content["body"]}) == len(content["body"])


def test_every_file_that_contributing_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:paperlib|tests|notebooks|data|\.ci)/[^`\s]*)`", text)
    concrete = [name for name in named if not re.search(r"[A-Z]{4}|NN_", name)]
    assert len(concrete) > 10
    assert not [name for name in concrete if not (ROOT / name).exists()]


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_profile_says_its_promise_its_cost_and_its_command(path):
    promise, cost, run, *_ = path.read_text().splitlines()
    assert re.fullmatch(r"# Promise: \S.*", promise)
    assert re.fullmatch(r"# Cost: about \S.* \((measured|estimated)\b.*\)", cost) and reproduce.COST.search(cost)
    assert run == f"# Run: paperlib reproduce {path.stem} --profile {path.parent.name}"
    assert (ROOT / "notebooks" / f"{path.stem}.ipynb").is_file()
    assert load_profile(path.stem, path).cores >= 1
    assert reproduce.expected_seconds(path) > 0
    assert yaml.safe_load(path.read_text()).get("profile", "quick") == path.parent.name


PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "generated" not in path.parts)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_and_every_public_name_in_the_documentation_exists(page):
    quoted = re.findall(r"```[^\n]*\n(.*?)```|`([^`\n]+)`", page.read_text(), re.S)
    code = "\n".join(block or inline for block, inline in quoted)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^\s*make ([a-z]+)", code, re.M)) <= targets
    commands = set(typer.main.get_command(app).commands)
    assert set(re.findall(r"^\s*paperlib ([a-z]+)", code, re.M)) <= commands
    assert set(re.findall(r"\bpl\.([A-Za-z]\w*)", code)) <= set(paperlib.__all__)


def test_the_readme_is_short_and_its_links_lead_to_files():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    links = re.findall(r"\]\(([^):#]+)\)", text)
    assert links and not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("results/quick/03_components/metrics.json", True),
        ("results/laptop/03_components/papermill.log", True),
        ("results/.batch/quick/snakemake.log", True),
        (".store/step/weights.safetensors", True),
        (".venv/bin/python", True),
        ("data/nwpu-vhr10/ground truth/001.txt", True),
        ("results/laptop/03_components/metrics.json", False),
        ("results/paper/03_components/table_1.csv", False),
        ("results/reported/table_1.csv", False),
        ("data/registry.yaml", False),
        ("data/splits/dota.json", False),
    ],
)
def test_git_keeps_results_and_ignores_what_is_made_again(path, ignored):
    asked = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", path], cwd=ROOT, check=False)
    assert asked.returncode == (0 if ignored else 1)
