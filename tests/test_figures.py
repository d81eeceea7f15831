import importlib
import inspect
from pkgutil import iter_modules

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from paperlib import figures
from paperlib.data import Dataset, Record
from paperlib.pruning import SensitivityScan, absolute_gammas, apply_plan, plan_pruning

MODELS = ["baseline", "SCP", "SCP + TAKD"]


pytestmark = pytest.mark.usefixtures("styled_figures")


def history(epochs):
    judged = [np.nan] * (epochs - 1) + [0.5]
    return pd.DataFrame({"epoch": range(1, epochs + 1), "loss": np.linspace(2, 1, epochs), "map50": judged})


def runs(**columns):
    measured = {"map50": [0.6, 0.68, 0.3], "mb": [1.0, 2.0, 3.0], "gmacs": [0.1, 0.2, 0.3]}
    return pd.DataFrame({"seed": 0, **measured, **columns})


def draw_surgery():
    detector, layer = tiny.detector(), "block3.second.conv"
    plan = plan_pruning(detector, 0.5)
    before, after = (m.get_submodule(layer).weight.detach() for m in (detector, apply_plan(detector, plan)))
    return figures.plot_kernel_surgery(before, after, plan.kept["block3.first.conv"], plan.kept[layer])


def draw_detections():
    data, generator = tiny.dataset("test", 4), torch.Generator().manual_seed(0)
    targets = [data[index][1] for index in range(len(data))]
    found = [{**t, "scores": torch.rand(len(t["labels"]), generator=generator)} for t in targets]
    found = [{key: answer[key] for key in ("boxes", "labels", "scores")} for answer in found]
    return figures.draw_detections(data, [0, 2], {"baseline": found, "SCP": found}, {"baseline": 0.3, "SCP": 0.2})


def over_strengths():
    runs = {"strength": [0.0, 1e-3, 1e-3, 0.2], "method": ["subgradient"] * 2 + ["proximal"] * 2}
    return pd.DataFrame({**runs, "map50": [0.6, 0.5, 0.6, 0.4], "near_zero": [0.0, 0.4, 0.0, 0.5]})


def draw_valuable_cells():
    masks = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.6
    cells = [figures.ValuableCells(*masks, 8), figures.ValuableCells(*masks, 16)]
    image, truth = tiny.dataset("test", 1)[0]
    return figures.plot_valuable_cells(image, truth["boxes"], {"before": cells, "after": cells})


def instances(count=30):
    generator = np.random.default_rng(0)
    return pd.DataFrame({name: generator.uniform(1, 3, count) for name in ("size", "ratio", "weight")})


