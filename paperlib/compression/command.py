"""`paperlib compress`: check everything, run Algorithm 1 on anyone's data, hand over the student and its report."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from paperlib import files
from paperlib.compression.report import Report
from paperlib.costs import cost
from paperlib.data import load_dataset
from paperlib.data.records import Dataset
from paperlib.deploy.latency import RUNTIMES, export_for_timing, latency
from paperlib.deploy.onnx import export_onnx
from paperlib.detectors import USUAL_SIDE, build_detector, transfer_coco_weights, usual_anchors
from paperlib.detectors.files import load_detector, save_detector
from paperlib.figures import tables
from paperlib.progress.display import show_progress
from paperlib.progress.report import begin_step, expect_work, plan_work
from paperlib.store.provenance import describe_machine, make_certificate
from paperlib.store.store import Store
from paperlib.training.recipe import Recipe
from paperlib.workbench import algorithm_1
from paperlib.workbench.algorithm_1 import Compressed
from paperlib.workbench.lineage import training_seconds
from paperlib.workbench.options import Blueprint, Compression
from paperlib.workbench.steps import Model, Workbench, weights_digest

PROGRESS_LOG = "progress.log"
"""The file that gets a line for each step and epoch, with its time."""
EXPORT_SECONDS = 15.0
"""Expected time to write one detector as ONNX, for the progress display."""
STEPS = "steps"
"""The folder of finished steps, inside the folder that is handed over."""
GAMMA_LEVEL = 0.5
"""Where the paper's scale factors start; those of official weights are brought there, their function unchanged."""


@dataclass(frozen=True)
class Order:
    """What somebody wants compressed.

    Attributes:
        data, val: COCO files; `images`, `val_images`: their folders of images, by default the files' own.
        detector: a key of `DETECTORS`, built at `width` and `depth`.
        weights: a `.safetensors` file of `pl.save_detector` to start from, or a Darknet file of COCO weights.
        recipe: of the sparse training, with the first seed.
        settings: of Algorithm 1.
        out: the folder to fill.
        seeds: how often all is done, each time with the next seed; the first student is handed over.
        controls: whether the student's rivals are trained, too.
        timing_seconds: how long each latency is measured.
    """

    data: Path
    val: Path
    images: Path | None
    val_images: Path | None
    detector: str
    width: float
    depth: float
    weights: Path | None
    recipe: Recipe
    settings: Compression
    out: Path
    seeds: int = 1
    controls: bool = False
    timing_seconds: float = 2.0

    @property
    def comes_trained(self) -> bool:
        """Whether `weights` hold a whole detector of this package."""
        return self.weights is not None and self.weights.suffix == ".safetensors"


def deliver(order: Order) -> int:
    """Carry out an order and fill its folder; the same order continues what was interrupted.

    Written last, `provenance.json` says that the folder is complete. All files but it, `timing.json` and what the
    reports take from that are the same, bit for bit, however often the work was interrupted.

    Returns:
        The exit status: 0, 1 if the student could not be written as ONNX, 130 if interrupted.

    Raises:
        ValueError, FileNotFoundError: a fault of data, weights or settings, before any training.
    """
    began = time.perf_counter()
    try:
        with show_progress(order.out / PROGRESS_LOG):
            plan_work(0, seconds=EXPORT_SECONDS + _timing_seconds(order))
            train, val = read(order)
            runs = [_compress(order, train, val, number) for number in range(order.seeds)]
            faults = hand_over(order, runs, began)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues where this stopped.", flush=True)
        return 130
    student = runs[0][0].chain[-1]
    print(f"{order.out}: {student.cost.size_mb:.3g} MB, mAP {100 * student.metrics.map50:.1f} %. Open report.html.")
    for fault in faults:
        print(f"paperlib: {fault}", file=sys.stderr)
    return 1 if faults else 0


def read(order: Order) -> tuple[Dataset, Dataset]:
    """Both data sets, every image of them read, and whatever else can be wrong found out.

    Raises:
        ValueError, FileNotFoundError: one line names file, place and fault.
    """
    if order.out.exists() and not order.out.is_dir():
        raise ValueError(f"{order.out}: is a file, not a folder")
    detector, side = _first(order), order.recipe.image_size
    algorithm_1.check_detector(detector, side)
    train = load_dataset(f"coco:{order.data}", "train", root=order.images)
    val = load_dataset(f"coco:{order.val}", "val", root=order.val_images or order.images)
    train.name, val.name = str(order.data), str(order.val)
    algorithm_1.check_data(train, val)
    if order.comes_trained:
        algorithm_1.check_classes(detector, train)
    else:
        detector = build_detector(order.detector, len(train.classes), width=order.width, depth=order.depth)
    target, weight = order.settings.target_mb, cost(detector, side).size_mb
    if target and weight <= target:
        raise ValueError(f"--target-mb {target:g}: the detector has {weight:.3g} MB as it is")
    known = {record.image.resolve() for record in train.records}
    if shared := next((record for record in val.records if record.image.resolve() in known), None):
        raise ValueError(
            f"{val.name}: image {shared.name} is also in {train.name}; nothing is judged by what it learned"
        )
    begin_step("read the images")
    for data in (train, val):
        data.letterboxed(side)
    return train, val


