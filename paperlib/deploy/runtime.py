"""Detectors from files, run by PyTorch, ONNX Runtime or OpenVINO behind one calling convention."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.deploy.description import Description, load_description, read_properties
from paperlib.deploy.onnx import INPUT, open_onnx_session
from paperlib.deploy.openvino_runtime import compile_openvino
from paperlib.deploy.selection import SELECTED, add_selection
from paperlib.detectors.files import load_detector
from paperlib.detectors.suppression import suppress_non_maxima
from paperlib.extras import needs_extra
from paperlib.files import replace_file
from paperlib.paths import models_root

Runtime = Literal["torch", "onnxruntime", "openvino"]


@dataclass(frozen=True)
class OpenModel:
    """A detector from a file, in evaluation mode.

    Attributes:
        name: the file, for messages.
        detector: has the calling convention of this package's detectors.
        description: what the file says of its use; None if it says nothing.
    """

    name: str
    detector: nn.Module
    description: Description | None


class FileDetector(nn.Module):
    """An ONNX file with the calling convention of a detector in evaluation mode."""

    def __init__(self, description: Description, run: Callable[[np.ndarray], list[np.ndarray]]) -> None:
        super().__init__()
        self.description = description
        self.num_classes = len(description.classes)
        self.fixed_size = description.image_size
        self._run = run
        # Evaluation asks the parameters of a detector for the device and the type of its images.
        self.kind = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Map float images `[B, 3, S, S]` in [0, 1] to per image `boxes` `[N, 4]` xyxy pixels, `labels`, `scores`."""
        size = (images.shape[2], images.shape[3])
        found = []
        for image in images:
            outputs = [torch.from_numpy(output) for output in self._run(image[None].contiguous().numpy())]
            found.append(self._select(outputs, size))
        return found

    def _select(self, outputs: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        if len(outputs) > 2:  # a network with its own selection
            boxes, labels, scores = outputs[:3]
            return {"boxes": boxes, "labels": labels, "scores": scores}
        boxes, scores = outputs
        if self.description.selection == "peaks":
            scores = _keep_peaks(scores, size)
        use = self.description
        limits = (use.score_threshold, use.nms_iou, use.max_detections)
        return suppress_non_maxima(boxes[0], scores[0], size, *limits)


def open_model(path: str | Path, runtime: Runtime | None = None, threads: int | None = None) -> OpenModel:
    """Open a detector file to detect with it.

    Args:
        path: `.safetensors` of `save_detector`, or `.onnx` of `export_onnx`; or the name of a file in the folder of
            models, such as `vhr10-tiny-small` (see `paperlib.paths.models_root`).
        runtime: for ONNX files `onnxruntime` (the default) or `openvino`; `torch` for the others.
        threads: number of threads of ONNX Runtime or OpenVINO; by default those of PyTorch.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no detector, or the runtime does not run files of its kind.
    """
    path = _find_model(Path(path))
    if path.suffix == ".safetensors":
        if runtime not in (None, "torch"):
            raise ValueError(f"{path}: {runtime} runs ONNX files; write one with `paperlib export`")
        return OpenModel(str(path), load_detector(path), load_description(path))
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: is no model file (.safetensors or .onnx)")
    if runtime == "torch":
        raise ValueError(f"{path}: PyTorch runs .safetensors files, not ONNX")
    description = _read_onnx_description(path)
    open_file = _open_openvino if runtime == "openvino" else _open_onnxruntime
    run = open_file(path, threads or torch.get_num_threads())
    return OpenModel(str(path), FileDetector(description, run).eval(), description)


def _find_model(path: Path) -> Path:
    """Return the file of a model that is given as a path or by its name."""
    if path.is_file():
        return path
    known = {file.stem: file for suffix in (".onnx", ".safetensors") for file in models_root().glob(f"*{suffix}")}
    if str(path) in known:
        return known[str(path)]
    names = "" if path.suffix in (".onnx", ".safetensors") or not known else f"; by name: {', '.join(sorted(known))}"
    raise FileNotFoundError(f"{path}: no such model file{names}")


def include_selection(path: Path) -> None:
    """Rewrite the ONNX file of a one-stage detector so that it selects its detections (see `add_selection`)."""
    with needs_extra("runtimes"):
        import onnx

    use = _read_onnx_description(path)
    joined = add_selection(
        onnx.load(path), (use.image_size, use.image_size), iou=use.nms_iou, peaks=use.selection == "peaks",
        threshold=use.score_threshold, most=use.max_detections,
    )  # fmt: skip
    with replace_file(path) as partial:
        onnx.save(joined, partial)


def _read_onnx_description(path: Path) -> Description:
    with needs_extra("runtimes"):
        import onnx
        from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ValueError(f"{path}: is no whole ONNX file") from error
    names = [value.name for value in model.graph.output]
    if names not in (["boxes", "scores"], list(SELECTED[:3]), list(SELECTED)):
        raise ValueError(f"{path}: is no detector of `paperlib export`: its outputs are {', '.join(names)}")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    sides = json.loads(properties.get("image_size", "[]"))
    if len(set(sides)) != 1:
        raise ValueError(f"{path}: is not for square images: {sides}")
    return read_properties(properties | {"image_size": json.dumps(sides[0])}, path)


def _open_onnxruntime(path: Path, threads: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    session = open_onnx_session(path, threads)
    return lambda images: [np.asarray(output) for output in session.run(None, {INPUT: images})]


def _open_openvino(path: Path, threads: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    compiled = compile_openvino(path, threads)
    return lambda images: [np.array(value) for value in compiled(images).to_tuple()]


def _keep_peaks(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Set scores `[1, R, C]` of a heat map's cells, line by line, to 0 where a neighbour has a higher score."""
    stride = math.isqrt(size[0] * size[1] // scores.shape[1])
    heatmap = scores.transpose(1, 2).unflatten(2, (size[0] // stride, size[1] // stride))
    peaks = F.max_pool2d(heatmap, 3, 1, 1) == heatmap
    return (heatmap * peaks).flatten(2).transpose(1, 2)
