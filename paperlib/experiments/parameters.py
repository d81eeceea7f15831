"""The parameters of each notebook: their defaults are the `quick` scale, their files the profiles of all scales."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from paperlib import files, limits
from paperlib.experiments.settings import Cases, Chain, Common, Ratio, Ratios, Runtime, Seeds, Settings, Strengths
from paperlib.paths import source_root
from paperlib.typed_options import (
    Count,
    ImageSize,
    NetworkName,
    Number,
    PositiveFraction,
    PositiveNumber,
    Threads,
    WidthFactor,
    check_values,
)
from paperlib.workbench.options import DistillationOptions, DynamicWeights, IterationOptions

# Full-size detectors take minutes per epoch on two cores; these learn in seconds.
QUICK: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("yolov3", "yolov3-spp"), {"width": 0.125, "depth": 0.1, "epochs": 6}),
    "yolov4": {"width": 0.125, "depth": 0.1, "epochs": 5, "fine_tune_epochs": 1},
    "centernet-resnet50": {
        "width": 0.25, "depth": 0.1, "epochs": 8, "batch_size": 4,
        "learning_rate": 5e-3, "fine_tune_learning_rate": 5e-3,
    },
    "faster-rcnn-resnet101": {"width": 0.125, "depth": 0.1, "epochs": 4, "batch_size": 4},
}  # fmt: skip
"""How the detectors other than YOLOv4-tiny differ at the quick scale."""


class StartHere(Settings, IterationOptions, DistillationOptions):
    """`00_start_here` (Section 3)."""

    ratio: Ratio = 0.5
    """Fraction of the original channels that is removed in one step."""
    step: Ratio = 0.15
    """Fraction of the original channels that each iteration of Algorithm 1 removes."""
    max_drop: PositiveFraction = 0.2
    """delta of Algorithm 1; larger than the paper's 0.05, since two epochs of fine-tuning regain less than many."""


class ScaleFactor(Settings):
    """`01_scale_factor` (Section 4.4.2, Fig. 5). Nothing is pruned; the lists below are used instead of `sparsity`."""

    workers: Threads = 2
    sparsities: Annotated[Strengths, Field(min_length=2)] = [0.0, 0.0005, 0.001, 0.005]
    """lambda of Eq. 4, one training each, by `sparsity_method`; 0 is ordinary training."""
    proximal: Strengths = [0.005, 0.5]
    """lambda of the trainings by the proximal step, for comparison."""


class PruningRatio(Settings):
    """`02_pruning_ratio` (Section 4.4.3)."""

    workers: Threads = 2
    ratios: Annotated[Ratios, Field(min_length=1)] = [0.3, 0.5, 0.6, 0.75, 0.85, 0.9]
    cases: Cases = {"": {}, "yolov3": {"detector": "yolov3", "ratios": [0.7], "sparsity": 2e-3, **QUICK["yolov3"]}}


class Distilling(Settings, DistillationOptions):
    """What the notebooks that distil share."""

    workers: Threads = 2


ControlRow = Literal[
    "SCP, longer", "SCP, twice", "SCP, then KD", "SCP, then TAKD", "SCP + TAKD, longer", "SCP + TAKD, twice",
    "baseline, longer", "sparse, longer", "without Eq. 4", "scratch, twice",
]  # fmt: skip
"""Rows of `03_components` that compare at equal cost (see `paperlib.experiments.equal_cost`)."""


class Components(Distilling):
    """`03_components` (Section 4.4.1, Table 1)."""

    rows: list[ControlRow] = []
    """Further controls that are trained."""
    row_seeds: Count = 1
    """Number of seeds, the first ones, with which these rows are run."""
    assistants: bool = False
    """Also list the distilled assistants, which are trained in any case: the original, compressed less."""
    longer: Annotated[float, Field(ge=1.0, le=10.0)] = 1.4
    """How many times as many epochs the longer rows are tuned: fine-tuning then takes as long as a distillation."""
    seeds: Seeds = [0, 1]
    ratios: Chain = [0.3, 0.5]
    """Fraction of the original channels that is removed after each pruning iteration: assistants, then the student."""


class AssistantCount(Distilling):
    """`04_assistant_count` (Section 4.4.4, Fig. 8)."""

    seeds: Seeds = [0, 1]
    ratios: Chain = [0.3, 0.5, 0.6, 0.65]
    """Those of `03_components`, so that what it trains is found in the store, and further ones."""


