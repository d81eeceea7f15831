"""Values that make no sense are refused by range, for every option of every command and every key of a profile."""

import typing

import pytest
import typer
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.cli.options import collect_options, option_name
from paperlib.compression.request import CompressRequest
from paperlib.experiments.parameters import NOTEBOOKS, validate_settings
from paperlib.typed_options import read_text

HOSTILE = ["inf", "-inf", "nan", "1e308", "-1", str(10**13), "9" * 400, "", "0x10", "ten", "1e-400000"]
REQUIRED = {"cost": ["yolov4-tiny"], "export": ["a.safetensors", "b.onnx"], "split": ["a.json", "b"]}
"""By command, the arguments that it asks for."""
ZERO_IS_MEANT = {
    "seed", "sparsity", "warmup_epochs", "weight_decay", "ema", "shift", "colour", "mosaic", "soft_weight",
    "bound_weight", "min_keep_ratio", "diversity_weight", "gd_weight", "isd_weight", "tsa_weight", "isd_candidates",
    "repeat_below",
}  # fmt: skip


def commands(command, *names):
    """Yield every command below, with its names."""
    inner = getattr(command, "commands", {})
    if not inner:
        yield names, command
    for name, each in inner.items():
        yield from commands(each, *names, name)


COMMANDS = dict(commands(typer.main.get_command(app)))
NUMERIC = [
    (names, parameter)
    for names, command in COMMANDS.items()
    for parameter in command.params
    if {int, float} & {parameter.type_descriptor.annotation, *typing.get_args(parameter.type_descriptor.annotation)}
]


def test_all_commands_are_found():
    assert ("cost",) in COMMANDS and ("store", "verify") in COMMANDS and len(NUMERIC) >= 5


@pytest.mark.parametrize(("names", "parameter"), NUMERIC, ids=[f"{n[-1]} {p.opts[0]}" for n, p in NUMERIC])
def test_a_number_that_nobody_means_is_refused_by_the_name_of_its_option(names, parameter, monkeypatch):
    monkeypatch.setattr("paperlib.cli.reproduce.reproduce", lambda *_, **__: pytest.fail("work has begun"))
    option, others = parameter.opts[0], REQUIRED.get(names[-1], [])
    # 1e-400000 is 0 for a float; 0 is meant as all detections, or as the first seed.
    values = [value for value in HOSTILE if value != "1e-400000"] + ["0"] * (option not in ("--confidence", "--seed"))
    for value in values:
        result = CliRunner().invoke(app, [*names, *others, option, value])
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1 and len(result.stderr) < 510
        assert result.stderr.startswith("paperlib: ") and option in result.stderr


def numbers_of(model):
    """Yield the fields of a model that are numbers."""
    for name, field in model.model_fields.items():
        kinds = {field.annotation, *typing.get_args(field.annotation)}
        inner = {argument for kind in kinds for argument in typing.get_args(kind)}
        if {int, float} & (kinds | inner):
            yield name


def test_compress_refuses_a_number_that_nobody_means():
    for name in numbers_of(CompressRequest):
        for value in (value for value in HOSTILE if value != "1e-400000" or name not in ZERO_IS_MEANT):
            with pytest.raises(ValueError) as caught:
                collect_options(CompressRequest, {name: value, "config": None, "set": None})
            assert str(caught.value).startswith(f"{option_name(name)}: ") and "\n" not in str(caught.value), value


def test_compress_tells_a_number_that_nobody_means_in_one_line():
    for value in HOSTILE:
        result = CliRunner().invoke(app, ["compress", "--data", "a", "--val", "b", "--out", "c", f"--epochs={value}"])
        assert result.exit_code == 2 and result.stderr.startswith("paperlib: --epochs: "), value
        assert result.stderr.count("\n") == 1 and len(result.stderr) < 510


def test_zero_is_refused_where_it_means_nothing():
    for name in numbers_of(CompressRequest):
        if name in ZERO_IS_MEANT:
            read_text(CompressRequest, name, "0")
        else:
            with pytest.raises(ValueError):
                read_text(CompressRequest, name, "0")


PLAIN_HOSTILE = [float("inf"), float("-inf"), float("nan"), 1e308, -1, 10**13, 10**30, "12", "", [[]], {"a": 1}]
KEYS = sorted({(notebook, name) for notebook, model in NOTEBOOKS.items() for name in numbers_of(model)})


@pytest.mark.parametrize("notebook", sorted({notebook for notebook, _ in KEYS}))
def test_a_profile_with_a_value_that_nobody_means_is_refused(notebook):
    for name in (name for other, name in KEYS if other == notebook):
        for value in PLAIN_HOSTILE:
            with pytest.raises(ValueError, match=name) as caught:
                validate_settings(notebook, {name: value}, "p.yaml")
            assert str(caught.value).startswith("p.yaml: ") and "\n" not in str(caught.value), value


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"detector": "yolov4-tinny"}, "'yolov4-tinny', did you mean 'yolov4-tiny'?"),
        ({"detector": "x" * 3000}, "unknown detector"),
        ({"seeds": [2**32]}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": [10**40]}, "seeds"),
        ({"cases": {"": {"detector": "yolov9"}, "b": {}}}, "'yolov9'"),
    ],
)
def test_an_unknown_detector_or_a_huge_seed_is_refused_before_a_kernel_starts(values, fault):
    for notebook in set(NOTEBOOKS) - {"99_claims"}:
        with pytest.raises(ValueError) as caught:
            validate_settings(notebook, values, "p.yaml")
        assert fault in str(caught.value), notebook
