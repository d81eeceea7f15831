"""A scale is a file of settings; what does not fit is refused in one line."""

import pytest

from paperlib.experiments.case import cases_of
from paperlib.experiments.parameters import (
    NOTEBOOKS,
    Components,
    StartHere,
    load_profile,
    profile_path,
    validate_settings,
)
from paperlib.experiments.settings import Settings
from paperlib.training.recipe import Recipe
from paperlib.workbench.options import SurgeryOptions

SHIPPED = sorted(profile_path("x", "quick").parents[1].glob("*/*.yaml"))
SCALES = ("quick", "laptop", "paper")
LONG_TRAINING = set(Settings.model_fields) - SurgeryOptions.model_fields.keys() - {
    "seeds", "workers", "cases", "fine_tune_epochs", "fine_tune_learning_rate",
}  # fmt: skip
"""What makes the long trainings of a seed, plain and sparse, that the notebooks share through the store."""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_profile_fits_its_notebook_and_names_its_own_folder(path):
    settings = load_profile(path.stem, path)
    assert isinstance(settings, NOTEBOOKS[path.stem])
    assert settings.profile == path.parent.name
    assert path == profile_path(path.stem, settings.profile)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_runs_at_every_scale(notebook, scale):
    assert profile_path(notebook, scale) in SHIPPED


@pytest.mark.parametrize("scale", SCALES)
def test_the_notebooks_of_one_scale_train_a_detector_on_a_data_set_in_one_way(scale):
    settings = [load_profile(path.stem, path) for path in SHIPPED if path.parent.name == scale]
    cases = [one.case(name) for one in settings if isinstance(one, Settings) and one.has_metrics for name in one.cases]
    ways = {}
    for case in (case for case in cases if case.has_metrics):
        ways.setdefault((case.dataset, case.detector), []).append(case.model_dump(include=LONG_TRAINING))
    assert all(way == same[0] for same in ways.values() for way in same)
    assert max(map(len, ways.values())) > 1, "nothing is compared"


@pytest.mark.parametrize("scale", ["quick", "laptop"])
def test_the_cuts_of_figure_8_contain_those_of_table_1_and_leave_three_assistants(scale):
    table_1, figure_8 = (
        load_profile(name, profile_path(name, scale)) for name in ("03_components", "04_assistant_count")
    )
    assert set(table_1.ratios) < set(figure_8.ratios) and len(figure_8.ratios) == 4


def test_a_seed_that_was_trained_elsewhere_keeps_its_precision():
    chosen = validate_settings("03_components", {"seed_precisions": {"1": "bf16"}})
    case = cases_of(chosen)[""]
    assert [case.make_workbench(seed).fine_tuning.precision for seed in (0, 1)] == ["no", "bf16"]
    with pytest.raises(ValueError, match="parameters: seed_precisions.first"):
        validate_settings("03_components", {"seed_precisions": {"first": "bf16"}})


