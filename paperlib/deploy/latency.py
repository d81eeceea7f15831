"""The time that one image takes (Section 4.7) in PyTorch, ONNX Runtime and OpenVINO; suppression is timed apart."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from paperlib.deploy.onnx import INPUT, Deployable, ImageSize, OneStage, export_onnx, make_deployable, open_onnx_session
from paperlib.deploy.openvino_runtime import compile_openvino, multiplies_bfloat16
from paperlib.progress.report import track_items

RUNTIMES = ("torch", "onnxruntime", "openvino")
FLOAT32 = "float32"
REDUCED = {"onnxruntime": "int8", "openvino": "bfloat16"}
"""By runtime, the precision in which it computes faster than in float32."""
UNTRAINED_TOLERANCE = 0.05
"""Rounding errors are larger in deep networks with random weights (see `export_onnx`); they do not affect the time."""


def installed_runtimes() -> list[str]:
    """Return those of `RUNTIMES` whose package is installed."""
    return [runtime for runtime in RUNTIMES if find_spec(runtime)]


@dataclass(frozen=True)
class Latency:
    """The time that one image takes.

    Attributes:
        median_ms: milliseconds from pixels to boxes and scores; for a two-stage detector, to the final detections;
            for a classifier, to the logits.
        iqr_ms: interquartile range of the runs, in milliseconds.
        nms_ms: milliseconds for selecting the detections among those boxes, in PyTorch; None for a two-stage detector,
            whose median includes it, and for a classifier.
        runs: number of runs.
        runtime: `torch` (eager), `onnxruntime` or `openvino`.
        threads: number of threads of the runtime.
        image_size: `(H, W)` in pixels.
    """

    median_ms: float
    iqr_ms: float
    nms_ms: float | None
    runs: int
    runtime: str
    threads: int
    image_size: tuple[int, int]


def latency(
    detector: nn.Module,
    image_size: ImageSize = 800,
    *,
    runtime: str = "torch",
    threads: int = 1,
    image: Tensor | None = None,
    seconds: float = 2.0,
    exported: Path | None = None,
) -> Latency:
    """Time a detector on one image, in float32 on the CPU.

    Args:
        detector: pruned or not; untouched.
        image_size: size of the image.
        runtime: one of `RUNTIMES`.
        threads: number of threads of the runtime.
        image: `[3, H, W]` in [0, 1]; random by default. Its content affects the time of suppression and second stages.
        seconds: least duration of the measurement.
        exported: the file of `export_for_timing`, for runtimes that read files; by default it is written and deleted.

    Raises:
        ValueError: the runtime is unknown, `threads` is < 1, the image has another size, or the detector cannot be
            exported.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"unknown runtime {runtime!r}; known: {', '.join(RUNTIMES)}")
    if threads < 1:
        raise ValueError(f"threads {threads} must be ≥ 1")
    network = make_deployable(detector, image_size)
    if image is None:
        image = torch.rand(3, *network.image_size, generator=torch.Generator().manual_seed(0))
    images = image[None]
    if images.shape != (1, 3, *network.image_size):
        raise ValueError(f"the image is {list(images.shape[1:])}, not {[3, *network.image_size]}")
    with tempfile.TemporaryDirectory(prefix="paperlib-") as folder:
        if runtime == "torch":
            timer = make_torch_timer(network, images, threads)
        else:
            exported = exported or export_for_timing(detector, Path(folder), image_size)
            timer = make_file_timer(exported, images, runtime, threads)
        times = timer.blocked_autorange(min_run_time=seconds)
    nms_ms = None
    if isinstance(network, OneStage):
        nms_ms = 1e3 * make_selection_timer(network, images, threads).blocked_autorange(min_run_time=seconds / 4).median
    runs = len(times.times) * times.number_per_run
    return Latency(1e3 * times.median, 1e3 * times.iqr, nms_ms, runs, runtime, threads, network.image_size)


def compare_latencies(
    detectors: Mapping[str, nn.Module],
    image_size: ImageSize,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    reduced: bool = False,
    threads: int = 1,
    rounds: int = 7,
    seconds: float = 0.3,
) -> pd.DataFrame:
    """Time detectors in turns, and return one row for each (see `time_in_turns`).

    Returns:
        A table with `model`, `runtime`, `precision`, `ms` (median over the rounds of each turn's median) and `iqr_ms`
        (interquartile range over the rounds); without non-maximum suppression for one-stage detectors.
    """
    times = time_in_turns(
        detectors, image_size, runtimes=runtimes, reduced=reduced, threads=threads, rounds=rounds, seconds=seconds
    )
    spread = times.quantile(0.75) - times.quantile(0.25)
    rows = [(*key, times[key].median(), spread[key]) for key in times]
    return pd.DataFrame(rows, columns=["model", "runtime", "precision", "ms", "iqr_ms"])


