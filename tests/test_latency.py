"""Latency: what is timed, with how many threads. How long it takes is for the benchmarks."""

import onnxruntime
import pandas as pd
import psutil
import pytest
import torch
from small import SIZE, Cells, Finder

from paperlib.deploy.latency import (
    RUNTIMES,
    compare_latencies,
    compute_realised_savings,
    export_for_timing,
    latency,
    make_file_timer,
    make_selection_timer,
)
from paperlib.deploy.onnx import make_deployable
from paperlib.deploy.openvino_runtime import compile_openvino


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return export_for_timing(Cells(), tmp_path_factory.mktemp("model"), SIZE)


class Watched(Cells):
    """Notes in how many threads it ran, in which mode, and in which order its input was."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __deepcopy__(self, memo):
        return self  # the timed copy must be the one that is watched

    def head_outputs(self, batch):
        ordered = batch.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled(), self.training, ordered))
        return super().head_outputs(batch)

    def forward(self, images):
        return self.decode(self.head_outputs(images), SIZE)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_is_timed_with_suppression_apart(runtime):
    detector = Cells().train()
    found = latency(detector, SIZE, runtime=runtime, seconds=0.02)
    assert found.median_ms > 0 and found.iqr_ms >= 0 and found.nms_ms > 0 and found.runs >= 1
    assert (found.runtime, found.threads, found.image_size) == (runtime, 1, SIZE)
    assert detector.training and "head_outputs" not in vars(detector)


def test_a_two_stage_detector_has_no_suppression_apart():
    assert latency(Finder(), SIZE, seconds=0.02).nms_ms is None


@pytest.mark.parametrize("threads", [1, 2])
def test_pytorch_runs_in_the_threads_it_is_given_as_in_deployment(threads):
    before, detector = torch.get_num_threads(), Watched()
    latency(detector, SIZE, threads=threads, seconds=0.02)
    timed = [seen for seen in detector.seen if seen[3]]
    assert set(timed) == {(threads, True, False, True)} and len(timed) > 1
    assert torch.get_num_threads() == before


def test_onnx_runtime_starts_the_threads_it_is_given(file):
    for threads in (1, 3):
        before = psutil.Process().num_threads()
        watch = make_file_timer(file, torch.rand(1, 3, *SIZE), "onnxruntime", threads)
        assert psutil.Process().num_threads() - before == threads - 1  # the caller is one of them
        del watch


def test_openvino_runs_in_the_threads_it_is_given_and_in_float32(file):
    model = compile_openvino(file, 1)
    assert model.get_property("INFERENCE_NUM_THREADS") == 1
    assert model.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_both_runtimes_compute_what_pytorch_does(file):
    image = torch.rand(1, 3, *SIZE)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    one, other = session.run(None, {"images": image.numpy()}), compile_openvino(file, 1)([image.numpy()])
    for first, second in zip(one, other.values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(first), torch.from_numpy(second), rtol=1e-4, atol=1e-4)


def test_suppression_is_timed_on_answers_that_are_ready():
    detector = Watched()
    network = make_deployable(detector, SIZE)
    timer = make_selection_timer(network, torch.rand(1, 3, *SIZE), threads=1)
    assert len(detector.seen) == 1
    timer.timeit(3)
    assert len(detector.seen) == 1


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"runtime": "tensorrt"}, "unknown runtime 'tensorrt'; known: torch, onnxruntime, openvino"),
        ({"threads": 0}, "threads 0 must be ≥ 1"),
        ({"image": torch.rand(3, 64, 64)}, r"the image is \[3, 64, 64\], not \[3, 64, 96\]"),
    ],
)
def test_bad_settings_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        latency(Cells(), SIZE, **options)


def test_detectors_are_timed_beside_each_other_in_each_runtime():
    detectors = {"one": Cells(), "other": Cells()}
    found = compare_latencies(detectors, SIZE, reduced=True, rounds=2, seconds=0.01)
    plain = found[found["precision"] == "float32"]
    assert list(zip(plain["model"], plain["runtime"], strict=True)) == [(m, r) for m in detectors for r in RUNTIMES]
    assert found[found["precision"] == "int8"]["runtime"].tolist() == ["onnxruntime"] * 2
    assert set(found[found["precision"] == "bfloat16"]["runtime"]) <= {"openvino"}  # where the processor has it
    assert (found["ms"] > 0).all() and (found["iqr_ms"] >= 0).all()


def test_the_realised_share_is_time_saved_over_compute_saved():
    times = pd.DataFrame(
        {"model": ["whole", "cut", "same"], "runtime": "torch", "precision": "float32", "ms": [10.0, 6.0, 8.0]}
    )
    found = compute_realised_savings(times, {"whole": 4.0, "cut": 2.0, "same": 4.0}, "whole").set_index("model")
    assert found["speedup"].tolist() == pytest.approx([1, 10 / 6, 1.25])
    assert found["macs_saved"].tolist() == [0, 0.5, 0]
    assert found["realised"]["cut"] == pytest.approx(0.8)
    assert found["realised"].isna().tolist() == [True, False, True], "nothing was saved that could be realised"
    low = pd.concat([times, times.assign(precision="int8", ms=[5.0, 2.0, 5.0])])
    found = compute_realised_savings(low, {"whole": 4.0, "cut": 2.0, "same": 4.0}, "whole").set_index("model")
    assert found.loc["cut", "speedup"].tolist() == pytest.approx([10 / 6, 5]), "compared with float32"
    assert found["realised"].notna().sum() == 1, "a lower precision saves no operations"
