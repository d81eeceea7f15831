"""Weights files of other programs that cannot be read here: named for what they are, with the way out."""

from __future__ import annotations

from pathlib import Path

PYTORCH = (
    "a PyTorch file, which is not read, because unpickling can run code; load its tensors yourself "
    "(torch.load with weights_only=True) into a detector of pl.build_detector, and write that with pl.save_detector"
)
NETWORK = "write a detector with pl.save_detector, or give Darknet's .weights"
BY_START = {
    b"PK\x03\x04": PYTORCH,
    b"\x80\x02": PYTORCH,
    b"\x80\x04": PYTORCH,
    b"\x80\x05": PYTORCH,
    b"\x89HDF": f"an HDF5 file, as Keras writes them; {NETWORK}",
    b"[net]": "a Darknet configuration; give the .weights file that belongs to it",
}
"""Files by their first bytes: PyTorch's are ZIP archives, older ones bare pickles."""
BY_SUFFIX = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".pkl"), PYTORCH),
    ".onnx": f"an ONNX file, from which no training starts; {NETWORK}",
    ".tflite": f"a TensorFlow Lite file, from which no training starts; {NETWORK}",
}


def refuse_foreign(path: Path) -> None:
    """Refuse a file that another program wrote, before any of it is read as weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the kind of the file and the way out.
    """
    with path.open("rb") as opened:
        start = opened.read(8)
    kind = next((kind for begin, kind in BY_START.items() if start.startswith(begin)), None)
    if kind := kind or BY_SUFFIX.get(path.suffix.lower()):
        raise ValueError(f"{path}: is {kind}")
