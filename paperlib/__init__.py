"""Executable companion of "Sparse Channel Pruning and Assistant Distillation for Faster Aerial Object Detection".

The public face: `import paperlib as pl`. Names are loaded when first used, so that importing stays fast.
"""

from importlib import import_module
from typing import Any

_FACE = {
    "paperlib.workbench.options": ("Compression",),
    "paperlib.workbench.algorithm_1": ("Compressed", "compress"),
    "paperlib.costs": ("Cost", "cost"),
    "paperlib.data": ("Dataset", "load_dataset"),
    "paperlib.detectors": ("build_detector", "load_darknet_weights"),
    "paperlib.detectors.files": ("load_detector", "save_detector"),
    "paperlib.distillation.assistants": ("Distillation",),
    "paperlib.evaluation.evaluate": ("Metrics", "detect", "evaluate"),
    "paperlib.deploy.onnx": ("export_onnx",),
    "paperlib.pruning": ("PruningPlan", "Sparsity", "apply_plan", "plan_pruning"),
    "paperlib.training.recipe": ("Recipe",),
    "paperlib.claims.notebook": ("Review",),
    "paperlib.experiments.study": ("Study",),
    "paperlib.deploy.latency": ("Latency", "latency"),
    "paperlib.training.loop": ("History", "fit"),
    "paperlib.workbench.steps": ("Model", "Workbench"),
}
_HOME = {name: module for module, names in _FACE.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'paperlib' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
