"""The files that `paperlib compress` writes: detector, ONNX, tables, metrics, timing, reports, provenance."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pandas as pd

from paperlib import files
from paperlib.compression.final_test import INT8, FinalTest, judge_test
from paperlib.compression.report import SCRIPT, TEMPLATES, Report
from paperlib.compression.request import CompressRequest
from paperlib.costs import cost
from paperlib.deploy.description import Description, describe_selection
from paperlib.deploy.latency import export_for_timing, installed_runtimes, latency
from paperlib.deploy.onnx import export_onnx
from paperlib.deploy.runtime import include_selection
from paperlib.detectors.files import save_detector
from paperlib.figures import tables
from paperlib.partners.extend import skipped_convolutions
from paperlib.progress.report import begin_step
from paperlib.store.contents import read_sealed, seal_record
from paperlib.store.provenance import describe_machine, make_certificate, package_version
from paperlib.training.recipe import Recipe
from paperlib.workbench.lineage import training_seconds
from paperlib.workbench.options import CompressionOptions
from paperlib.workbench.stages import Compressed
from paperlib.workbench.steps import Model, Workbench, weights_digest

EXPORT_SECONDS = 15.0
"""Expected time to write one detector as ONNX, for the progress display."""
REPORT_SECONDS = 10.0
"""Expected time to write both reports with their figures."""
LEARNED = 0.1
"""The mAP at IoU 0.5 below which the report says that the original detector has hardly learned."""
NOT_RECORDED = {"out", "threads", "fine_tune_epochs", "fine_tune_learning_rate"}
"""Options without effect on the result, or that the recorded recipes say already."""


@dataclass(frozen=True)
class Round:
    """Algorithm 1 with one seed, and the controls of its student by name."""

    compressed: Compressed
    controls: dict[str, Model]


def write_outputs(
    request: CompressRequest, rounds: Sequence[Round], began: float, remarks: Sequence[str] = ()
) -> list[str]:
    """Write all outputs; return a message for each file that could not be written.

    Args:
        request: names the folder.
        rounds: one per seed; the files hold the student of the first.
        began: when the command started, by `time.perf_counter`.
        remarks: what the report must say besides, one sentence each.
    """
    compressed = rounds[0].compressed
    student = compressed.student
    out = request.out
    # Until all files are from this run, the folder must not count as complete.
    (out / "provenance.json").unlink(missing_ok=True)
    frame = evaluate_models(rounds)
    save_detector(
        student, out / "student.safetensors", use=_describe_student(compressed, request.licence).to_properties()
    )
    faults = _export_student(request, compressed)
    int8 = None if faults else _quantise_student(request, compressed)
    files.write_text_atomically(out / "table.csv", tables.render_table(compressed.table)["csv"])
    test = judge_test(request, compressed)
    metrics = _collect_metrics(compressed, frame)
    files.write_json_atomically(out / "metrics.json", metrics | {"int8": int8, "test": test and test.to_dict()})
    timing = _measure_timing(request, compressed)
    if request.nms and not faults:
        _include_selection(request, compressed)
    begin_step("write the report", seconds=REPORT_SECONDS)
    notes = [*faults, *remarks, *_collect_notes(request, compressed)]
    notes += [f"{test.data.name}: {remark}." for remark in test.data.remarks] if test else []
    name = student.build_arguments["name"]
    trained_before = request.trained_detector is not None
    report = Report(name, compressed, request.compression, frame, timing, notes, trained_before, int8, not faults, test)
    files.write_text_atomically(out / SCRIPT, (TEMPLATES / SCRIPT).read_text(encoding="utf-8"))
    files.write_text_atomically(out / "report.md", report.render_markdown())
    files.write_text_atomically(out / "report.html", report.render_html())
    provenance = _collect_provenance(request, rounds, time.perf_counter() - began, test)
    files.write_json_atomically(out / "provenance.json", provenance)
    return faults


def _collect_notes(request: CompressRequest, compressed: Compressed) -> Iterator[str]:
    """Yield what a reader of the report must know, one sentence each."""
    for data in (compressed.workbench.train_set, compressed.workbench.validation):
        yield from (f"{data.name}: {remark}." for remark in data.remarks)
    unseen = [name for name, count in compressed.workbench.validation.box_counts().items() if not count]
    if unseen:
        yield f"Classes without validation boxes, whose accuracy is therefore unknown: {', '.join(unseen)}."
    if request.partners and (skipped := skipped_convolutions(compressed.student)):
        reasons = ", ".join(f"{name} ({reason})" for name, reason in skipped.items())
        yield f"Convolutions that trained without a partner: {reasons}."
    yield from describe_doubts(request, compressed)
    # An mAP cannot fall by more than itself; a limit of 1 is a user's choice to prune whatever the accuracy.
    if compressed.stages[0].tuned.map50 <= request.max_drop < 1:
        yield "Accuracy could not stop the pruning: the trained detector's mAP is not above the drop allowed."


def describe_doubts(request: CompressRequest, compressed: Compressed) -> list[str]:
    """Return why the student may be of no use, one sentence each.

    The original has not learned, or the student lost more accuracy than allowed, which can happen only if `pure`.
    """
    doubts = []
    original = compressed.stages[0].tuned.map50
    if original < LEARNED:
        doubts.append(
            f"The original detector has a mAP of {100 * original:.1f} % on the validation images, so it has hardly "
            "learned and neither has its student. Train longer (--epochs), start from trained weights (--weights), or "
            "give more images."
        )
    if len(compressed.chain) > 1 and compressed.drop >= request.max_drop:
        doubts.append(
            f"The student lost {100 * compressed.drop:.1f} points of mAP; --max-drop {request.max_drop:g} does not "
            "allow that. Without --pure a more accurate one is handed over."
        )
    return doubts


def output_seconds(request: CompressRequest) -> float:
    """Return about how many seconds the outputs take, for the progress display."""
    models = 2  # timed before and after
    timing = models * (EXPORT_SECONDS + len(installed_runtimes()) * request.timing_seconds)
    return 2 * EXPORT_SECONDS + timing + REPORT_SECONDS


def evaluate_models(rounds: Sequence[Round]) -> pd.DataFrame:
    """Return one row per model and seed with validation metrics: teacher, student and its controls."""
    rows = []
    for one in rounds:
        workbench = one.compressed.workbench
        first = one.compressed.chain[0]
        last = one.compressed.chain[-1]
        models = {"original, sparsely trained": first.model, "student, before distillation": last.model}
        models |= {"student": one.compressed.delivered.model, **one.controls}
        for name, model in models.items():
            model_cost = cost(model.detector(), workbench.recipe.image_size)
            metrics = workbench.evaluate(model, "val")
            row = {"model": name, "seed": workbench.recipe.seed, "mb": model_cost.size_mb, "gmacs": model_cost.gmacs}
            rows.append(row | {metric: getattr(metrics, metric) for metric in tables.METRICS})
    return pd.DataFrame(rows)


def _describe_student(compressed: Compressed, licence: str) -> Description:
    """Return how the student is used: the confidence is the one that maximises F1 on the validation data."""
    workbench = compressed.workbench
    return Description(
        **describe_selection(compressed.student),
        classes=workbench.train_set.classes,
        image_size=workbench.recipe.image_size,
        confidence=round(compressed.delivered.metrics.confidence, 4),
        training_data=workbench.train_set.digest,
        licence=licence,
        version=package_version("paperlib"),
    )


def _export_student(request: CompressRequest, compressed: Compressed) -> list[str]:
    """Write the student as ONNX. If that fails, the hours of training before it are not lost."""
    path = request.out / "student.onnx"
    workbench = compressed.workbench
    begin_step("write student.onnx", seconds=EXPORT_SECONDS)
    path.unlink(missing_ok=True)
    try:
        description = _describe_student(compressed, request.licence)
        export_onnx(compressed.student, path, workbench.recipe.image_size, description=description)
    except OSError:
        raise  # on a full disk the rest would fail, too
    except Exception as error:  # exporter and runtime have exceptions of their own, with no base in common
        return [f"student.onnx is missing: {' '.join(str(error).split())}"]
    return []


def _quantise_student(request: CompressRequest, compressed: Compressed) -> dict[str, Any] | None:
    """Write the student in 8-bit integers; return its size and accuracy, None for detectors of two stages."""
    source, target = request.out / "student.onnx", request.out / INT8
    target.unlink(missing_ok=True)
    if not hasattr(compressed.student, "decode"):
        return None
    workbench = compressed.workbench
    begin_step(f"write {INT8}", seconds=EXPORT_SECONDS)
    from paperlib.deploy.int8 import quantise  # it needs ONNX Runtime, which the extra [runtimes] installs

    made = quantise(source, target, workbench.train_set, validation=workbench.validation)
    accuracy = {name: metrics.map50 for name, metrics in (("float32", made.float32), ("int8", made.int8)) if metrics}
    return {
        "mb": target.stat().st_size / 1e6,
        "map50": accuracy,
        "float_heads": made.way.float_heads,
        "calibration": made.way.calibration,
    }


def _include_selection(request: CompressRequest, compressed: Compressed) -> None:
    """Rewrite both ONNX files, after they were quantised and timed, so that they select their detections."""
    side = compressed.workbench.recipe.image_size
    description = _describe_student(compressed, request.licence)
    export_onnx(compressed.student, request.out / "student.onnx", side, description=description, nms=True)
    if (file := request.out / INT8).exists():
        include_selection(file)


def _collect_metrics(compressed: Compressed, frame: pd.DataFrame) -> dict[str, Any]:
    stages = [
        {
            "model": stage.name,
            "role": stage.role,
            "channels": stage.channels,
            "cost": asdict(stage.cost),
            "fine_tuned": stage.tuned.to_dict(),
            "distilled": stage.distilled[1].to_dict() if stage.distilled else None,
        }
        for stage in compressed.stages
    ]
    candidates = [
        {"trained": each.name, "map50": each.metrics.map50, "delivered": each == compressed.delivered}
        for each in compressed.chain[-1].candidates
    ]
    return {
        "stopped": compressed.stopped,
        "stages": stages,
        "candidates": candidates,
        "models": frame.to_dict("records"),
    }


def _measure_timing(request: CompressRequest, compressed: Compressed) -> dict[str, Any]:
    """Return all measured times: kept in `timing.json`, and measured again only for other models."""
    path = request.out / "timing.json"
    before = compressed.chain[0].final
    after = compressed.delivered.model
    how = {"seconds": request.timing_seconds, "runtimes": installed_runtimes()}
    of = {"before": before.digest, "after": after.digest, **how}
    # Clocks differ from run to run: measured again, the same models would get other reports.
    with contextlib.suppress(ValueError):  # there is none, or it was damaged
        if (known := read_sealed(path)).get("of") == of:
            return known
    with tempfile.TemporaryDirectory(prefix="paperlib-") as folder:
        models = {"before": before, "after": after}
        times = _measure_latencies(compressed.workbench, models, request.timing_seconds, Path(folder))
    if (file := request.out / INT8).exists():
        side = compressed.workbench.recipe.image_size
        measured = latency(after.detector(), side, runtime="onnxruntime", seconds=request.timing_seconds, exported=file)
        times.append({"model": "after, int8", **asdict(measured)})
    timing = {"of": of, "machine": describe_machine(), "latency": times, **_training_pace(compressed)}
    files.write_json_atomically(path, seal_record(timing))
    return timing


def _measure_latencies(
    workbench: Workbench, models: dict[str, Model], seconds: float, folder: Path
) -> list[dict[str, Any]]:
    """Return one row per runtime and model; the runtimes' files are written into `folder`."""
    side = workbench.recipe.image_size
    detectors = {name: model.detector() for name, model in models.items()}
    runtimes = installed_runtimes()
    exported: dict[str, Path] = {}
    if runtimes != ["torch"]:
        begin_step("export for timing", seconds=len(models) * EXPORT_SECONDS)
        exported = {name: export_for_timing(detector, folder, side, name) for name, detector in detectors.items()}
    rows = []
    for runtime in runtimes:
        for name, detector in detectors.items():
            begin_step(f"time {runtime}", seconds=seconds)
            measured = latency(detector, side, runtime=runtime, threads=1, seconds=seconds, exported=exported.get(name))
            rows.append({"model": name, **asdict(measured)})
    return rows