def time_in_turns(
    detectors: Mapping[str, nn.Module],
    image_size: ImageSize,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    reduced: bool = False,
    threads: int = 1,
    rounds: int = 7,
    seconds: float = 0.3,
) -> pd.DataFrame:
    """Time detectors in turns, so that whatever slows the machine down affects all of them.

    Args:
        detectors: by name; untouched.
        image_size: size of the one image, which has random pixels.
        runtimes: some of `RUNTIMES`.
        reduced: also time the precisions of `REDUCED` that the processor has.
        threads: number of threads of each runtime.
        rounds: number of turns of each detector.
        seconds: least duration of a turn.

    Returns:
        A row for each round and a column for each `(model, runtime, precision)`: the turn's median in milliseconds.
    """
    lower = {runtime: REDUCED[runtime] for runtime in runtimes if reduced and _can_reduce(runtime)}
    timers = {}
    with tempfile.TemporaryDirectory(prefix="paperlib-") as folder:
        for number, (name, detector) in enumerate(detectors.items()):
            network = make_deployable(detector, image_size)
            images = torch.rand(1, 3, *network.image_size, generator=torch.Generator().manual_seed(0))
            for runtime in runtimes:
                if runtime == "torch":
                    timers[name, runtime, FLOAT32] = make_torch_timer(network, images, threads)
                    continue
                file = Path(folder) / f"{number}.onnx"
                if not file.exists():
                    export_for_timing(detector, file.parent, image_size, file.stem)
                for precision in (FLOAT32, *([lower[runtime]] if runtime in lower else [])):
                    timer = make_file_timer(file, images, runtime, threads, precision)
                    timers[name, runtime, precision] = timer
    turns = [
        {key: 1e3 * timer.blocked_autorange(min_run_time=seconds).median for key, timer in timers.items()}
        for _ in track_items(range(rounds), "timing")
    ]
    return pd.DataFrame(turns)


def compute_realised_savings(times: pd.DataFrame, gmacs: Mapping[str, float], baseline: str) -> pd.DataFrame:
    """Compute the fraction of the saved multiply-accumulates that becomes saved time.

    Args:
        times: the table of `compare_latencies`.
        gmacs: 10^9 multiply-accumulates by model.
        baseline: the model with which the others are compared.

    Returns:
        `times`, and for each row `gmacs`, `speedup` (how many times faster than the baseline in float32 in the same
        runtime), `macs_saved` and `time_saved` (fractions of the baseline's), and `realised` (the latter divided by the
        former; NaN for the baseline itself, and in other precisions, which save time without saving operations).
    """
    table = times.assign(gmacs=[gmacs[model] for model in times["model"]])
    of_baseline = table[(table["model"] == baseline) & (table["precision"] == FLOAT32)]
    baseline_ms = dict(zip(of_baseline["runtime"], of_baseline["ms"], strict=True))
    table["speedup"] = [baseline_ms[runtime] for runtime in table["runtime"]] / table["ms"]
    table["macs_saved"] = 1 - table["gmacs"] / gmacs[baseline]
    table["time_saved"] = 1 - 1 / table["speedup"]
    # Without savings the ratio has no meaning: NaN for the baseline and for larger models.
    saved = table["macs_saved"].where((table["macs_saved"] > 0) & (table["precision"] == FLOAT32))
    return table.assign(realised=table["time_saved"] / saved)


def export_for_timing(detector: nn.Module, folder: Path, image_size: ImageSize, name: str = "detector") -> Path:
    """Write an ONNX file for one image, `<name>.onnx` in `folder`, and return its path."""
    path = folder / f"{name}.onnx"
    export_onnx(detector, path, image_size, batch_size=1, tolerance=UNTRAINED_TOLERANCE)
    return path


def make_torch_timer(network: Deployable, images: Tensor, threads: int) -> Timer:
    """Make a timer for `network` in eager PyTorch; weights and `[1, 3, H, W]` images in channels-last order."""
    network = network.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    return _timer(lambda: network(images), threads)


def make_file_timer(path: Path, images: Tensor, runtime: str, threads: int, precision: str = FLOAT32) -> Timer:
    """Make a timer for an ONNX file in `onnxruntime` or `openvino`, on `[1, 3, H, W]` images.

    Args:
        path: a file in float32; for `int8` a copy is made beside it, whose ranges come from these images alone. It
            detects nothing, and takes as long as one that is calibrated on many.
        images: what is timed.
        runtime: `onnxruntime` or `openvino`.
        threads: number of threads of the runtime.
        precision: `float32`, or the one that `REDUCED` names for the runtime.
    """
    pixels = images.numpy()
    if runtime == "onnxruntime":
        if precision != FLOAT32:
            from paperlib.deploy.int8 import write_for_timing  # needs the extra `runtimes`

            path = write_for_timing(path, pixels)
        session = open_onnx_session(path, threads)
        return _timer(lambda: session.run(None, {INPUT: pixels}), threads)
    request = compile_openvino(path, threads, "f32" if precision == FLOAT32 else "bf16").create_infer_request()
    # Shared, because copies of images and outputs are no part of the network's time.
    return _timer(lambda: request.infer([pixels], share_inputs=True, share_outputs=True), threads)


def _can_reduce(runtime: str) -> bool:
    """Return whether the runtime computes in its lower precision on this processor."""
    return runtime == "onnxruntime" or (runtime == "openvino" and multiplies_bfloat16())


def make_selection_timer(network: OneStage, images: Tensor, threads: int) -> Timer:
    """Make a timer for what `detector(images)` does after `decode`: thresholds and non-maximum suppression."""
    with torch.inference_mode():
        outputs = network.detector.head_outputs(images)
        decoded = network.detector.decode(outputs, network.image_size)
    # A detector whose head outputs are ready: only the selection remains of its forward pass.
    ready = copy.copy(network.detector)
    ready.head_outputs = lambda batch: outputs
    ready.decode = lambda *args, **options: decoded
    return _timer(lambda: ready(images), threads)


def _timer(run: Callable[[], object], threads: int) -> Timer:
    return Timer("run()", globals={"run": torch.inference_mode()(run)}, num_threads=threads)
