"""The results of a notebook, bound to what made them.

`provenance.json`, the certificate, holds a SHA-256 digest of every file beside it and one of itself. It also names the
notebook and the scale, so that it cannot pass for the certificate of other results. Whether results are up to date
follows from this content alone; no date of a file decides anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paperlib import files
from paperlib.store.provenance import hide_folders, installed_versions
from paperlib.store.staleness import compare_values

CERTIFICATE = "provenance.json"
METRICS = "metrics.json"
"""The file that a notebook writes last; it says that the notebook is done."""
SCOREBOARD = "99_claims"
"""The notebook that reads the results of the others."""
INSERTED = frozenset({"injected-parameters", "what-we-found"})
"""The tags of cells that change no result: the parameters that papermill writes, and the block on the claims."""
SCRATCH = "scratch"
"""The folder, in the place of a scale, of results whose settings are not those of a profile."""


def write_results(folder: Path, certificate: dict[str, Any], metrics: dict[str, Any], written: Iterable[str]) -> None:
    """Write `provenance.json`, then `metrics.json`.

    Args:
        folder: `results/<scale>/<notebook>`.
        certificate: what made the results.
        metrics: the content of `metrics.json`.
        written: the names of the other results, which are in the folder.

    Raises:
        ValueError: before anything is written, if `metrics` holds something that JSON lacks.
    """
    files.map_leaves(metrics, lambda leaf, place: leaf, METRICS)
    with files.replace_file(folder / METRICS) as temporary:
        files.write_json_atomically(temporary, metrics)
        digests = {name: files.file_digest(folder / name) for name in sorted(written)}
        # The digest comes first, so that finished metrics never lack it.
        write_certificate(folder, certificate | {"files": digests | {METRICS: files.file_digest(temporary)}})


def write_certificate(folder: Path, certificate: dict[str, Any]) -> None:
    """Write the certificate of the results in a folder, with the folder's names and its own digest."""
    named = certificate | {"notebook": folder.name, "scale": folder.parent.name}
    with files.replace_file(folder / CERTIFICATE) as temporary:
        # Read back, the values are as the file holds them: JSON has no infinity, and no tuples.
        files.write_json_atomically(temporary, named)
        plain = files.read_json(temporary)
        files.write_json_atomically(temporary, plain | {"digest": _digest_certificate(plain)})


def bind_executed(folder: Path, executed: Path, made_by: dict[str, Any] | None) -> None:
    """Add the executed notebook, which is complete only after the notebook's last cell, to the certificate.

    Args:
        folder: `results/<scale>/<notebook>`.
        executed: the executed notebook, in this folder.
        made_by: the certificate of a notebook that has written none itself, else None.

    Raises:
        ValueError: the notebook has not written its results, or they do not fit their certificate.
    """
    if not (folder / METRICS).is_file():
        raise ValueError(f"it has not written {METRICS}, which its last cell does (`study.finish`)")
    if made_by is None and (faults := find_faults(folder)):
        raise ValueError(faults[0])
    certificate = files.read_json(folder / CERTIFICATE) if made_by is None else made_by
    known = certificate.get("files", {METRICS: files.file_digest(folder / METRICS)})
    digests = known | {executed.name: files.file_digest(executed)}
    write_certificate(folder, certificate | {"files": digests, "source": digest_source(executed)})


def find_faults(folder: Path) -> list[str]:
    """Return where the results in a folder differ from their certificate, as "file: fault"; none if all fit."""
    try:
        certificate = _read_certificate(folder)
    except ValueError as error:
        return [f"{CERTIFICATE}: {error}"]
    digests = certificate["files"]
    faults = [] if METRICS in digests else [f"{CERTIFICATE}: has no digest of {METRICS}"]
    for name, digest in digests.items():
        if fault := _find_fault(folder / name, digest):
            faults.append(f"{name}: {fault}")
    return faults


