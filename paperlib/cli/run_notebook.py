"""Run one notebook of a batch, and bind its results to the executed notebook.

    python -m paperlib.cli.run_notebook NOTEBOOK PROFILE EXECUTED

`PROFILE` is the YAML file of its settings; the executed notebook `EXECUTED` stands among the results. The last line of
the output says in which cell a notebook failed, and why. The workflow starts every notebook this way.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from paperlib import files
from paperlib.experiments.parameters import load_profile
from paperlib.store.code_digest import notebook_digest
from paperlib.store.provenance import hide_folders, installed_versions
from paperlib.store.results import CERTIFICATE, METRICS, bind_executed, digest_read, digest_source

FAILED = "FAILED: "
"""How the line begins that says why a notebook failed."""
LONGEST_REASON = 300


def run_notebook(notebook: Path, profile: Path, executed: Path) -> None:
    """Execute a notebook with the settings of a profile, and add the executed notebook to the certificate.

    Raises:
        ValueError: a cell failed, or the notebook has not written its results; one line says which cell and why.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    # Earlier results do not count as those of this run.
    (executed.parent / METRICS).unlink(missing_ok=True)
    certificate = executed.parent / CERTIFICATE
    earlier = certificate.read_bytes() if certificate.is_file() else b""
    made_by = _identify_run(notebook, profile)
    try:
        execute_notebook(
            notebook, executed, parameters=files.read_mapping(profile), progress_bar=False, log_output=True
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        raise ValueError(find_failure(executed) or shorten_reason(f"{type(error).__name__}: {error}")) from None
    made_by["read"] = digest_read(executed.parent, notebook.parent / "claims.yaml")
    # A notebook that writes no certificate leaves that of an earlier run unchanged.
    has_certified = certificate.is_file() and certificate.read_bytes() != earlier
    bind_executed(executed.parent, executed, None if has_certified else made_by)


def find_failure(executed: Path) -> str | None:
    """Return in which cell of an executed notebook what went wrong, in one line; None if it does not tell."""
    try:
        cells = [cell for cell in files.read_json(executed)["cells"] if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for number, cell in enumerate(cells, 1):
        place = f"cell {cell.get('execution_count') or number}"
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                reason = f"{output['ename']}: {output['evalue']}"
                return f"{place}: {shorten_reason(reason)}"
        # Of a kernel that died, papermill records no error; but it gave no reply to this cell.
        has_replied = "shell.execute_reply" in cell["metadata"].get("execution", {})
        if "".join(cell["source"]).strip() and not has_replied:
            return f"{place}: the process ended while this cell ran: killed, perhaps for lack of memory"
    return None


def shorten_reason(text: str) -> str:
    """Return a text in one line of bearable length."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"


def _identify_run(notebook: Path, profile: Path) -> dict[str, Any]:
    """Return the certificate of a notebook that writes none itself."""
    return {
        "settings": hide_folders(load_profile(notebook.stem, profile).model_dump()),
        "seeds": [],
        "steps": [],
        "code": {"digest": notebook_digest(notebook)},
        "source": digest_source(notebook),
        "versions": installed_versions(),
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run_notebook(*map(Path, sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"{FAILED}{shorten_reason(str(error))}")
