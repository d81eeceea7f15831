"""What notebook 10 computes without training, and the settings that it refuses."""

from collections.abc import Callable

import pandas as pd
import pytest
import tiny
import torch

from paperlib import figures
from paperlib.classifiers import build_classifier
from paperlib.experiments import partners as experiments
from paperlib.experiments.parameters import validate_settings
from paperlib.experiments.study import Study
from paperlib.partners.partnership import COSINE, LOST_ENERGY


def test_the_published_flops_are_decoded_to_the_digit() -> None:
    flops = experiments.decode_flops(0.3)
    assert (100 * flops["saved"]).round(2).tolist() == [73.97, 74.04, 78.25]


def test_the_public_codes_loss_is_smallest_where_a_pair_emits_a_constant_and_ours_where_it_is_orthogonal() -> None:
    scan = experiments.scan_angles(steps=8)
    assert scan["public"].idxmin() == scan["output"].idxmin() == 8
    assert scan["public"].iloc[8] == pytest.approx(0, abs=1e-12) and scan["output"].iloc[8] < 1e-12
    assert scan["orthogonal"].idxmin() == 4 and scan["output"].iloc[4] == pytest.approx(0.7, abs=0.1)


def test_fusion_is_measured_at_every_pair_and_precision() -> None:
    network = build_classifier("resnet50", 3, width=0.1, depth=0.1)
    errors = experiments.fusion_errors(network, torch.rand(4, 3, 32, 32))
    largest = errors.groupby("precision")["difference"].max()
    assert len(errors) == 2 * 4
    assert largest["float64"] < 1e-12 and 1e-12 < largest["float32"] < 1e-4
    runs = pd.DataFrame({"model": experiments.PRUNING_RIVALS, "seed": 7, "top1": [0.5, 0.7, 0.6, 0.4]})
    measured = experiments.tabulate_measured(
        runs, experiments.decode_flops(0.3), experiments.scan_angles(steps=2), {7: errors}
    ).set_index("model")
    assert measured.loc["best rival", "top1"] == 0.7
    assert measured.loc["fusion", "float32"] == largest["float32"]


def test_the_figures_show_every_block_rate_and_angle(tmp_path) -> None:
    history = pd.DataFrame({"epoch": [1, 2], f"{COSINE}a": [0.0, 0.1], f"{COSINE}b": 0.2, f"{LOST_ENERGY}a": [0, 1.0]})
    diversity = figures.plot_diversity({"none": history, "public": history}, COSINE, LOST_ENERGY)
    assert [len(axis.lines) for axis in diversity.axes] == [3, 3, 2, 2]
    runs = pd.DataFrame({"keep_rate": [0.2, 0.2, 0.5], "seed": [0, 1, 0], "gmacs": [1, 3, 9], "top1": [0.5, 0.7, 0.8]})
    rates = figures.plot_keep_rates({"alone": runs}, 0.9)
    assert rates.axes[0].lines[0].get_xdata().tolist() == [2000, 9000]
    figures.write_figure(figures.draw_twin_block(), tmp_path / "block.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_rate": 0.0}, "keep_rate: Input should be greater than 0"),
        ({"keep_rate": 1.0}, "keep_rate: Input should be less than 1"),
        ({"keep_rates": [0.5, 0.2]}, "keep_rates: the ratios do not ascend"),
        ({"cases": {"": {"detector": "resnet-50"}}}, "unknown detector or classifier 'resnet-50', did you mean"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_settings("10_partner_learning", changes)


@pytest.mark.parametrize(
    ("case", "train", "message"),
    [
        (
            {"dataset": "toy-scenes"},
            tiny.scenes,
            "toy-scenes: its images are scenes without boxes, on which no detector",
        ),
        ({"detector": "resnet50"}, tiny.dataset, "toy-aerial: its images have boxes, but resnet50 classifies whole"),
    ],
)
def test_a_network_and_data_of_different_tasks_are_refused(case: dict, train: Callable, message: str) -> None:
    study = Study("10_partner_learning", validate_settings("10_partner_learning", {"cases": {"": case}}))
    study.case.splits.train = train()
    with pytest.raises(ValueError, match=message):
        study.case.require_inputs()