@pytest.mark.parametrize(
    ("notebook", "values", "complaint"),
    [
        ("01_scale_factor", {"sparsities": [0.001, 0.0]}, "sparsities: the strengths do not ascend"),
        ("01_scale_factor", {"sparsities": [0.0, -1e-3]}, "sparsities.1: Input should be greater than or equal to 0"),
        ("01_scale_factor", {"proximal": [0.1, 0.1000000001]}, "proximal: two strengths are the same to six digits"),
        ("06_pruning_methods", {"size_share": 1.0}, "size_share: Input should be less than 1"),
    ],
)
def test_what_a_notebook_compares_is_checked(notebook, values, complaint):
    with pytest.raises(ValueError, match=f"parameters: {complaint}"):
        validate_settings(notebook, values)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"epoch": 3}, "parameters: unknown key 'epoch', did you mean 'epochs'? (known: "),
        ({"epochs": "3"}, "parameters: epochs: Input should be a valid integer (found '3')"),
        ({"epochs": True}, "parameters: epochs: Input should be a valid integer (found True)"),
        ({"learning_rate": "0.1"}, "parameters: learning_rate: Input should be a valid number (found '0.1')"),
        ({"learning_rate": float("inf")}, "parameters: learning_rate: Input should be a finite number (found inf)"),
        ({"ratios": [0.5, 1.2]}, "parameters: ratios.1: Input should be less than 1 (found 1.2)"),
        ({"ratios": [0.5, 0.3]}, "parameters: ratios: the ratios do not ascend (found [0.5, 0.3])"),
        ({"ratios": [0.5]}, "parameters: ratios: "),
        ({"ratios": 0.5}, "parameters: ratios: Input should be a valid list (found 0.5)"),
        ({"seeds": []}, "parameters: seeds: "),
        ({"seeds": [0, 0]}, "parameters: seeds: a seed occurs twice (found [0, 0])"),
        ({"image_size": 100}, "parameters: image_size: Input should be a multiple of 32 (found 100)"),
        ({"profile": "../quick"}, "parameters: profile: String should match pattern"),
        ({"compensate": "half"}, "parameters: compensate: Input should be 'off', 'bias' or 'exact' (found 'half')"),
        ({"epochs": 0, "ratio": 0.5}, "; unknown key 'ratio'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_names_it(values, complaint):
    with pytest.raises(ValueError) as caught:
        validate_settings("03_components", values)
    message = str(caught.value)
    assert complaint in message
    assert "\n" not in message


def test_numbers_may_be_written_as_people_write_them():
    settings = validate_settings("00_start_here", {"learning_rate": 1, "warmup_epochs": 0})
    assert (settings.learning_rate, settings.warmup_epochs) == (1.0, 0.0)


def test_settings_cannot_be_changed_behind_their_digest():
    with pytest.raises(ValueError, match="frozen"):
        StartHere().epochs = 3
    assert Components().seeds is not Components().seeds


def test_an_unknown_notebook_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown notebook '04_nowhere'; known: 00_start_here, "):
        validate_settings("04_nowhere", {})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("epochs: [3\n", "{path}, line 2: not YAML"),
        ("epochs\n", "{path}: expected lines of the form `key: value`"),
        ("3: epochs\n", "{path}: expected lines of the form `key: value`"),
        ("", "{path}: expected lines of the form `key: value`"),
        ("epochs: three\n", "{path}: epochs: Input should be a valid integer (found 'three')"),
        ("learning_rate: 1e-3\n", "{path}: learning_rate: Input should be a valid number (found '1e-3')"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused_by_file_and_place(text, complaint, tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_profile("00_start_here", path)
    assert str(caught.value).startswith(complaint.format(path=path))


def test_a_profile_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/x.yaml: no such profile"):
        load_profile("00_start_here", tmp_path / "x.yaml")


def test_what_a_recipe_and_the_settings_share_has_one_meaning():
    shared = Recipe.model_fields.keys() & Settings.model_fields.keys()
    assert shared >= {"batch_size", "image_size", "schedule", "ema", "mosaic", "precision", "validate_every"}
    for name in shared:
        assert Recipe.model_fields[name].annotation == Settings.model_fields[name].annotation, name


def test_a_case_is_the_notebook_with_what_differs():
    cases = {"": {}, "yolov3": {"detector": "yolov3", "depth": 0.25, "ratios": [0.4, 0.7]}}
    settings = validate_settings("02_pruning_ratio", {"epochs": 3, "cases": cases})
    plain, other = settings.case(""), settings.case("yolov3")
    assert plain == validate_settings("02_pruning_ratio", {"epochs": 3, "cases": {"": {}}})
    assert (other.detector, other.depth, other.ratios, other.epochs) == ("yolov3", 0.25, [0.4, 0.7], 3)
    real = validate_settings("02_pruning_ratio", {"cases": {"a": {"dataset": "dota"}, "b": {"weights": "w"}, "c": {}}})
    assert real.inputs == {("dota", None), ("toy-aerial", "w"), ("toy-aerial", None)}


@pytest.mark.parametrize(
    ("cases", "complaint"),
    [
        ({}, "parameters: cases: Dictionary should have at least 1 item"),
        ({"a": {"epoch": 3}}, "parameters: cases: a: unknown key 'epoch', did you mean 'epochs'? (known: "),
        ({"": {}, "a": {"epochs": "3"}}, "parameters: cases: a: epochs: Input should be a valid integer (found '3')"),
        ({"a": {"seeds": [1], "cases": {}}}, "parameters: cases: a: all cases have the same cases, seeds"),
        ({"a": 3}, "parameters: cases.a: Input should be a valid dictionary (found 3)"),
    ],
)
def test_a_case_that_does_not_fit_is_refused_by_name(cases, complaint):
    with pytest.raises(ValueError) as caught:
        validate_settings("02_pruning_ratio", {"cases": cases})
    assert str(caught.value).startswith(complaint)
