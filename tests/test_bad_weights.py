"""Weights that cannot be those of a detector are refused in one line, quickly, before memory is taken."""

import json
import resource
import struct
import time

import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from paperlib.classifiers import CLASSIFIERS
from paperlib.cli.main import app
from paperlib.detectors import DETECTORS, build_detector, load_darknet_weights
from paperlib.detectors.darknet import _named_slots, _slots
from paperlib.detectors.files import checksum, load_detector, save_detector
from paperlib.limits import CLASSIFIER_NAMES, DETECTOR_NAMES, IMPORTANCE_NAMES
from paperlib.pruning import IMPORTANCES

FEW = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEADER = np.array([0, 2, 5, 0, 0], "<i4").tobytes()
BAD_VALUES = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector("yolov4-tiny", 3, width=0.125)


def rewrite(path, **metadata):
    """Write a detector file again with other metadata and a seal that fits them."""
    with safe_open(path, framework="pt") as content:
        found = content.metadata()
        tensors = {name: content.get_tensor(name).clone() for name in content.keys()}
    found |= metadata
    save_file(tensors, path, metadata=found | {"seal": checksum(found)})


def refusal(path):
    start = time.process_time()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as caught:
        load_detector(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 500 + len(str(path))
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000, "kilobytes"
    return line


def test_names_of_networks_and_criteria_are_known_without_torch():
    assert IMPORTANCE_NAMES == tuple(IMPORTANCES)
    assert DETECTOR_NAMES == tuple(DETECTORS)
    assert CLASSIFIER_NAMES == tuple(CLASSIFIERS)


@FEW
@given(st.data(), st.sampled_from([*BAD_VALUES, "negative variance"]))
def test_values_that_are_no_weights_are_named(detector, tmp_path, data, value):
    path = tmp_path / "bad.safetensors"
    tensors = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    if value == "negative variance":
        names = [name for name in names if name.endswith("running_var")]
    name = data.draw(st.sampled_from(names))
    position = data.draw(st.integers(0, tensors[name].numel() - 1))
    tensors[name].view(-1)[position] = -0.1 if value == "negative variance" else value
    changed = build_detector("yolov4-tiny", 3, width=0.125)
    changed.load_state_dict(tensors)
    save_detector(changed, path)
    line = refusal(path)
    assert name in line and ("negative" if value == "negative variance" else "NaN or infinite") in line


HUGE = [3000, 10**13, 1e300, float("inf"), float("nan"), -1, 0, "3", [3], {}, True, None]
builds = st.fixed_dictionaries(
    {}, optional={key: st.sampled_from(HUGE) for key in ("num_classes", "width", "depth", "anchors")}
).filter(lambda build: build and not (build.get("depth", 1) is True or build.get("anchors", 1) is None))


@FEW
@given(builds)
def test_a_build_of_absurd_size_is_refused_at_once(detector, tmp_path, build):
    path = tmp_path / "bad.safetensors"
    save_detector(detector, path)
    rewrite(path, build=json.dumps(detector.build_arguments | build))
    refusal(path)


@FEW
@given(st.data(), st.sampled_from([0, -1, 10**6, 10**18, 10**30, "4", None, 2.5, [1], {}]))
def test_a_structure_of_absurd_size_is_refused_at_once(detector, tmp_path, data, value):
    path = tmp_path / "bad.safetensors"
    save_detector(detector, path)
    with safe_open(path, framework="pt") as content:
        structure = json.loads(content.metadata()["structure"])
    layer = data.draw(st.sampled_from(sorted(structure)))
    structure[layer][data.draw(st.sampled_from(sorted(structure[layer])))] = value
    rewrite(path, structure=json.dumps(structure))
    refusal(path)


@pytest.mark.parametrize(
    "metadata",
    [
        {"structure": "[" * 100_000},
        {"build": '{"name":' * 50_000},
        {"structure": " " * 11_000_000},
        {"build": '{"num_classes": ' + "9" * 5000 + "}"},
        {"structure": json.dumps({f"layer{i}": {} for i in range(50_000)})},
    ],
    ids=["deep", "deep build", "long", "digits", "unknown layers"],
)
def test_metadata_that_no_detector_has_are_one_short_line(detector, tmp_path, metadata):
    path = tmp_path / "bad.safetensors"
    save_detector(detector, path)
    rewrite(path, **metadata)
    refusal(path)


@pytest.mark.parametrize("shape", [[10**9, 10**9], [2**62], [10**6, 10**6]])
def test_a_tensor_larger_than_the_file_is_refused(tmp_path, shape):
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * int(np.prod(shape, dtype=object))]}}
    text = json.dumps(header).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(100))
    refusal(path)


@pytest.mark.parametrize(("name", "classes"), [*zip(sorted(DETECTORS), [1, 4, 80] * 2, strict=True)])
def test_another_number_of_classes_than_that_of_the_head_is_refused(tmp_path, name, classes):
    path = tmp_path / "bad.safetensors"
    detector = tiny.quick(name, 3)
    save_detector(detector, path)
    load_detector(path)
    rewrite(path, build=json.dumps(detector.build_arguments | {"num_classes": classes}))
    assert f"{classes} classes need" in refusal(path)


def write_darknet(detector, path, change=None):
    values = np.concatenate([tensor.detach().numpy().ravel() for tensor in _slots(detector)]).astype("<f4")
    if change is not None:
        change(values)
    path.write_bytes(HEADER + values.tobytes())


@FEW
@given(st.floats(0, 1, exclude_max=True), st.sampled_from(BAD_VALUES), st.integers(1, 1000))
def test_a_darknet_file_of_a_training_that_diverged_is_refused(detector, tmp_path, start, value, count):
    path = tmp_path / "bad.weights"

    def change(values):
        first = int(start * len(values))
        values[first : first + count] = value

    write_darknet(detector, path, change)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(ValueError, match="NaN or infinite") as caught:
        load_darknet_weights(detector, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())


def test_a_darknet_file_with_a_negative_variance_is_refused(detector, tmp_path):
    offset = 0
    for name, tensor in _named_slots(detector):
        if name.endswith("running_var"):
            break
        offset += tensor.numel()
    path = tmp_path / "bad.weights"
    write_darknet(detector, path, lambda values: values.__setitem__(offset, -1.0))
    with pytest.raises(ValueError, match=f"{name} holds negative variances"):
        load_darknet_weights(detector, path)


def test_a_huge_darknet_file_is_not_read_into_memory(detector, tmp_path):
    path = tmp_path / "huge.weights"
    with path.open("wb") as opened:
        opened.write(HEADER)
        opened.truncate(10**12)  # a file with a hole: it takes no room on the disk
    start = time.process_time()
    with pytest.raises(ValueError, match="needs"):
        load_darknet_weights(detector, path)
    assert time.process_time() - start < 1


def test_the_command_says_so_in_one_line(detector, tmp_path):
    path = tmp_path / "bad.safetensors"
    changed = build_detector("yolov4-tiny", 3, width=0.125)
    with torch.no_grad():
        next(changed.parameters()).fill_(float("nan"))
    save_detector(changed, path)
    result = CliRunner().invoke(app, ["export", str(path), str(tmp_path / "x.onnx"), "--image-size", "64"])
    assert result.exit_code == 2 and not (tmp_path / "x.onnx").exists()
    assert result.stderr.startswith(f"paperlib: {path}: ") and result.stderr.count("\n") == 1
