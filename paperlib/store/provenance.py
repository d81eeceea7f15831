"""The certificate of a result: what made it, from which code and data, on what machine.

It is published beside the result, so it names no person and no place: no host, no user, no absolute path.
"""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from paperlib.extras import DISTRIBUTION
from paperlib.files import map_leaves
from paperlib.store.code_digest import Code

PACKAGES = ("torch", "torchvision", "numpy", "accelerate", "faster-coco-eval", "paperlib")
_ALL_BUT_RESULTS = (":(top)", ":(top,exclude)results")


def make_certificate(
    *,
    settings: dict[str, Any],
    data_digest: str | dict[str, str],
    seeds: Sequence[int],
    wall_seconds: float,
    training_seconds: float,
    steps: Sequence[str] = (),
    weights_digest: Mapping[str, str] | None = None,
    precision: Mapping[str, str] | None = None,
    code: Code | None = None,
    machines: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the certificate of a result as a dict that JSON can hold.

    Args:
        settings: all settings of the result; of absolute paths only the last name is kept ("…/yolov4-tiny.weights").
        data_digest: one digest for all the data, or one for each split.
        seeds: the seeds of its runs.
        wall_seconds: what this run took.
        training_seconds: what all trainings behind the result took together.
        steps: digests of the stored steps behind the result; their `step.json` says when and where each was made.
        weights_digest: SHA-256 of each weights file that a detector started from, by its name.
        precision: what the setting `precision` was in each case, since `auto` depends on the processor; several if
            seeds were trained on machines of several kinds.
        code: the state of the code of this run, if it is known.
        machines: if some of the steps were imported, the machines that made the steps, and which each made.

    Raises:
        ValueError: a setting that JSON cannot hold; names it.
    """
    return {
        "settings": hide_folders(settings),
        "data_digest": data_digest,
        "weights_digest": dict(weights_digest or {}),
        **({"precision": dict(precision)} if precision else {}),
        "seeds": [int(seed) for seed in seeds],
        "steps": list(steps),
        "code": code_version() | ({"digest": code.digest} if code else {}),
        "versions": installed_versions(),
        "machine": describe_machine(),
        **({"machines": [dict(each) for each in machines]} if machines else {}),
        "finished": utc_now(),
        "wall_seconds": round(wall_seconds, 3),
        "training_seconds": round(training_seconds, 3),
    }


def hide_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as a certificate holds them: of absolute paths only the last name.

    Raises:
        ValueError: a setting that JSON cannot hold; names it.
    """
    return map_leaves(settings, _without_folder, "settings")


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers pass through; "absent" if not installed."""
    return {"python": platform.python_version()} | {name: package_version(name) for name in PACKAGES}


@cache
def package_version(name: str) -> str:
    """Return the installed version of a distribution, or "absent"; imports nothing. Ours is called "paperlib" here."""
    try:
        return metadata.version(DISTRIBUTION if name == "paperlib" else name)
    except metadata.PackageNotFoundError:
        return "absent"


def describe_machine() -> dict[str, Any]:
    """Return what decides the last digits of a number: threads, processor, instruction set, GPU, system."""
    import torch  # slow to import, and only wanted here

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "threads": torch.get_num_threads(),
        "processor": _processor_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "gpu": ", ".join(gpus) or None,
        "system": f"{platform.system()} {_numbers(platform.release())} {platform.machine()}",
    }


def code_version(package: Path = Path(__file__).parent.parent) -> dict[str, Any]:
    """Return the git commit of the code in `package` and whether the tree differs from it (`results/` aside).

    Where git cannot tell, `commit` is "unknown", `dirty` is None and `reason` says why. Files that git neither
    tracks nor ignores count as a difference: a new module can change a number.
    """
    try:
        # An installed package may lie inside a repository that does not track it, such as in `.venv`.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(package, "rev-parse", "--verify", "HEAD").strip()
        changes = _git(package, "status", "--porcelain", "--untracked-files=normal", "--", *_ALL_BUT_RESULTS)
    except FileNotFoundError:
        return {"commit": "unknown", "dirty": None, "reason": "git is not installed"}
    except subprocess.CalledProcessError as error:
        # `rev-parse` fails only after `ls-files` found the package, so it is the commit that is missing.
        reason = "no commit yet" if "rev-parse" in error.cmd else "git reports no repository that tracks the code"
        return {"commit": "unknown", "dirty": None, "reason": reason}
    return {"commit": commit, "dirty": bool(changes)}


def _numbers(release: str) -> str:
    """Return a kernel's release without what its builder called it: that could name a place."""
    numbers = re.match(r"[\d.]*\d", release)
    return numbers[0] if numbers else "unknown"


def utc_now() -> str:
    """Return the time as "2026-11-20T05:12:33+00:00"."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(folder: Path, *arguments: str) -> str:
    # Inside a git hook GIT_DIR and its kin point at the hook's repository, which need not be this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@cache
def _processor_name() -> str:
    # On Linux `platform.processor()` gives the architecture only.
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform == "linux" and cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _without_folder(leaf: Any, place: str) -> Any:
    is_path = isinstance(leaf, str | PurePath) and PurePath(leaf).is_absolute()
    if is_path:
        return f"…/{PurePath(leaf).name}"
    return str(leaf) if isinstance(leaf, PurePath) else leaf
