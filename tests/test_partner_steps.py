"""Partners in the steps of the workbench: trained, fused before they are stored, and the same after a kill."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import tiny
import torch
from test_compression import run
from test_partners import SIDE, liven
from test_workbench import bench, record

from paperlib.costs import cost
from paperlib.detectors.base import Detector
from paperlib.pairs import find_partners
from paperlib.partners.diversity import KINDS
from paperlib.partners.extend import extend
from paperlib.partners.fuse import fuse
from paperlib.partners.partnership import Partnership
from paperlib.pruning import Sparsity, apply_plan, plan_pruning
from paperlib.training import running
from paperlib.workbench.options import PartnerOptions
from paperlib.workbench.steps import Model

TARGETS = [{"ratio": 0.4}, {"size_mb": 0.15}, {"gmacs": 0.0005}, {"channels": 120}]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: next(iter(target)))
def test_targets_mean_the_network_that_fusion_leaves(target: dict[str, float]) -> None:
    net = liven(extend(tiny.detector()))
    plan = plan_pruning(net, **target, image_size=SIDE)
    fused = fuse(apply_plan(net, plan, compensate="off"))
    assert (plan.cost_before, plan.cost_after) == (cost(fuse(net), SIDE), cost(fused, SIDE))
    assert plan.cost_after.size_mb < plan.cost_before.size_mb


def test_the_floor_refers_to_an_original_with_or_without_partners() -> None:
    net = liven(tiny.detector())
    smaller = apply_plan(net, plan_pruning(net, 0.3, image_size=SIDE))
    plain, extended = (
        [
            plan_pruning(small, 0.9, original=original, min_keep_ratio=0.5, image_size=SIDE)
            for original in (net, extend(net))
        ]
        for small in (smaller, extend(smaller))
    )
    assert plain[0].kept == plain[1].kept
    assert extended[0].kept == extended[1].kept
    assert extended[0].kept["stem1.conv.conv"] == plain[0].kept["stem1.conv"]


@pytest.mark.parametrize("method", ["subgradient", "proximal"])
def test_the_term_of_eq_4_counts_a_pair_as_one_scale_factor(method: str) -> None:
    net = extend(tiny.detector().double())
    pair = net.get_submodule("neck.conv")
    with torch.no_grad():
        pair.norm.weight.fill_(0.3)
        pair.partner_norm.weight.fill_(-0.4)
        pair.norm.weight[0] = pair.partner_norm.weight[0] = 0.0
    before = [norm.weight.detach().clone() for norm in (pair.norm, pair.partner_norm)]
    sparsity = Sparsity(0.1, method)
    sparsity.before_step(net, 1.0)
    sparsity.after_step(net, 1.0)
    for norm, start, part in zip((pair.norm, pair.partner_norm), before, (0.6, -0.8), strict=True):
        moved = norm.weight.grad if method == "subgradient" else start - norm.weight.detach()
        torch.testing.assert_close(moved[1:], torch.full_like(start[1:], 0.1 * part))
        assert moved[0] == 0
    # sqrt(0.3^2 + 0.4^2) = 0.5 for each channel of this pair but the first.
    net.get_parameter("neck.conv.norm.weight").data.zero_()
    net.get_parameter("neck.conv.partner_norm.weight").data.zero_()
    rest = Sparsity(0.1).penalty(net)
    with torch.no_grad():
        pair.norm.weight[1:], pair.partner_norm.weight[1:] = 0.3, -0.4
    assert float(Sparsity(0.1).penalty(net) - rest) == pytest.approx(0.1 * 0.5 * (len(before[0]) - 1))


def steps_with(partners: Partnership | None) -> Callable[[Path], dict[str, Model]]:
    def run(root: Path) -> dict[str, Model]:
        workbench = bench(root, partners=partners)
        sparse = workbench.train_sparse(workbench.build_detector())
        pruned = workbench.prune(sparse, 0.4)
        tuned = workbench.fine_tune(pruned, sparse=True)
        distilled = workbench.distil(workbench.prune(tuned, 0.3), sparse)
        return {"sparse": sparse, "pruned": pruned, "tuned": tuned, "distilled": distilled}

    return run


def test_a_step_trains_with_partners_and_keeps_the_fused_network(tmp_path: Path) -> None:
    partners = Partnership(0.02)
    alone, together = steps_with(None)(tmp_path), steps_with(partners)(tmp_path)
    assert (alone["sparse"], alone["pruned"]) == (together["sparse"], together["pruned"])
    assert record(together["tuned"])["settings"]["partners"] == partners.describe()
    assert "partners" not in record(alone["tuned"])["settings"]
    for name in ("tuned", "distilled"):
        fused, plain = together[name].detector(), alone[name].detector()
        assert not find_partners(fused) and not tiny.equal(fused, plain)
        assert together[name].digest != alone[name].digest
    assert cost(together["tuned"].detector(), SIDE) == cost(alone["tuned"].detector(), SIDE)
    assert (together["tuned"].history()["penalty"] > 0).all()
    assert (together["distilled"].history()["bound"] > 0).all(), "the teacher is heard"


def test_how_partners_train_is_part_of_the_step(tmp_path: Path) -> None:
    workbench = bench(tmp_path)
    pruned = workbench.prune(workbench.build_detector(), 0.5)
    ways = [Partnership(), Partnership(0.1), Partnership(kind="none"), Partnership(preserve=False)]
    ways.append(Partnership(copy_noise=0.1))
    made = {workbench.fine_tune(pruned, partners=partners).digest for partners in ways}
    assert len(made) == len(ways)
    assert workbench.fine_tune(pruned, partners=Partnership()).digest in made, "the same again"
    sparse = workbench.train(pruned, partners=Partnership(sparsity=Sparsity(0.02)))
    assert record(sparse)["settings"]["partners"]["sparsity"] == {"strength": 0.02, "method": "subgradient"}
    assert (sparse.history()["penalty"] > 0.02).all(), "the term that was asked for"
    longer = workbench.train(pruned, times=1.5, partners=Partnership())
    assert len(longer.history()) == 3, "half as long again as two epochs"


@pytest.mark.parametrize("how", ["dynamic", "instances"])
def test_a_student_with_partners_is_taught_by_any_method(how: str, tmp_path: Path) -> None:
    workbench = bench(tmp_path)
    teacher = workbench.build_detector()
    student = workbench.prune(teacher, 0.4)
    together = workbench.distil(student, teacher, how=how, partners=Partnership(0.1))
    alone = workbench.distil(student, teacher, how=how)
    fused = together.detector()
    assert not find_partners(fused) and not tiny.equal(fused, alone.detector())
    assert cost(fused, SIDE) == cost(student.detector(), SIDE)
    assert set(together.history()) > set(alone.history()), "every loss of the teaching, and the partners' own"


def fine_tune(root: Path) -> None:
    running.SECONDS_BETWEEN_STATES = 0
    workbench = bench(root, fine_tuning=tiny.recipe(epochs=4, ema=0.9))
    workbench.fine_tune(workbench.build_detector(), sparse=True, partners=Partnership())


def run_process(work: Callable[[Path], None], root: Path, reached: Callable[[], bool] = lambda: False) -> int:
    """Do the work in another process, which is killed when `reached()`; return its exit status."""
    process = tiny.processes.Process(target=work, args=(root,))
    process.start()
    while process.is_alive():
        if reached():
            process.kill()
        time.sleep(0.001)
    return process.exitcode


def trained(root: Path) -> Detector:
    [folder] = [path for path in root.glob("train-*") if path.is_dir()]
    return Model("", folder).detector()


def test_killed_between_epochs_it_ends_with_the_same_fused_weights(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_process(fine_tune, whole) == 0
    assert run_process(fine_tune, broken, lambda: any(broken.glob("train-*.partial/fit/state-00002"))) == -9
    assert run_process(fine_tune, broken) == 0
    assert tiny.equal(trained(broken), trained(whole))


def test_the_kinds_of_diversity_are_those_of_the_options() -> None:
    assert get_args(PartnerOptions.model_fields["diversity"].annotation) == KINDS


def compress_with(root: Path, **options: object) -> None:
    running.SECONDS_BETWEEN_STATES = 0
    run(root, step=0.45, fine_tuning=tiny.recipe(epochs=3), **options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"partners": True}, {"distillation": "dynamic"}], ids=["partners", "dynamic"])
def test_algorithm_1_killed_in_fine_tuning_and_in_distillation_ends_with_the_same_student(
    options: dict[str, object], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    work = partial(compress_with, **options)
    for kind in ("train-*.partial/fit/state-00003", "distil-*.partial/fit/state-00002"):
        assert run_process(work, broken, lambda kind=kind: any(broken.glob(kind))) == -9
    assert run_process(work, broken) == 0
    assert run_process(work, whole) == 0
    first, second = (
        {path.parent.name: path.read_bytes() for path in root.glob("*/detector.safetensors")}
        for root in (whole, broken)
    )
    assert first == second
    assert any(name.startswith("distil") for name in first)
