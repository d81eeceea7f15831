"""The experiments of partner learning (BPL): one function per table, and what can be computed without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.classifiers import FAMILY
from paperlib.costs import cost
from paperlib.distillation.scenes import SelfDistillation
from paperlib.experiments.assistants import Models, Trainings
from paperlib.experiments.parameters import PartnerLearning
from paperlib.pairs import find_partners
from paperlib.partners.diversity import diversity
from paperlib.partners.extend import extend, partner_gmacs
from paperlib.partners.fuse import fuse
from paperlib.partners.partnership import Partnership
from paperlib.partners.published_flops import count_resnet_macs
from paperlib.pruning import SoftPruning
from paperlib.seeding import seeded_rng
from paperlib.workbench.algorithm_1 import distil_chain, prune_to_ratios
from paperlib.workbench.steps import Model, Workbench

KINDS = ("none", "public", "orthogonal")
"""The diversity losses that are compared."""
PARTS = ("alone", "alone, longer", *(f"partners, {kind}" for kind in KINDS), "scratch", "scratch, partners", "baseline")
"""The rows of table T1 that are drawn; a scale may leave out the last but one."""
PRUNING_RIVALS = ("l1-layerwise", "fpgm", "hrank", "SFP")
"""The rows of `rivals` of which partners should beat the best."""
RIVALS = ("alone", "l1-layerwise", "fpgm", "hrank", "gamma", "SFP", "KD", "self-KD", "ACNet", "partners, orthogonal")
"""The rows of table T2; a scale may leave some out."""


def components(workbench: Workbench, settings: PartnerLearning) -> Models:
    """Train one pruned network with and without partners and each diversity loss (table T1).

    It is cut as in the public code: in every layer the filters with the smallest L2 norms. The fine-tuned rows start
    from the weights that are left, those from scratch from random ones, where partners start as in the public code.
    """
    baseline = workbench.train(workbench.build_detector())
    pruned = cut(workbench, baseline, settings.keep_rate)
    fresh = workbench.reset_weights(pruned)
    rows = {
        "baseline": baseline,
        "pruned": pruned,
        "alone": workbench.fine_tune(pruned),
        "alone, longer": workbench.fine_tune(pruned, "fine-tune longer", times=cost_of_partners(workbench, pruned)),
    }
    for kind in KINDS:
        rows[f"partners, {kind}"] = workbench.fine_tune(
            pruned, f"partners, {kind}", partners=Partnership(settings.diversity_weight, kind)
        )
    rows["scratch"] = workbench.train(fresh, "train from scratch")
    if settings.public_start:
        start = Partnership(settings.diversity_weight, "orthogonal", preserve=False)
        rows["scratch, partners"] = workbench.train(fresh, "from scratch with partners", partners=start)
    return rows


def rivals(workbench: Workbench, settings: PartnerLearning) -> Models:
    """Prune by other criteria to the same compute, or train otherwise, as long as the rows of `components` (T2).

    Soft pruning takes a short training of the unpruned network in addition. The branches of ACNet are partners of other
    shapes; like ours they start from gamma = 0, and they have no diversity loss.
    """
    baseline = workbench.train(workbench.build_detector())
    pruned = cut(workbench, baseline, settings.keep_rate)
    image_size = workbench.recipe.image_size
    target: dict[str, Any] = {"gmacs": cost(pruned.architecture(), image_size).gmacs}
    models = {}
    for name in ("l1-layerwise", "fpgm", "hrank", *(("gamma",) if settings.more_rivals else ())):
        models[name] = workbench.fine_tune(workbench.prune(baseline, importance=name, **target), f"fine-tune {name}")
    term = SoftPruning(**target, image_size=image_size, min_keep_ratio=settings.min_keep_ratio)
    soft = workbench.fine_tune(baseline, "soft pruning", term=term)
    models["SFP"] = workbench.fine_tune(workbench.prune(soft, importance="l2-layerwise", **target), "fine-tune SFP")
    if settings.more_rivals:
        models["KD"] = workbench.distil(pruned, baseline)
    objective = partial(SelfDistillation, seed=workbench.recipe.seed)
    models["self-KD"] = workbench.fine_tune(pruned, "self-distillation", objective=objective)
    if settings.acnet:
        branches = Partnership(0.0, "none", shape="asymmetric")
        models["ACNet"] = workbench.fine_tune(pruned, "branches of ACNet", partners=branches)
    return models


def keep_rates(workbench: Workbench, settings: PartnerLearning) -> Models:
    """Fine-tune with and without partners at several keep rates (T3)."""
    baseline = workbench.train(workbench.build_detector())
    partners = Partnership(settings.diversity_weight, "orthogonal")
    models = {}
    for rate in settings.keep_rates:
        pruned = cut(workbench, baseline, rate)
        models[f"{rate:g}, alone"] = workbench.fine_tune(pruned, f"fine-tune {rate:g}")
        models[f"{rate:g}, partners"] = workbench.fine_tune(pruned, f"partners at {rate:g}", partners=partners)
    return models


def detection(workbench: Workbench, settings: PartnerLearning) -> Models:
    """Fine-tune a pruned detector alone, with partners, with assistants, and with both (T4), with the first seeds.

    Partners make an epoch dearer, so both ways without them are also trained for as many epochs as cost the same.
    """
    if workbench.recipe.seed not in settings.seeds[: settings.detector_seeds]:
        return {}
    teacher = workbench.train_sparse(workbench.build_detector())
    *assistants, student = prune_to_ratios(workbench, teacher, settings.ratios)
    *_, assistant = distil_chain(workbench, teacher, assistants)
    partners = Partnership(settings.diversity_weight, "orthogonal")
    longer = cost_of_partners(workbench, student)
    return {
        "teacher": teacher,
        "pruned": student,
        "alone": workbench.fine_tune(student),
        "alone, longer": workbench.fine_tune(student, "fine-tune longer", times=longer),
        "partners": workbench.fine_tune(student, "fine-tune with partners", partners=partners),
        "assistants": workbench.distil(student, assistant, "distil by the last assistant"),
        "assistants, longer": workbench.distil(student, assistant, "distil longer", times=longer),
        "both": workbench.distil(student, assistant, "distil with partners", partners=partners),
    }


def cut(workbench: Workbench, model: Model, keep_rate: float) -> Model:
    """Keep a fraction of the filters of every layer: those with the largest L2 norms, as in the public code."""
    return workbench.prune(model, round(1 - keep_rate, 9), importance="l2-layerwise")


def cost_of_partners(workbench: Workbench, model: Model) -> float:
    """Return how many times the compute of one training step partners take, counted in multiply-accumulates."""
    network, image_size = model.architecture(), workbench.recipe.image_size
    return 1 + partner_gmacs(network, image_size) / cost(network, image_size).gmacs


def decode_flops(keep_rate: float) -> pd.DataFrame:
    """Compute the savings of ResNet-50 at a keep rate in the three ways of counting; no weights are needed.

    Returns:
        `counted` (in words), `before` and `after` in GMACs at 256 pixels, `saved` as a fraction.
    """
    network = FAMILY.build_without_weights(name="resnet50", num_classes=21)
    rate = Fraction(str(keep_rate))
    ways = {
        "as published: batch norms too, inputs of conv3 whole": {"norms": True, "third_inputs": False},
        "multiply-accumulates, inputs of conv3 whole": {"norms": False, "third_inputs": False},
        "multiply-accumulates, inputs of conv3 cut as well": {"norms": False, "third_inputs": True},
    }
    rows = []
    for words, options in ways.items():
        before, after = (count_resnet_macs(network, kept, **options) for kept in (Fraction(1), rate))
        rows.append((words, before / 1e9, after / 1e9, 1 - after / before))
    return pd.DataFrame(rows, columns=["counted", "before", "after", "saved"])


def scan_angles(steps: int = 60, size: int = 8) -> pd.DataFrame:
    """Turn a partner from its original's direction to the opposite one, and measure both losses and the output.

    One filter of a 3 x 3 convolution, in float64, with gamma = gamma' = 0.5 and beta = beta' = 0 in training mode on
    independent normal inputs.

    Returns:
        `angle` in degrees, `public` (cos + 1), `orthogonal` (cos^2), and `output`: the root mean square of what the
        pair emits, divided by that at angle 0.
    """
    with seeded_rng(0):
        net = extend(nn.Sequential(nn.Conv2d(4, 1, 3, bias=False), nn.BatchNorm2d(1)).double(), preserve=False)
        images = torch.randn(64, 4, size, size, dtype=torch.float64)
    pair = find_partners(net)["0"]
    own = pair.conv.weight.detach()
    across = pair.partner.weight.detach()
    across = across - (across * own).sum() / own.square().sum() * own
    across = across * own.norm() / across.norm()
    rows = []
    for step in range(steps + 1):
        angle = math.pi * step / steps
        pair.partner.weight.data = math.cos(angle) * own + math.sin(angle) * across
        emitted = net(images).square().mean().sqrt().item()
        rows.append((math.degrees(angle), *(diversity(net, kind).item() for kind in ("public", "orthogonal")), emitted))
    scan = pd.DataFrame(rows, columns=["angle", "public", "orthogonal", "output"])
    return scan.assign(output=scan["output"] / scan["output"].iloc[0])


@torch.no_grad()
def fusion_errors(network: nn.Module, images: Tensor, seed: int = 0) -> pd.DataFrame:
    """Compare every pair with its fused convolution, in float32 and float64, on the inputs that it sees.

    The partners start as in the public code; scale factors and shifts are drawn, and the statistics are those of the
    images.

    Returns:
        `layer`, `precision`, `difference`: the largest difference, divided by the largest output of the pair.
    """
    extended = extend(network, preserve=False, seed=seed)
    with seeded_rng(seed):
        for pair in find_partners(extended).values():
            for norm in (pair.norm, pair.partner_norm):
                nn.init.uniform_(norm.weight, -1.5, 1.5)
                nn.init.uniform_(norm.bias, -1, 1)
    for norm in extended.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean over all batches: here, of one
    method = getattr(extended, "traced_method", "forward")
    getattr(extended.train(), method)(images)
    rows = []
    for precision in (torch.float32, torch.float64):
        typed = extended.to(precision).eval()
        inputs = _record_inputs(typed, method, images.to(precision))
        fused = fuse(typed)
        for name, pair in find_partners(typed).items():
            before = pair(inputs[name])
            after = fused.get_submodule(pair.norm_name)(fused.get_submodule(name)(inputs[name]))
            difference = float((before - after).abs().max() / before.abs().max())
            rows.append((name, str(precision).removeprefix("torch."), difference))
    return pd.DataFrame(rows, columns=["layer", "precision", "difference"])


def _record_inputs(network: nn.Module, method: str, images: Tensor) -> dict[str, Tensor]:
    """Return the input of every pair in one pass, by name."""
    inputs: dict[str, Tensor] = {}
    hooks = [
        pair.register_forward_hook(lambda _, given, _out, name=name: inputs.update({name: given[0]}))
        for name, pair in find_partners(network).items()
    ]
    getattr(network, method)(images)
    for hook in hooks:
        hook.remove()
    return inputs


def tabulate_measured(
    runs: pd.DataFrame, flops: pd.DataFrame, scan: pd.DataFrame, errors: Mapping[int, pd.DataFrame]
) -> pd.DataFrame:
    """Return what claims refer to beside the models' rows, one row per quantity and seed.

    What needs no training is the same for every seed.

    Args:
        runs: columns `model`, `seed` and `top1` of the classifiers.
        flops: result of `decode_flops`.
        scan: result of `scan_angles`.
        errors: by seed, the result of `fusion_errors`.
    """
    rows = []
    for seed, found in errors.items():
        largest = {str(precision): group["difference"].max() for precision, group in found.groupby("precision")}
        of_seed = runs[runs["seed"] == seed]
        accuracy = dict(zip(of_seed["model"], of_seed["top1"], strict=True))
        rows += [
            {"model": "resnet50", "seed": seed, "saved": flops["saved"].iloc[0]},
            {"model": "opposite pair", "seed": seed, "emitted": scan["output"].iloc[-1]},
            {"model": "fusion", "seed": seed, **largest},
            {"model": "best rival", "seed": seed, "top1": max(accuracy[name] for name in PRUNING_RIVALS)},
        ]
    return pd.DataFrame(rows)


TRAININGS: dict[Callable[..., Models], Callable[[Any], Trainings]] = {
    components: lambda settings: Trainings(2 + settings.public_start, 5),
    rivals: lambda settings: Trainings(0, 6 + 2 * settings.more_rivals + settings.acnet),
    keep_rates: lambda settings: Trainings(0, 2 * len(settings.keep_rates)),
    detection: lambda settings: Trainings(1, 2 * len(settings.ratios) + 3),
}
"""How many trainings each experiment adds to those before it, for the progress display."""
