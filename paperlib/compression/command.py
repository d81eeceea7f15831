"""`paperlib compress`: check all inputs, run Algorithm 1 on anyone's data, write the student and its report."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from paperlib.compression.budget import TimeBudget
from paperlib.compression.final_test import load_test
from paperlib.compression.outputs import Round, describe_doubts, output_seconds, write_outputs
from paperlib.compression.request import CompressRequest
from paperlib.costs import cost
from paperlib.data.annotated import ReadOptions
from paperlib.data.own import find_own_splits, load_own, name_own
from paperlib.data.records import Dataset
from paperlib.data.splits import refuse_shared_images, refuse_shared_pictures
from paperlib.deploy.latency import installed_runtimes
from paperlib.detectors import (
    COCO_CLASSES,
    USUAL_SIDE,
    build_detector,
    count_darknet_classes,
    load_darknet_weights,
    usual_anchors,
)  # fmt: skip
from paperlib.detectors.files import load_detector
from paperlib.extras import describe_missing
from paperlib.progress import group
from paperlib.progress.display import show_progress
from paperlib.progress.processes import keep_memory
from paperlib.progress.report import begin_step, expect_work, plan_work
from paperlib.store.store import Store
from paperlib.training.shares import require_equal_shares
from paperlib.workbench.algorithm_1 import always_time, make_workbench, most_epochs, run_algorithm_1
from paperlib.workbench.candidates import (
    add_controls,
    most_candidate_epochs,
    most_control_epochs,
    train_candidates,
    train_controls,
)  # fmt: skip
from paperlib.workbench.checks import check_classes, check_criterion, check_data, check_detector
from paperlib.workbench.options import Blueprint
from paperlib.workbench.steps import Model, Workbench

PROGRESS_LOG = "progress.log"
"""The file that gets a line for each step and epoch, with its time."""
STEPS = "steps"
"""The folder of finished steps, inside the folder of the outputs."""
GAMMA_LEVEL = 0.5
"""Where the paper's scale factors start; those of official weights are brought there, their function unchanged."""