DRAWINGS = {
    "valuable cells": draw_valuable_cells,
    "selection": lambda: figures.plot_selection(
        {"DKD": history(3).assign(selected=0.4), "GD": history(3)}, ("selected", "status")
    ),
    "instance weights": lambda: figures.plot_instance_weights(instances()),
    "contact sheet": lambda: figures.draw_contact_sheet(tiny.dataset(), range(7)),
    "detections": draw_detections,
    "gamma": lambda: figures.plot_gamma_histogram({"λ = 0": torch.rand(99), "λ = 0.001": torch.rand(99) / 9}),
    "gamma in panels": lambda: figures.plot_gamma_panels({f"λ = {n}": torch.rand(99) / n for n in range(1, 6)}),
    "sparsity": lambda: figures.plot_sparsity_sweep(over_strengths()),
    "assistants": lambda: figures.plot_assistants(runs(model=["teacher", "SCP", "TK"]), {"TK": ["teacher", "TK"]}),
    "criteria": lambda: figures.plot_criteria(runs(model=["baseline", "l1", "l1 pruned"]), ["l1"], ["baseline"]),
    "layer": lambda: figures.plot_layer_gammas(*[absolute_gammas(tiny.detector())["neck.conv"]] * 2, "neck.conv", 0.1),
    "ratio": lambda: figures.plot_ratio_curves(
        runs(ratio=[0.3, 0.5, 0.5], state=["pruned", "pruned", "fine-tuned"], channels=[70, 50, 50]),
        pd.Series({"map50": 0.7, "mb": 3.0, "gmacs": 0.4, "channels": 99}),
        0.72,
    ),
    "cliff": lambda: figures.plot_sensitivity(
        SensitivityScan(0.6, pd.DataFrame({"ratio": [0.2, 0.4, 0.6], "score": [0.6, 0.5, 0.1]})), 0.05
    ),
    "components": lambda: figures.plot_components(runs(model=MODELS), MODELS, {MODELS[1]: -2.0}),
    "training": lambda: figures.plot_training_curves({name: history(epochs) for epochs, name in enumerate(MODELS, 2)}),
    "surgery": draw_surgery,
    "bound": figures.plot_regression_bound,
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_drawn_without_a_warning_and_names_what_its_axes_show(name, tmp_path):
    figure = DRAWINGS[name]()
    figures.write_figure(figure, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000
    seen = [axis for axis in figure.axes if axis.axison]
    assert all(axis.get_title(loc="left") or axis.get_xlabel() for axis in seen)
    assert bool(seen) == (name not in ("contact sheet", "detections"))


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_equal_figures_are_equal_files(suffix, tmp_path):
    for name in "ab":
        figures.write_figure(figures.plot_regression_bound(), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_rows_of_pictures_fill_the_page_without_gaps_whatever_their_shapes():
    shapes = [(40, 100), (100, 60), (80, 80)]
    records = [
        Record(f"{i}", np.zeros((*shape, 3), np.uint8), np.array([[5, 5, 20, 30]], np.float32), np.array([2]))
        for i, shape in enumerate(shapes)
    ]
    data = Dataset("made", ("ship", "bridge"), records)
    found = [{"boxes": torch.tensor(r.boxes), "labels": torch.tensor([2]), "scores": torch.ones(1)} for r in records]
    figure = figures.draw_detections(data, range(3), {"one": found, "two": found}, {"one": 0.3, "two": 0.3})
    assert figure.get_figwidth() == figures.PAGE_WIDTH
    figure.draw_without_rendering()
    places = [axis.get_window_extent().transformed(figure.dpi_scale_trans.inverted()) for axis in figure.axes]
    first_column = places[::3]
    gaps = [above.y0 - below.y1 for above, below in zip(first_column, first_column[1:], strict=False)]
    assert all(0 <= gap < 0.15 for gap in gaps)
    assert places[2].x1 - places[0].x0 > 0.97 * figures.PAGE_WIDTH
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["bridge"]


def test_a_detection_below_the_confidence_is_not_drawn():
    figure = draw_detections()
    written = [float(text.get_text()) for axis in figure.axes for text in axis.texts]
    assert written and min(written) >= 0.3
    boxes = [len(axis.patches) for axis in figure.axes]
    assert boxes[0] > boxes[1] == boxes[2]


def test_the_share_near_zero_that_a_panel_states_is_of_all_channels_below_the_limit():
    values = torch.tensor([0.0, 0.0099, 0.01, 0.5])
    figure = figures.plot_gamma_panels({"λ = 0": values, "λ = 1": torch.zeros(3)})
    assert [axis.texts[0].get_text() for axis in figure.axes] == ["50.0 % below 0.01", "100.0 % below 0.01"]


def test_the_highest_bin_of_any_panel_is_inside_all_panels():
    figure = figures.plot_gamma_panels({"λ = 0": torch.rand(50) + 0.1, "λ = 1": torch.zeros(400)})
    assert all(axis.get_ylim()[1] > 400 for axis in figure.axes)


def test_photographs_within_an_svg_are_jpeg_and_drawings_stay_exact(tmp_path):
    noise = torch.randint(0, 256, (40, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    photograph = Dataset("made", ("ship",), [Record("0", noise, np.zeros((0, 4), np.float32), np.zeros(0, int))])
    for name, figure in {"photograph": figures.draw_contact_sheet(photograph, [0]), "drawing": draw_surgery()}.items():
        figures.write_figure(figure, tmp_path / f"{name}.svg")
    photograph, drawing = ((tmp_path / f"{name}.svg").read_text() for name in ("photograph", "drawing"))
    assert "data:image/jpeg" in photograph and "data:image/png" not in photograph
    assert "data:image/png" in drawing and "data:image/jpeg" not in drawing


def test_the_face_offers_every_function_that_draws():
    modules = [importlib.import_module(f"paperlib.figures.{found.name}") for found in iter_modules(figures.__path__)]
    drawing = {
        name
        for module in modules
        for name, function in vars(module).items()
        if inspect.isfunction(function) and inspect.signature(function).return_annotation == "Figure"
    }
    drawing = {name for name in drawing if not name.startswith("_")}
    assert len(drawing) > 20 and drawing <= set(figures.__all__)
    assert all(name.startswith(("plot_", "draw_")) for name in drawing)
    assert all(hasattr(figures, name) for name in figures.__all__)