def hand_over(order: Order, runs: list[tuple[Compressed, dict[str, Model]]], began: float) -> list[str]:
    """Write all that was promised into the order's folder; what could not be written is said."""
    compressed, _ = runs[0]
    bench, student, out = compressed.bench, compressed.student, order.out
    (out / "provenance.json").unlink(missing_ok=True)
    frame = judged(runs)
    save_detector(student, out / "student.safetensors")
    faults = _export(order, compressed)
    files.write_text_atomically(out / "table.csv", tables.render_table(compressed.table)["csv"])
    files.write_json_atomically(out / "metrics.json", _metrics(compressed, frame))
    timing = _timing(order, compressed)
    unseen = [name for name, count in bench.validation.box_counts().items() if not count]
    notes = list(faults)
    if unseen:
        notes.append(f"Without boxes in validation, so that nobody knows how well they are found: {', '.join(unseen)}.")
    if compressed.stages[0].tuned.map50 <= order.settings.max_drop < 1:
        notes.append("Accuracy could not stop the pruning: the trained detector's mAP is not above the drop allowed.")
    name = student.build_arguments["name"]
    report = Report(name, compressed, order.settings, frame, timing, notes, order.comes_trained)
    files.write_text_atomically(out / "report.md", report.render_markdown())
    files.write_text_atomically(out / "report.html", report.render_html())
    files.write_json_atomically(out / "provenance.json", _provenance(order, runs, time.perf_counter() - began))
    return faults


def judged(runs: list[tuple[Compressed, dict[str, Model]]]) -> pd.DataFrame:
    """One row a model and seed, judged on validation images: teacher, student and its rivals."""
    rows = []
    for compressed, rivals in runs:
        bench, first, last = compressed.bench, compressed.chain[0], compressed.chain[-1]
        models = {"original, sparsely trained": first.model, "student, before distillation": last.model}
        for name, model in ({**models, "student": last.final} | rivals).items():
            price, metrics = cost(model.detector(), bench.recipe.image_size), bench.evaluate(model, "val")
            headline = {metric: getattr(metrics, metric) for metric in tables.METRICS}
            row = {"model": name, "seed": bench.recipe.seed, "mb": price.size_mb, "gmacs": price.gmacs}
            rows.append(row | headline)
    return pd.DataFrame(rows)


def _first(order: Order) -> nn.Module:
    """What is started from, as far as can be told without data."""
    if order.weights and not order.weights.is_file():
        raise FileNotFoundError(f"{order.weights}: no such weights file")
    if not order.comes_trained:
        detector = build_detector(order.detector, 1, width=order.width, depth=order.depth)
        if order.weights:
            transfer_coco_weights(detector, order.weights)
        return detector
    detector = load_detector(order.weights)
    if (name := detector.build_arguments["name"]) != order.detector:
        raise ValueError(f"{order.weights}: is a {name}, not a {order.detector}")
    return detector


def _compress(order: Order, train: Dataset, val: Dataset, number: int) -> tuple[Compressed, dict[str, Model]]:
    recipe = order.recipe.model_copy(update={"seed": order.recipe.seed + number})
    bench = algorithm_1.workbench(train, val, recipe, order.settings, Store(order.out / STEPS), _blueprint(order))
    given = bench.adopt_detector(load_detector(order.weights)) if order.comes_trained else bench.build_detector()
    seeds_after_this = order.seeds - number - 1
    expect_work(0, later=seeds_after_this * algorithm_1.most_epochs(bench, order.settings, rivals=order.controls))
    compressed = algorithm_1.algorithm_1(bench, given, order.settings, rivals=order.controls)
    return compressed, algorithm_1.controls(compressed) if order.controls else {}


def _blueprint(order: Order) -> Blueprint | None:
    if order.comes_trained:
        return None
    if order.weights:
        anchors = usual_anchors(order.detector)
        return Blueprint(order.detector, order.width, order.depth, anchors, order.weights, GAMMA_LEVEL)
    anchors = usual_anchors(order.detector, scale=order.recipe.image_size / USUAL_SIDE)
    return Blueprint(order.detector, order.width, order.depth, anchors)