def find_changes(
    certificate: dict[str, Any], settings: dict[str, Any], code: str, source: str, read: dict[str, str]
) -> list[str]:
    """Return what changed since results were made, each in a few words; none if they are up to date.

    Args:
        certificate: the certificate of the results.
        settings: the settings of the profile as it is now.
        code: the digest of the code that the notebook imports now.
        source: the digest of the notebook's cells now.
        read: the digests of what the scoreboard reads, as it is now.
    """
    changes = [f"setting {each}" for each in compare_values(certificate.get("settings"), hide_folders(settings))]
    changes += [f"library {each}" for each in compare_values(certificate.get("versions"), installed_versions())]
    if certificate.get("code", {}).get("digest") != code:
        changes.append("the code that it uses has changed, or is not recorded")
    if certificate.get("source") != source:
        changes.append("the cells of the notebook have changed, or are not recorded")
    if certificate.get("read", {}) != read:
        changes.append("what it reads has changed")
    return changes


def digest_results(scale: Path) -> dict[str, str]:
    """Return the digest of the `metrics.json` of every notebook in `results/<scale>`, without the scoreboard."""
    found = sorted(scale.glob(f"*/{METRICS}"))
    return {path.parent.name: files.file_digest(path) for path in found if path.parent.name != SCOREBOARD}


def digest_read(folder: Path, claims: Path) -> dict[str, str]:
    """Return the digests of what a notebook reads besides data: only the scoreboard reads the claims and results.

    Args:
        folder: `results/<scale>/<notebook>`.
        claims: the list of claims.
    """
    if folder.name != SCOREBOARD:
        return {}
    listed = {claims.name: files.file_digest(claims)} if claims.is_file() else {}
    return listed | digest_results(folder.parent)


def require_fit(folder: Path) -> None:
    """Check that the results in a folder fit their certificate; results that are not finished are not checked.

    Raises:
        ValueError: they do not; one line names the first fault and the command that makes the results again.
    """
    if (folder / METRICS).is_file() and (faults := find_faults(folder)):
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        remedy = f"paperlib reproduce {folder.name} --profile {folder.parent.name}"
        raise ValueError(f"{folder / faults[0]}{more}; make the results again: {remedy}")


def require_scale_fits(scale: Path) -> None:
    """Check that all results in `results/<scale>` fit their certificates; the scoreboard's are read by no claim.

    Raises:
        ValueError: some do not; see `require_fit`.
    """
    for path in sorted(scale.glob(f"*/{METRICS}")):
        if path.parent.name != SCOREBOARD:
            require_fit(path.parent)


def digest_source(notebook: Path) -> str:
    """Return the digest of the cells of a notebook, without outputs and without what is inserted into it.

    Raises:
        ValueError: it is not a notebook; names the file.
    """
    content = files.read_json(notebook)
    try:
        kept = [cell for cell in content["cells"] if INSERTED.isdisjoint(cell["metadata"].get("tags", []))]
        sources = [[cell["cell_type"], "".join(cell["source"])] for cell in kept]
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"{notebook}: not a Jupyter notebook") from None
    return _digest_json(sources)


def _read_certificate(folder: Path) -> dict[str, Any]:
    """Return the certificate of the results in a folder. Raises ValueError with its fault."""
    path = folder / CERTIFICATE
    if fault := _find_fault(path, None):
        raise ValueError(fault)
    try:
        certificate = files.read_json(path)
    except (OSError, ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    digests = certificate.get("files") if isinstance(certificate, dict) else None
    if not isinstance(digests, dict) or any(Path(name).name != name for name in digests):
        raise ValueError("has no digests of the results")
    expected = [folder.name, folder.parent.name]
    found = [certificate.get("notebook"), certificate.get("scale")]
    if found != expected:
        raise ValueError(f"is that of {found[0]} in results/{found[1]}")
    if certificate.pop("digest", None) != _digest_certificate(certificate):
        raise ValueError("was changed after it was made")
    return certificate


def _find_fault(path: Path, digest: str | None) -> str:
    """Return what is wrong with a file that should exist and have a digest; nothing if it is as it should be."""
    if not path.is_file():
        return "is missing"
    try:
        if not path.stat().st_size:
            return "is empty"
        return "was changed after it was made" if digest and files.file_digest(path) != digest else ""
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _digest_certificate(certificate: dict[str, Any]) -> str:
    return _digest_json({name: value for name, value in certificate.items() if name != "digest"})


def _digest_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
