"""The options of `paperlib compress`: one for each field, by itself, by `--set` or from a file; each default once."""

import pytest
from typer.testing import CliRunner

from paperlib.cli.main import app
from paperlib.cli.options import collect_options, option_name
from paperlib.compression.request import CompressRequest
from paperlib.experiments.parameters import Components
from paperlib.training.recipe import Recipe
from paperlib.workbench.options import Compression, CompressionOptions, shorten_recipe

FILES = {"data": "train.json", "val": "val.json", "out": "out"}


def collect(config=None, set=(), **given):  # noqa: A002
    return collect_options(CompressRequest, {**FILES, **given, "config": config, "set": list(set)})


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_every_field_of_the_recipe_and_of_algorithm_1_has_an_option():
    text = CliRunner().invoke(app, ["compress", "--help"]).output
    for name in Recipe.model_fields.keys() | CompressionOptions.model_fields.keys():
        assert f"{option_name(name)} " in text or f"{option_name(name)}," in text, name
    assert all(field.description for field in CompressRequest.model_fields.values())


def test_without_options_the_defaults_are_those_of_the_models():
    request = collect()
    recipe = request.recipe
    assert (recipe.epochs, recipe.image_size, recipe.schedule, recipe.ema, recipe.mosaic) == (
        60,
        416,
        "cosine",
        0.99,
        0.5,
    )
    changed = {"round_to": 8, "sparsity": 0.01}
    assert request.compression == Compression(**changed)
    assert request.compression.fine_tuning_after(recipe) == shorten_recipe(recipe)


def test_an_option_wins_over_set_and_set_over_the_file(config):
    path = config("epochs: 5\nschedule: step\nema: 0.5\nkeep_floor: 0.2\n")
    request = collect(path, ["ema=0.6", "schedule=cosine", "symmetries=false"], schedule="step")
    recipe = request.recipe
    assert (recipe.epochs, recipe.ema, recipe.schedule, recipe.symmetries) == (5, 0.6, "step", False)
    assert request.compression.min_keep_ratio == 0.2
    assert collect(path, min_keep_ratio="0.3").compression.min_keep_ratio == 0.3


def test_a_part_of_fine_tuning_may_be_chosen():
    request = collect(fine_tune_epochs="3", epochs="8")
    tuning = request.compression.fine_tuning_after(request.recipe)
    assert tuning == shorten_recipe(request.recipe).model_copy(update={"epochs": 3})


@pytest.mark.parametrize(
    ("text", "assignments", "given", "complaint"),
    [
        ("epoch: 5", [], {}, r"run.yaml: unknown key 'epoch', did you mean 'epochs'\? \(known: "),
        ("epochs: '5'", [], {}, r"run.yaml: epochs: Input should be a valid integer \(found '5'\)"),
        ("epochs: 5\nepochs: 6", [], {}, "run.yaml, line 2: not YAML .*'epochs' is given twice"),
        ("keep_floor: 0.1\nmin_keep_ratio: 0.2", [], {}, "run.yaml: min_keep_ratio: .* given twice"),
        ("- epochs", [], {}, "run.yaml: expected lines of the form"),
        ("epochs: 5", ["ema"], {}, "--set ema: expected KEY=VALUE"),
        ("epochs: 5", ["emma=0.5"], {}, r"--set emma=0.5: unknown key 'emma', did you mean 'ema'\?"),
        ("epochs: 5", ["ema=1.5"], {}, "--set ema: Input should be less than 1"),
        ("epochs: 5", ["ema=0.5", "ema=0.6"], {}, "--set ema=0.6: ema is given twice"),
        ("epochs: 5", [], {"precision": "int8"}, "--precision: Input should be 'no', 'bf16', 'fp16' or 'auto'"),
        ("epochs: 5", [], {"data": None}, "--data is missing"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_where_it_stands(text, assignments, given, complaint, config):
    with pytest.raises(ValueError, match=complaint) as caught:
        collect(config(text), assignments, **given)
    assert "\n" not in str(caught.value)


def test_old_and_american_names_are_accepted():
    assert Compression(keep_floor=0.3) == Compression(min_keep_ratio=0.3)
    assert Components(keep_floor=0.3, color=0.2) == Components(min_keep_ratio=0.3, colour=0.2)
    case = Components(cases={"": {}, "bare": {"keep_floor": 0.0}}).case("bare")
    assert case.min_keep_ratio == 0.0