def _export(order: Order, compressed: Compressed) -> list[str]:
    """Write the student as ONNX. Hours of training are not thrown away because that fails."""
    path, bench = order.out / "student.onnx", compressed.bench
    begin_step("write student.onnx", seconds=EXPORT_SECONDS)
    path.unlink(missing_ok=True)
    try:
        export_onnx(compressed.student, path, bench.recipe.image_size, classes=bench.train_set.classes)
    except Exception as error:  # exporter and runtime have exceptions of their own, with no base in common
        return [f"student.onnx is missing: {' '.join(str(error).split())}"]
    return []


def _metrics(compressed: Compressed, frame: pd.DataFrame) -> dict[str, Any]:
    stages = [
        {"model": stage.name, "role": stage.role, "channels": stage.channels, "cost": asdict(stage.cost),
         "fine_tuned": stage.tuned.to_dict(), "distilled": stage.distilled[1].to_dict() if stage.distilled else None}
        for stage in compressed.stages
    ]  # fmt: skip
    return {"stopped": compressed.stopped, "stages": stages, "models": frame.to_dict("records")}


def _timing(order: Order, compressed: Compressed) -> dict[str, Any]:
    """What clocks say: measured once, then remembered in `timing.json` for as long as the models are these."""
    path, first, last = order.out / "timing.json", compressed.chain[0].final, compressed.chain[-1].final
    of = {"before": first.digest, "after": last.digest, "seconds": order.timing_seconds}
    if path.is_file() and (known := files.read_json(path))["of"] == of:
        return known
    with tempfile.TemporaryDirectory(prefix="paperlib-") as folder:
        times = _latencies(order, compressed.bench, {"before": first, "after": last}, Path(folder))
    timing = {"of": of, "machine": describe_machine(), "latency": times, **_pace(compressed)}
    files.write_json_atomically(path, timing)
    return timing


def _timing_seconds(order: Order) -> float:
    models = 2
    return models * (EXPORT_SECONDS + len(RUNTIMES) * order.timing_seconds)


def _latencies(order: Order, bench: Workbench, models: dict[str, Model], folder: Path) -> list[dict[str, Any]]:
    """One row per runtime and model; files for the runtimes go to `folder`."""
    side, rows = bench.recipe.image_size, []
    detectors = {name: model.detector() for name, model in models.items()}
    begin_step("export for timing", seconds=len(models) * EXPORT_SECONDS)
    exported = {name: export_for_timing(each, folder, side, name) for name, each in detectors.items()}
    for runtime in RUNTIMES:
        for name, detector in detectors.items():
            begin_step(f"time {runtime}", seconds=order.timing_seconds)
            options = {"threads": 1, "seconds": order.timing_seconds, "exported": exported[name]}
            rows.append({"model": name, **asdict(latency(detector, side, runtime=runtime, **options))})
    return rows


def _pace(compressed: Compressed) -> dict[str, Any]:
    """How long the epochs of each training took, and how many times longer with a teacher than without."""
    rows, shares = [], []
    for stage in compressed.stages:
        alone = _seconds(stage.model)
        rows.append({"training": "sparse" if stage.role == "teacher" else "fine-tuning", "model": stage.name, **alone})
        if stage.distilled:
            taught = _seconds(stage.distilled[0])
            rows.append({"training": "distillation", "model": stage.name, **taught})
            shares.append(taught["seconds an epoch"] / max(alone["seconds an epoch"], 1e-9))
    return {"training": rows, "teacher_cost": sum(shares) / len(shares) if shares else None}


def _seconds(model: Model) -> dict[str, Any]:
    """Median time of the epochs of a training, those apart after which it was validated."""
    history = model.history()
    plain = history[history["map50"].isna()]
    counted = plain if len(plain) else history
    return {"epochs": len(history), "seconds an epoch": float(counted["seconds"].median())}


def _provenance(order: Order, runs: list[tuple[Compressed, dict[str, Model]]], seconds: float) -> dict[str, Any]:
    bench = runs[0][0].bench
    settings = {name: value for name, value in vars(order).items() if name not in ("recipe", "settings", "out")}
    chosen = {"recipe": bench.recipe, "fine_tuning": bench.fine_tuning, "compression": order.settings}
    models = [m for made, rivals in runs for m in (*(s.final for s in made.stages), made.given, *rivals.values())]
    return make_certificate(
        settings={**settings, **{name: value.model_dump() for name, value in chosen.items()}},
        data_digest={"train": bench.train_set.digest, "val": bench.validation.digest},
        weights_digest={order.weights.name: weights_digest(order.weights)} if order.weights else {},
        seeds=[compressed.bench.recipe.seed for compressed, _ in runs],
        wall_seconds=seconds,
        training_seconds=training_seconds(model.folder for model in models),
        steps=sorted({model.digest for model in models}),
    )
