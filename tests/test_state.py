"""The state of a training: whole or recognised as damaged, and never executed."""

import ast
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import paperlib
from paperlib.training.state import (
    DamagedStateError,
    drop_old_states,
    load_optimiser,
    optimiser_groups,
    optimiser_tensors,
    read_newest_state,
    read_state,
    write_state,
)

WEIGHTS = {"detector": {"weight": torch.arange(6.0).view(2, 3)}, "mean": {"count": torch.tensor(7)}}
FACTS = {"epoch": 5, "rows": [{"loss": 0.1}], "scale": 65536.0}


def saved(folder, epoch=5):
    state = folder / f"state-{epoch:05d}"
    write_state(state, WEIGHTS, {**FACTS, "epoch": epoch})
    return state


def test_what_was_written_is_read_to_the_last_bit(tmp_path):
    parts, facts = read_state(saved(tmp_path))
    assert facts == FACTS
    assert parts.keys() == WEIGHTS.keys()
    assert torch.equal(parts["detector"]["weight"], WEIGHTS["detector"]["weight"])
    assert torch.equal(parts["mean"]["count"], WEIGHTS["mean"]["count"])


@given(part=st.sampled_from(["detector.safetensors", "mean.safetensors", "state.json"]), data=st.data())
def test_one_flipped_bit_a_cut_and_an_emptied_file_are_recognised(tmp_path_factory, part, data):
    path = saved(tmp_path_factory.mktemp("state")) / part
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "flip"):
        content[data.draw(st.integers(0, len(content) - 1), "byte")] ^= 1 << data.draw(st.integers(0, 7), "bit")
    else:
        del content[data.draw(st.integers(0, len(content) - 1), "length") :]
    path.write_bytes(content)
    try:
        _, facts = read_state(path.parent)
    except DamagedStateError as error:
        assert str(path.parent) in str(error)
    else:
        assert (part, facts) == ("state.json", FACTS)  # white space between values is no content


def test_a_missing_file_is_named(tmp_path):
    state = saved(tmp_path)
    (state / "mean.safetensors").unlink()
    with pytest.raises(DamagedStateError, match="mean.safetensors is missing"):
        read_state(state)


def test_a_damaged_state_is_set_aside_in_one_line_and_the_one_before_it_is_taken(tmp_path, caplog):
    saved(tmp_path, 4)
    (saved(tmp_path, 5) / "detector.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        found, _, facts = read_newest_state(tmp_path)
    assert found == tmp_path / "state-00004" and facts["epoch"] == 4
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert (tmp_path / "damaged-state-00005").is_dir() and not (tmp_path / "state-00005").exists()


def test_two_states_are_kept(tmp_path):
    for epoch in range(1, 5):
        saved(tmp_path, epoch)
    drop_old_states(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-00003", "state-00004"]


def begin(weight, memory_format):
    layer = nn.Conv2d(4, 8, 3).to(memory_format=memory_format)
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.fill_(weight)
    return layer, torch.optim.AdamW(layer.parameters(), 1e-2, fused=True)


def take_two_steps(layer, optimiser):
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for parameter in layer.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimiser.step()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["plain", "last"])
def test_an_optimiser_goes_on_with_the_same_bits_however_weights_lie_in_memory(tmp_path, memory_format):
    layer, optimiser = begin(1.0, memory_format)
    take_two_steps(layer, optimiser)
    parts = {"optimiser": optimiser_tensors(optimiser), "layer": layer.state_dict()}
    write_state(tmp_path / "state-00001", parts, {"groups": optimiser_groups(optimiser)})
    take_two_steps(layer, optimiser)

    parts, facts = read_state(tmp_path / "state-00001")
    other, resumed = begin(0.0, memory_format)
    other.load_state_dict(parts["layer"])
    load_optimiser(resumed, parts["optimiser"], facts["groups"])
    take_two_steps(other, resumed)
    assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)


UNPICKLERS = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
UNPICKLING_CALLS = {"torch.load", "torch.save", "accelerator.save_state", "accelerator.load_state", "np.save"}


def unpickling(tree):
    """Lines of a module that import a pickler, call what pickles, or allow it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and UNPICKLERS & {alias.name.partition(".")[0] for alias in node.names}:
            yield node.lineno
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNPICKLERS:
            yield node.lineno
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).removeprefix("self.")
            allows = any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords)
            if allows or name in UNPICKLING_CALLS or name.endswith(".register_for_checkpointing"):
                yield node.lineno


def test_no_module_of_the_package_pickles_or_unpickles():
    package = Path(paperlib.__file__).parent
    found = [
        f"{path.relative_to(package)}, line {line}"
        for path in package.rglob("*.py")
        for line in unpickling(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line", ["import pickle", "from joblib import load", "torch.load(path)", "np.load(path, allow_pickle=True)"]
)
def test_the_search_for_pickle_finds_it(line):
    assert list(unpickling(ast.parse(line))) == [1]
