"""Weights files of other programs that cannot be read here: named for what they are, with the way out."""

from __future__ import annotations

import zipfile
from pathlib import Path

PYTORCH = (
    "a PyTorch file, which is not read, because unpickling can run code; load its tensors yourself "
    "(torch.load with weights_only=True) into a detector of pl.build_detector, and write that with pl.save_detector"
)
NETWORK = "write a detector with pl.save_detector, or give Darknet's .weights"
BY_START = {
    b"PK\x03\x04": PYTORCH,
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), PYTORCH),
    b"\x89HDF": f"an HDF5 file, as Keras writes them; {NETWORK}",
    b"\x93NUMPY": f"a NumPy file; {NETWORK}",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"[net]": "a Darknet configuration; give the .weights file that belongs to it",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch that with git lfs pull",
    b"<": "a web page or XML, as a failed download leaves; fetch the file again",
}
"""Files by their first bytes: PyTorch's are ZIP archives, older ones bare pickles."""
BY_SUFFIX = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".pkl"), PYTORCH),
    ".onnx": f"an ONNX file, from which no training starts; {NETWORK}",
    ".tflite": f"a TensorFlow Lite file, from which no training starts; {NETWORK}",
}


def refuse_foreign(path: Path, *, safetensors: bool = True) -> None:
    """Refuse a file that another program wrote, before any of it is read as weights.

    Args:
        path: the file.
        safetensors: whether a file of that format is what the caller reads.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the kind of the file and the way out.
    """
    with path.open("rb") as opened:
        start = opened.read(64)
    kind = next((kind for begin, kind in BY_START.items() if start.startswith(begin)), None)
    if kind is PYTORCH and start.startswith(b"PK") and not _holds_pickle(path):
        kind = "a ZIP archive; unpack it first"
    kind = kind or BY_SUFFIX.get(path.suffix.lower())
    if not kind and start[4:8] == b"TFL3":
        kind = BY_SUFFIX[".tflite"]
    if not kind and not safetensors and start[8:9] == b"{":
        kind = "a safetensors file, not Darknet's; a detector of this package is read by pl.load_detector"
    if not kind and start and start.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        kind = "text, not weights"
    if kind:
        raise ValueError(f"{path}: is {kind}")


def _holds_pickle(path: Path) -> bool:
    """Return whether a ZIP archive is one of PyTorch; one that is damaged passes for that."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return True