def _training_pace(compressed: Compressed) -> dict[str, Any]:
    """Return the seconds per epoch of each training, and by what factor a teacher lengthens an epoch."""
    rows = []
    factors = []
    for stage in compressed.stages:
        alone = _epoch_seconds(stage.model)
        rows.append({"training": "sparse" if stage.role == "teacher" else "fine-tuning", "model": stage.name, **alone})
        if stage.distilled:
            taught = _epoch_seconds(stage.distilled[0])
            rows.append({"training": "distillation", "model": stage.name, **taught})
            factors.append(taught["seconds an epoch"] / max(alone["seconds an epoch"], 1e-9))
    return {"training": rows, "teacher_cost": fmean(factors) if factors else None}


def _epoch_seconds(model: Model) -> dict[str, Any]:
    """Return the median time of a training's epochs, without those that were followed by a validation."""
    history = model.history()
    # The time of an epoch in the history includes its validation.
    plain = history[history["map50"].isna()]
    counted = plain if len(plain) else history
    return {"epochs": len(history), "seconds an epoch": median(counted["seconds"].tolist())}


def _collect_provenance(
    request: CompressRequest, rounds: Sequence[Round], seconds: float, test: FinalTest | None
) -> dict[str, Any]:
    workbench = rounds[0].compressed.workbench
    topics = Recipe.model_fields.keys() | CompressionOptions.model_fields.keys()
    models: list[Model] = []
    for one in rounds:
        models += [stage.final for stage in one.compressed.stages]
        models += [candidate.model for candidate in one.compressed.chain[-1].candidates]
        models += [one.compressed.given, *one.controls.values()]
    return make_certificate(
        settings={
            **request.model_dump(exclude=topics | NOT_RECORDED),
            "recipe": workbench.recipe.model_dump(),
            "fine_tuning": workbench.fine_tuning.model_dump(),
            "compression": request.compression.model_dump(),
        },
        data_digest={"train": workbench.train_set.digest, "val": workbench.validation.digest}
        | ({"test": test.data.digest} if test else {}),
        weights_digest={request.weights.name: weights_digest(request.weights)} if request.weights else {},
        seeds=[one.compressed.workbench.recipe.seed for one in rounds],
        wall_seconds=seconds,
        training_seconds=training_seconds(model.folder for model in models),
        steps=sorted({model.digest for model in models}),
    )