class Datasets(Distilling):
    """`05_datasets` (Section 4.5, Tables 2-4)."""

    sparsity: Number = 2e-3
    ratios: Ratios = [0.5]
    """Fraction of the original channels that is removed from each compressed model; none: the original alone."""
    cases: Cases = {
        "yolov4": {"detector": "yolov4", "ratios": [0.5, 0.8], **QUICK["yolov4"]},
        "yolov3": {"detector": "yolov3", "ratios": [0.4, 0.7], **QUICK["yolov3"]},
        "yolov4-tiny": {"sparsity": 5e-3},
        "yolov3-spp": {"detector": "yolov3-spp", "ratios": [], **QUICK["yolov3-spp"]},
    }


class PruningMethods(Settings):
    """`06_pruning_methods` (Section 4.6, Table 5)."""

    seeds: Seeds = [0, 1]
    workers: Threads = 2
    size_share: Ratio = 0.3
    """Size to which every criterion prunes, as a fraction of the original size."""
    compute_share: Ratio | None = None
    """Multiply-accumulates to which scale factors, L1 norms and Taylor's criterion prune in a second comparison, as a
    fraction of the original ones; none: there is no second comparison."""


class Detectors(Distilling):
    """`07_detectors` (Section 4.7, Table 6)."""

    sparsity: Number = 1e-3
    ratio: Ratio = 0.5
    """Fraction of the original channels that is removed from the compressed model."""
    cases: Cases = {
        "faster-rcnn-resnet101": {"detector": "faster-rcnn-resnet101", "ratio": 0.9, **QUICK["faster-rcnn-resnet101"]},
        "centernet-resnet50": {"detector": "centernet-resnet50", "ratio": 0.5, **QUICK["centernet-resnet50"]},
    }


class CpuTiming(Settings):
    """`08_cpu_timing` (Section 4.8, Table 7)."""

    width: WidthFactor = 0.25
    image_size: ImageSize = 256
    round_to: Count = 8
    trained: bool = False
    """Train the detectors first; else their scale factors are drawn at random, since time depends on shapes alone."""
    ratio: Ratio = 0.5
    """Fraction of the channels that is removed from the compressed model."""
    compute_share: Ratio | None = None
    """Multiply-accumulates to which the compressed model is pruned instead, as a fraction of the original ones."""
    layers: Annotated[int, Field(ge=0, le=limits.LARGEST_COUNT)] = 0
    """Number of residual blocks removed from a model that keeps all its channels; 0: there is no such model."""
    runtimes: Annotated[list[Runtime], Field(min_length=1)] = ["torch", "onnxruntime", "openvino"]
    reduced: bool = True
    """Also time 8-bit integers in ONNX Runtime and, where the processor has it, bfloat16 in OpenVINO."""
    timed_threads: Threads = 1
    """Threads of a runtime while it is timed."""
    rounds: Count = 3
    """How often the models are timed in turn; a time is the median."""
    seconds: PositiveNumber = 0.2
    """Shortest duration of one timing, in seconds."""
    cases: Cases = {
        "yolov3": {"detector": "yolov3", "ratio": 0.7, "layers": 10},
        "yolov4": {"detector": "yolov4", "ratio": 0.8, "layers": 10},
        "yolov4-tiny": {"ratio": 0.5},
    }

    @property
    def has_metrics(self) -> bool:
        """Return whether the detectors are trained: others find nothing."""
        return self.trained


DynamicRow = Literal[
    "GD, foreground only", "GD, q = 1", "GD, q = 1/4", "GD, q = 1/8",
    "ISD, all instances", "ISD, correct instances", "ISD, split masks",
    "DKD, all boxes alike", "DKD, boxes of the truth", "DKD, smooth L1 by status", "DKD, L1 to the teacher",
    "DKD, bound (Eq. 12)",
    "KD", "Eqs. 10–12", "FitNets", "FGFI", "DeFeat", "FGD", "GID", "DKD through the assistant",
]  # fmt: skip
"""Rows of the tables of `09_dynamic_distillation` other than the first."""


