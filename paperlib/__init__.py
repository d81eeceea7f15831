"""Executable companion of "Sparse Channel Pruning and Assistant Distillation for Faster Aerial Object Detection".

The public face: `import paperlib as pl`. Names are loaded when first used, so that importing stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "Compressed",
    "Compression",
    "Cost",
    "Dataset",
    "Distillation",
    "DynamicDistillation",
    "EpochReport",
    "History",
    "Latency",
    "Metrics",
    "Model",
    "Partnership",
    "PruningPlan",
    "Recipe",
    "Review",
    "SceneDataset",
    "Sparsity",
    "Study",
    "Workbench",
    "apply_plan",
    "build_classifier",
    "build_detector",
    "compress",
    "cost",
    "detect",
    "evaluate",
    "export_onnx",
    "extend",
    "fit",
    "fuse",
    "latency",
    "load_darknet_weights",
    "load_dataset",
    "load_detector",
    "load_network",
    "open_model",
    "plan_pruning",
    "predict",
    "register_importance",
    "save_detector",
    "save_network",
]

# The same names twice: imported for type checkers and editors, and as a table of what to import for the interpreter.
if TYPE_CHECKING:
    from paperlib.claims.notebook import Review
    from paperlib.classifiers import build_classifier
    from paperlib.costs import Cost, cost
    from paperlib.data import Dataset, SceneDataset, load_dataset
    from paperlib.deploy.latency import Latency, latency
    from paperlib.deploy.onnx import export_onnx
    from paperlib.deploy.predict import predict
    from paperlib.deploy.runtime import open_model
    from paperlib.detectors import build_detector, load_darknet_weights
    from paperlib.detectors.files import load_detector, save_detector
    from paperlib.distillation.assistants import Distillation
    from paperlib.distillation.dynamic import DynamicDistillation
    from paperlib.evaluation.evaluate import Metrics, detect, evaluate
    from paperlib.experiments.study import Study
    from paperlib.network_files import load_network, save_network
    from paperlib.partners.extend import extend
    from paperlib.partners.fuse import fuse
    from paperlib.partners.partnership import Partnership
    from paperlib.pruning import PruningPlan, Sparsity, apply_plan, plan_pruning, register_importance
    from paperlib.training.callback import EpochReport
    from paperlib.training.loop import History, fit
    from paperlib.training.recipe import Recipe
    from paperlib.workbench.candidates import compress
    from paperlib.workbench.options import Compression
    from paperlib.workbench.stages import Compressed
    from paperlib.workbench.steps import Model, Workbench
else:
    _MODULES = {
        "paperlib.claims.notebook": ("Review",),
        "paperlib.classifiers": ("build_classifier",),
        "paperlib.costs": ("Cost", "cost"),
        "paperlib.data": ("Dataset", "SceneDataset", "load_dataset"),
        "paperlib.deploy.latency": ("Latency", "latency"),
        "paperlib.deploy.onnx": ("export_onnx",),
        "paperlib.deploy.predict": ("predict",),
        "paperlib.deploy.runtime": ("open_model",),
        "paperlib.detectors": ("build_detector", "load_darknet_weights"),
        "paperlib.detectors.files": ("load_detector", "save_detector"),
        "paperlib.distillation.assistants": ("Distillation",),
        "paperlib.distillation.dynamic": ("DynamicDistillation",),
        "paperlib.evaluation.evaluate": ("Metrics", "detect", "evaluate"),
        "paperlib.experiments.study": ("Study",),
        "paperlib.network_files": ("load_network", "save_network"),
        "paperlib.partners.extend": ("extend",),
        "paperlib.partners.fuse": ("fuse",),
        "paperlib.partners.partnership": ("Partnership",),
        "paperlib.pruning": ("PruningPlan", "Sparsity", "apply_plan", "plan_pruning", "register_importance"),
        "paperlib.training.callback": ("EpochReport",),
        "paperlib.training.loop": ("History", "fit"),
        "paperlib.training.recipe": ("Recipe",),
        "paperlib.workbench.candidates": ("compress",),
        "paperlib.workbench.stages": ("Compressed",),
        "paperlib.workbench.options": ("Compression",),
        "paperlib.workbench.steps": ("Model", "Workbench"),
    }

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names:
                return getattr(import_module(module), name)
        raise AttributeError(f"module 'paperlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
