"""One drag: what the slider shows are the numbers of plans, in Python and in the page that stands alone."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import ipywidgets
import pytest
import tiny

from paperlib.costs import cost
from paperlib.figures import explorer
from paperlib.pruning import apply_plan, plan_pruning

ACCURACY = {0.3: 0.6, 0.5: 0.5}


@pytest.fixture(scope="module")
def detector():
    return tiny.detector()


@pytest.fixture(scope="module")
def plans(detector):
    return explorer.scan_ratios(detector, image_size=tiny.SIDE, min_keep_ratio=0.1)


def steps_of(page):
    return json.loads(re.search(r"^const steps = (.*)$", page, re.MULTILINE)[1])


def test_every_place_of_the_slider_shows_the_plan_that_would_be_carried_out(detector, plans):
    steps = steps_of(explorer.render_explorer(plans, ACCURACY))
    assert len(steps) == len(plans) == 96
    for percent in (0, 50, 95):
        plan = plan_pruning(detector, percent / 100, image_size=tiny.SIDE, min_keep_ratio=0.1)
        small = cost(apply_plan(detector, plan), tiny.SIDE)
        pruned, threshold, channels, size, compute = steps[percent]["numbers"]
        assert pruned == f"{percent} %"
        assert threshold == f"{plan.threshold:.4f}"
        assert channels == f"{sum(map(len, plan.kept.values()))} of {plan.channels_total}"
        assert size.startswith(f"{small.size_mb:.3g} MB") and compute.startswith(f"{small.gmacs:.3g} GMACs")
        heights = [height for _, height in steps[percent]["bars"]]
        scale = explorer.BARS_HEIGHT / max(layer.total for layer in plan.layers.values())
        assert heights == pytest.approx([scale * len(kept) for kept in plan.kept.values()], abs=0.06)


def test_the_page_stands_alone_and_its_parts_fit_together(plans):
    page = explorer.render_explorer(plans, ACCURACY)
    assert not re.search(r"https?:|//[a-z]|@import|\bsrc=|\bhref=|url\(", page)
    found = []

    class Parts(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes).get("class"), dict(attributes)))

    Parts().feed(page)
    [handle] = [attributes for tag, _, attributes in found if tag == "input"]
    assert (handle["min"], handle["max"], handle["value"]) == ("0", "95", "50")
    first = steps_of(page)[0]
    assert sum(kind == "number" for _, kind, _ in found) == len(first["numbers"])
    assert sum(kind == "kept" for _, kind, _ in found) == len(first["bars"])
    assert sum(kind == "cursor" for _, kind, _ in found) == 1
    assert sum(tag == "circle" for tag, *_ in found) == len(ACCURACY) + 1  # and the legend


def test_dragging_in_a_notebook_draws_anew(plans):
    handle, picture = explorer.build_explorer(plans, ACCURACY).children
    assert isinstance(handle, ipywidgets.IntSlider)
    for percent in (50, 80, 0):
        handle.value = percent
        for text in explorer.describe_plan(plans[percent]).values():
            assert f'class="number">{text}<' in picture.value


def test_names_of_layers_are_drawn_where_they_do_not_overlap(plans, monkeypatch):
    assert ">neck</text>" in explorer.draw_explorer(plans, {}, 50)
    monkeypatch.setattr(explorer, "MAX_NAMES", 3)
    crowded = explorer.draw_explorer(plans, {}, 50)
    assert ">neck</text>" not in crowded and "<title>neck: " in crowded


def test_a_plan_without_costs_says_what_is_missing(plans):
    with pytest.raises(ValueError, match="the plan has no costs"):
        explorer.describe_plan(replace(plans[50], cost_after=None))