def run_compression(request: CompressRequest) -> int:
    """Compress a detector and fill the folder `out`; the same request continues what was interrupted.

    Written last, `provenance.json` says that the folder is complete. All files except it, `timing.json` and what the
    reports take from that are the same, bit for bit, however often the work was interrupted.
    Several processes, started by `torchrun` or `accelerate launch`, share every training; the first does all else.

    Returns:
        The exit status: 0, 1 if the student could not be written as ONNX, 130 if interrupted.

    Raises:
        ValueError, FileNotFoundError: a fault of data, weights or options, before any training.
    """
    began = time.perf_counter()
    keep_memory()
    group.join_group()
    if request.threads:
        torch.set_num_threads(request.threads)
    try:
        with show_progress(request.out / PROGRESS_LOG) if group.is_first() else nullcontext():
            plan_work(0, seconds=output_seconds(request))
            train, val = read_inputs(request)
            if group.is_first():
                _print_remarks(train, val)
            clock = TimeBudget(request, (train.digest, val.digest), output_seconds(request), began)
            if request.budget:
                request = clock.shorten_trainings(*_set_up(request, train, val, 0))
            rounds = [_run_round(request, train, val, number, clock) for number in range(request.seeds)]
            if not group.leave_group():
                return 0  # the first process writes the outputs
            faults = write_outputs(request, rounds, began, clock.describe() if request.budget else [])
    except KeyboardInterrupt:
        if group.may_speak():
            print("\nInterrupted. The same command continues where this stopped.", flush=True)
        return 130
    compressed = rounds[0].compressed
    size_mb = compressed.chain[-1].cost.size_mb
    accuracy = 100 * compressed.delivered.metrics.map50
    print(f"{request.out}: {size_mb:.3g} MB, mAP {accuracy:.1f} %. Open report.html.")
    for fault in (*faults, *describe_doubts(request, compressed)):
        print(f"paperlib: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _print_remarks(train: Dataset, val: Dataset) -> None:
    for data in (train, val):
        for remark in data.remarks:
            print(f"paperlib: {data.name}: {remark}", file=sys.stderr)
    if "onnxruntime" not in installed_runtimes():
        missing = describe_missing("onnxruntime", "runtimes")
        print(f"paperlib: student.onnx will not be written: {missing}", file=sys.stderr)


def read_inputs(request: CompressRequest) -> tuple[Dataset, Dataset]:
    """Return both data sets, after every image was read and everything else was checked.

    Raises:
        ValueError, FileNotFoundError: one line names file, place and fault.
    """
    if request.out.exists() and not request.out.is_dir():
        raise ValueError(f"{request.out}: is a file, not a folder")
    # Faults of the detector are found before the data are read, which may take minutes.
    detector = _initial_detector(request)
    side = request.image_size
    check_detector(detector, side)
    check_criterion(detector, request.importance)
    train, val = _load_data(request)
    require_equal_shares(train, request.recipe, group.count_processes())
    if request.trained_detector:
        check_classes(detector, train)
    else:
        if request.weights and detector.num_classes not in (COCO_CLASSES, len(train.classes)):
            held = f"{request.weights}: for {detector.num_classes} classes, {train.name} has {len(train.classes)}"
            raise ValueError(f"{held}; give weights of these classes or of COCO")
        # Until the data were read, the number of classes was not known.
        detector = build_detector(request.detector, len(train.classes), width=request.width, depth=request.depth)
    size_mb = cost(detector, side).size_mb
    if request.target_mb and size_mb <= request.target_mb:
        raise ValueError(f"--target-mb {request.target_mb:g}: the detector has {size_mb:.3g} MB as it is")
    test = load_test(request, train)
    splits = (train, val, test) if test else (train, val)
    refuse_shared_images(*splits)
    # An image that does not decode is found here. The pixels stay in memory for the training.
    begin_step("read the images")
    refuse_shared_pictures(*splits, pictures=lambda data: data.letterboxed(side).images.numpy())
    return train, val


def _load_data(request: CompressRequest) -> tuple[Dataset, Dataset]:
    """Load both data sets; the classes of the training data are those of the validation data, matched by name."""
    options = ReadOptions(request.bad_boxes, request.classes, allow_outside=request.allow_outside)
    name = name_own(str(request.data))
    if request.val is None and "val" not in find_own_splits(name):
        remedy = f"give it, or distribute the images: --data {request.data}#80/20/0"
        raise ValueError(f"--val is missing, and {request.data} has no split of validation images; {remedy}")
    train = load_own(name, "train", request.images, options)
    validation = request.data if request.val is None else request.val
    same = request.data == validation
    train.name = f"{request.data}, train" if same else str(request.data)
    # Without a choice by the user, a class that the training data lack is a fault of the validation data.
    options = replace(options, classes=train.classes, complete=request.classes is None)
    val = load_own(name_own(str(validation)), "val", request.val_images or request.images, options)
    val.name = f"{validation}, val" if same else str(validation)
    check_data(train, val, may_lack=request.classes or ())
    return train, val


def _initial_detector(request: CompressRequest) -> nn.Module:
    """Load the initial detector; or build it for checks that need no data, with as many classes as its weights."""
    if request.weights and not request.weights.is_file():
        raise FileNotFoundError(f"{request.weights}: no such weights file")
    if request.trained_detector:
        detector = load_detector(request.trained_detector)
        if (name := detector.build_arguments["name"]) != request.detector:
            raise ValueError(f"{request.weights}: is a {name}, not a {request.detector}")
        return detector
    shape: dict[str, Any] = {"width": request.width, "depth": request.depth}
    if not request.weights:
        return build_detector(request.detector, 1, **shape)
    # For a file that fits no number of classes, the detector of COCO's tells by how much it does not.
    classes = count_darknet_classes(request.weights, request.detector, **shape) or COCO_CLASSES
    detector = build_detector(request.detector, classes, **shape)
    load_darknet_weights(detector, request.weights)
    return detector


def _set_up(request: CompressRequest, train: Dataset, val: Dataset, number: int) -> tuple[Workbench, Model]:
    """Return the workbench of a round, and the initial detector."""
    recipe = request.recipe.model_copy(update={"seed": request.seed + number})
    store = Store(request.out / STEPS)
    workbench = make_workbench(train, val, recipe, request.compression, store, _blueprint(request))
    if request.trained_detector:
        return workbench, workbench.adopt_detector(load_detector(request.trained_detector))
    return workbench, workbench.build_detector()


def _run_round(request: CompressRequest, train: Dataset, val: Dataset, number: int, clock: TimeBudget) -> Round:
    workbench, given = _set_up(request, train, val, number)
    options = request.compression
    has_time = clock.has_time if request.budget else always_time
    control_epochs = most_control_epochs(workbench) if request.controls else 0
    after = most_candidate_epochs(workbench, options) + control_epochs
    later_seeds = request.seeds - number - 1
    expect_work(0, later=later_seeds * (most_epochs(workbench, options) + after))
    made = run_algorithm_1(workbench, given, options, later=after, has_time=has_time)
    made = train_candidates(made, options, has_time)
    expect_work(control_epochs)
    if not request.controls:
        return Round(made, {})
    controls = train_controls(made)
    return Round(made if request.pure else add_controls(made, controls), controls)


def _blueprint(request: CompressRequest) -> Blueprint | None:
    if request.trained_detector:
        return None
    if request.weights:
        # Official weights predict relative to the official anchors, whatever the side of the images.
        anchors = usual_anchors(request.detector)
        return Blueprint(request.detector, request.width, request.depth, anchors, request.weights, GAMMA_LEVEL)
    anchors = usual_anchors(request.detector, scale=request.image_size / USUAL_SIDE)
    return Blueprint(request.detector, request.width, request.depth, anchors)
