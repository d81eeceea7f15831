"""Detectors on disk: what is loaded computes the same bits, and a damaged file is one clear line."""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import YOLOS, make_tiny_detector
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paperlib.detectors.files import load_detector, save_detector
from paperlib.pruning import apply_plan, plan_pruning
from paperlib.structure import describe_structure


@pytest.fixture
def pruned(request) -> nn.Module:
    """Half of its channels gone, and two residual blocks where there are some."""
    return copy.deepcopy(prune_half(getattr(request, "param", "yolov4-tiny")))


@cache
def prune_half(name: str) -> nn.Module:
    whole = make_tiny_detector(name=name).eval()
    plan = plan_pruning(whole, 0.5, layers=0 if name == "yolov4-tiny" else 2)
    return apply_plan(whole, plan, compensate="exact")


@pytest.fixture
def saved(pruned, tmp_path) -> Path:
    path = tmp_path / "pruned.safetensors"
    save_detector(pruned, path)
    return path


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> None:
    """Write the file again after `change(tensors, metadata)`."""
    with safe_open(path, framework="pt") as content:
        metadata = content.metadata()
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def edit_structure(metadata: dict[str, str], **layers: dict) -> None:
    structure = json.loads(metadata["structure"])
    for name, shape in layers.items():
        structure[name.replace("__", ".")] |= shape
    metadata["structure"] = json.dumps(structure)


def test_equal_detectors_are_equal_files(pruned, tmp_path):
    for number in range(8):
        save_detector(pruned, tmp_path / f"{number}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_pruned_detector_computes_the_same_bits_in_another_process(pruned, saved, tmp_path):
    script = (
        "import sys, torch; from safetensors.torch import load_file, save_file\n"
        "from paperlib.detectors.files import load_detector\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "detector, batch = load_detector(sys.argv[1]), load_file(sys.argv[2])['batch']\n"
        "with torch.no_grad(): coarse, fine = detector.head_outputs(batch)\n"
        "save_file({'coarse': coarse, 'fine': fine}, sys.argv[3])"
    )
    batch, outputs = tmp_path / "batch.safetensors", tmp_path / "outputs.safetensors"
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    save_file({"batch": images}, batch)
    subprocess.run([sys.executable, "-c", script, saved, batch, outputs], check=True)
    there = load_file(outputs)
    with torch.no_grad():
        here = pruned.head_outputs(images)
    assert torch.equal(there["coarse"], here[0]) and torch.equal(there["fine"], here[1])


@pytest.mark.parametrize("pruned", YOLOS, indirect=True)
def test_what_is_loaded_is_what_was_saved(pruned, tmp_path):
    detector = pruned.double().to(memory_format=torch.channels_last).train()
    path = tmp_path / "new" / "detector.safetensors"
    save_detector(detector, path)
    chance = torch.get_rng_state()
    loaded = load_detector(path)
    assert torch.equal(torch.get_rng_state(), chance)
    assert not loaded.training and detector.training
    assert loaded.build_arguments == detector.build_arguments
    assert describe_structure(loaded) == describe_structure(detector)
    before, after = detector.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    for name, value in after.items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_loaded_detector_does_not_hang_on_its_file(saved):
    loaded = load_detector(saved)
    before = loaded.stem1.conv.weight.clone()
    saved.write_bytes(b"\0" * saved.stat().st_size)
    assert torch.equal(loaded.stem1.conv.weight, before)
    save_detector(loaded, saved)
    assert torch.equal(load_detector(saved).stem1.conv.weight, before)


@pytest.mark.parametrize("length", [0, 5, 40, 0.5, -1])
def test_a_file_cut_short_is_refused(saved, length):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(length * len(content)) if isinstance(length, float) else length])
    with pytest.raises(ValueError) as caught:
        load_detector(saved)
    assert str(caught.value).startswith(f"{saved}: not a whole safetensors file") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda tensors, metadata: metadata.update(format="other-1"), "does not say 'paperlib-detector-1'"),
        (lambda tensors, metadata: metadata.pop("structure"), "cannot be rebuilt ('structure')"),
        (lambda tensors, metadata: metadata.update(structure="[]"), "cannot be rebuilt"),
        (lambda tensors, metadata: metadata.update(structure="{"), "cannot be rebuilt"),
        (lambda tensors, metadata: metadata.update(build="[]"), "cannot be rebuilt"),
        (lambda tensors, metadata: metadata.update(build='{"name": "yolov9", "num_classes": 3}'), "unknown detector"),
        (lambda tensors, metadata: tensors.pop("neck.conv.weight"), "tensor neck.conv.weight is missing"),
        (lambda tensors, metadata: tensors.update(extra=torch.zeros(1)), "tensor extra is not part of the detector"),
        (
            lambda tensors, metadata: tensors.update({"stem1.bn.weight": tensors["stem1.bn.weight"].long()}),
            "tensor stem1.bn.weight is torch.int64",
        ),
        (lambda tensors, metadata: edit_structure(metadata, stem1__conv={"out": 99}), "tensor stem1.conv.weight is"),
        (lambda tensors, metadata: edit_structure(metadata, stem1__conv={"out": 10**9}), "its structure says"),
        (lambda tensors, metadata: edit_structure(metadata, stem1__conv={"out": "4"}), "structure of stem1.conv"),
        (lambda tensors, metadata: edit_structure(metadata, block1__split={"sizes": [0, 4]}), "block1.split"),
    ],
)
def test_a_file_that_was_tampered_with_is_refused_by_name(saved, change, fault):
    rewrite(saved, change)
    with pytest.raises(ValueError) as caught:
        load_detector(saved)
    message = str(caught.value)
    assert message.startswith(f"{saved}: ") and fault in message and "\n" not in message


def swap_split(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Give the split's halves each other's sizes; they differ in a pruned detector."""
    first, second = json.loads(metadata["structure"])["block1.split"]["sizes"]
    assert first != second
    edit_structure(metadata, block1__split={"sizes": [second, first]})


def move_anchors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    build = json.loads(metadata["build"])
    build["anchors"] = [[w + 1, h] for w, h in build["anchors"]]
    metadata["build"] = json.dumps(build)


@pytest.mark.parametrize("change", [swap_split, move_anchors, lambda tensors, metadata: metadata.pop("seal")])
def test_an_edit_that_leaves_every_shape_as_it_is_is_refused(saved, change):
    rewrite(saved, change)
    with pytest.raises(ValueError, match="edited after it was written"):
        load_detector(saved)


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("write", [lambda thing, path: path.write_bytes(pickle.dumps(thing)), torch.save])
def test_nothing_is_ever_unpickled(tmp_path, write):
    path, trace = tmp_path / "harmful.safetensors", tmp_path / "trace"
    write(Harmful(trace), path)
    with pytest.raises(ValueError, match="is a PyTorch file, which is not read"):
        load_detector(path)
    assert not trace.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such detector file"):
        load_detector(tmp_path / "none.safetensors")


def test_a_file_without_metadata_is_no_detector(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no detector of this package"):
        load_detector(path)