class DynamicDistillation(Distilling, DynamicWeights):
    """`09_dynamic_distillation` (DKD). The teacher is trained to the end, so that there is something to learn."""

    seeds: Seeds = [0, 1]
    teacher_times: Annotated[float, Field(ge=1.0, le=10.0)] = 2.0
    """How many times as many epochs the teacher is trained as in the other notebooks."""
    fine_tune_epochs: Count = 3
    ratios: Chain = [0.4, 0.65]
    """Fraction of the original channels that is removed after each pruning iteration: an assistant, then the student,
    which must lose several points even after fine-tuning."""
    longer: Annotated[float, Field(ge=1.0, le=10.0)] = 1.4
    """How many times as many epochs the control is fine-tuned, so that it takes as long as a distillation."""
    rows: list[DynamicRow] = ["ISD, all instances", "KD"]
    """Rows of the other tables that are run."""
    row_seeds: Count = 1
    """Number of seeds, the first ones, with which these rows are run."""


class PartnerLearning(Distilling):
    """`10_partner_learning` (BPL): scenes by a ResNet, and the detector of `03_components`."""

    seeds: Seeds = [0, 1, 2]
    detector_seeds: Count = 2
    """Number of seeds, the first ones, with which the detector is trained: those of `03_components`."""
    detector: NetworkName = "yolov4-tiny"
    """Name of the detector, or of the classifier of scenes."""
    stem_stride: Literal[2, 4] | None = None
    """By how much a ResNet reduces the image before its first stage; none: the usual factor, 4."""
    keep_rate: Ratio = 0.3
    """Fraction of its filters that every layer of the classifier keeps; 0.3 is that of the paper's 73.97 %."""
    keep_rates: Annotated[Ratios, Field(min_length=1)] = [0.3, 0.5]
    """Keep rates that are compared with each other."""
    diversity_weight: Number = 0.01
    """Weight of the diversity loss; 0.01 in the public code."""
    public_start: bool = False
    """Also train from random weights with partners that start as in the public code."""
    more_rivals: bool = False
    """Also prune by gamma, and distil from the unpruned network (KD): the rivals that no claim names."""
    acnet: bool = False
    """Train the branches of ACNet as one more rival."""
    ratios: Chain = [0.3, 0.5]
    """Those of `03_components`, for the detector."""
    cases: Cases = {
        "scenes": {
            "dataset": "toy-scenes", "detector": "resnet50", "width": 0.125, "depth": 0.1, "image_size": 64,
            "epochs": 6, "batch_size": 32, "ema": 0.0,
        },
        "aerial": {},
    }  # fmt: skip

    @property
    def blueprint_options(self) -> dict[str, Any]:
        """Return the stride of the stem, which only a ResNet classifier has."""
        return super().blueprint_options | {"stem_stride": self.stem_stride}


class Scoreboard(Common):
    """`99_claims`: only the scale can be chosen."""


NOTEBOOKS: dict[str, type[Common]] = {
    "00_start_here": StartHere,
    "01_scale_factor": ScaleFactor,
    "02_pruning_ratio": PruningRatio,
    "03_components": Components,
    "04_assistant_count": AssistantCount,
    "05_datasets": Datasets,
    "06_pruning_methods": PruningMethods,
    "07_detectors": Detectors,
    "08_cpu_timing": CpuTiming,
    "09_dynamic_distillation": DynamicDistillation,
    "10_partner_learning": PartnerLearning,
    "99_claims": Scoreboard,
}


def validate_settings(notebook: str, values: dict[str, Any], place: str = "parameters") -> Common:
    """Return the settings of a notebook, made from plain values.

    Raises:
        ValueError: an unknown notebook or key, or a value of the wrong type or range; one line naming each fault.
    """
    if notebook not in NOTEBOOKS:
        raise ValueError(f"unknown notebook {notebook!r}; known: {', '.join(NOTEBOOKS)}")
    return check_values(NOTEBOOKS[notebook], place, **values)


def profile_path(notebook: str, profile: str) -> Path:
    """Return the path of a notebook's profile."""
    return source_root() / "notebooks" / "profiles" / profile / f"{notebook}.yaml"


def load_profile(notebook: str, path: Path) -> Common:
    """Return the settings of a notebook, read from a profile file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file, the key and the fault. A profile must name its folder.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such profile")
    settings = validate_settings(notebook, files.read_mapping(path), str(path))
    # The results of a copied profile would take the place of another scale's.
    if settings.profile != (scale := path.absolute().parent.name):
        raise ValueError(f"{path}: profile: {settings.profile}, but its folder is {scale}; write `profile: {scale}`")
    return settings
