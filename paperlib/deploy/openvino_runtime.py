"""OpenVINO for the CPU: one image at a time, in a stated precision."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from paperlib.extras import load_later

if TYPE_CHECKING:
    import openvino
else:
    openvino = load_later("runtimes", lambda: import_module("openvino"))


def multiplies_bfloat16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this processor."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_openvino(path: Path, threads: int, precision: str = "f32") -> openvino.CompiledModel:
    """Compile an ONNX file by OpenVINO for the CPU, one image at a time on `threads` threads, in `f32` or `bf16`."""
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,  # by default bfloat16, on processors that have it
        "PERFORMANCE_HINT": "LATENCY",
    }
    return openvino.Core().compile_model(path, "CPU", options)
