"""Extension: every k x k convolution with a batch norm of its own gets a partner to train with (BPL).

With W and P the kernels of a convolution and its partner, an extended block computes
BN(W * x; gamma, beta) + BN(P * x; gamma', beta') where the network had BN(W * x; gamma, beta).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Collection
from typing import cast

import torch
from torch import fx, nn

from paperlib.costs import layer_macs
from paperlib.pairs import Convolution, PartneredConv, find_partners
from paperlib.pruning.fx_ops import classify_node
from paperlib.pruning.tracing import trace_graph
from paperlib.seeding import seeded_rng

START_GAMMA = 0.5
"""Both scale factors of a pair that starts from drawn kernels, as in the public code of the paper."""


def extend(module: nn.Module, *, kernels: Collection[int] = (3, 5), preserve: bool = True, seed: int = 0) -> nn.Module:
    """Return a copy of `module` in which every k x k convolution that has its own batch norm also has a partner.

    A partner has the shape, stride, padding, dilation and groups of its original. Convolutions of these sizes that
    get none are named in a warning, with the reason (see `skipped_convolutions`).

    Args:
        module: any network that torch.fx can trace; untouched.
        kernels: the sides k of the square kernels that get a partner. The paper extends those between 1 and 7.
        preserve: start the partner at gamma' = beta' = 0, so that the network computes what it computed before, and
            trained weights are kept. Otherwise the pair starts as in the public code: both kernels drawn by PyTorch's
            rule, gamma = gamma' = 0.5, beta = beta' = 0, and the original weights of the convolution are lost.
        seed: determines the drawn kernels, for every precision and device.

    Raises:
        ValueError: the network is already extended, or has no such convolution.
    """
    if extended := find_partners(module):
        raise ValueError(f"{next(iter(extended))} already has a partner; fuse the network before extending it again")
    norms, skipped = _choose_convolutions(module, kernels)
    if not norms:
        sides = " or ".join(f"{side} x {side}" for side in kernels)
        raise ValueError(f"{type(module).__name__} has no {sides} convolution with a batch norm of its own to extend")
    if skipped:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in skipped.items())
        warnings.warn(f"without a partner: {reasons}", stacklevel=2)
    new = copy.deepcopy(module)
    with seeded_rng(seed):
        for name, norm_name in norms.items():
            conv = cast(Convolution, new.get_submodule(name))
            norm = cast(nn.BatchNorm2d, new.get_submodule(norm_name))
            new.set_submodule(name, _make_pair(conv, norm, norm_name, preserve), strict=True)
            new.set_submodule(norm_name, nn.Identity().train(norm.training), strict=True)
    return new


def skipped_convolutions(module: nn.Module, kernels: Collection[int] = (3, 5)) -> dict[str, str]:
    """Return the k x k convolutions that `extend` would leave without a partner: name -> reason."""
    return _choose_convolutions(module, kernels)[1]


def partner_gmacs(module: nn.Module, image_size: int, kernels: Collection[int] = (3, 5)) -> float:
    """Count the multiply-accumulates / 10^9 that the partners of `extend` add to one pass of `module`."""
    macs = layer_macs(module, image_size)
    return sum(macs[name] for name in _choose_convolutions(module, kernels)[0]) / 1e9


def _choose_convolutions(module: nn.Module, kernels: Collection[int]) -> tuple[dict[str, str], dict[str, str]]:
    """Return convolution -> its own batch norm for those that can be extended, and convolution -> reason for others."""
    recorded, modules = trace_graph(module), dict(module.named_modules())
    calls = Counter(node.target for node in recorded.nodes if node.op == "call_module")
    norms: dict[str, str] = {}
    skipped = {name: "the traced pass does not use it" for name in modules if _has_kernel(modules[name], kernels)}
    for node in recorded.nodes:
        name = str(node.target)
        if node.op != "call_module" or not _has_kernel(modules[name], kernels):
            continue
        norm = _next_norm(node, modules)
        # A norm of several calls may see them together in training, as that of Faster R-CNN's proposal head does.
        if norm is None:
            skipped[name] = "no batch norm of its own follows it"
        elif calls[norm] > 1 or calls[name] > 1:
            skipped[name] = "its batch norm serves several calls"
        else:
            norms[name] = norm
            del skipped[name]
    return norms, skipped


def _has_kernel(module: nn.Module, kernels: Collection[int]) -> bool:
    sizes = [(side, side) for side in kernels]
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.kernel_size in sizes


def _next_norm(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """Return the batch norm that alone reads a call of a convolution."""
    users = list(node.users)
    # A convolution with a second argument, such as an output size, is called as no pair can be.
    alone = len(users) == 1 and len(node.args) == 1 and not node.kwargs
    return str(users[0].target) if alone and classify_node(users[0], modules) == "norm" else None


@torch.no_grad()
def _make_pair(conv: Convolution, norm: nn.BatchNorm2d, norm_name: str, preserve: bool) -> PartneredConv:
    partner, partner_norm = copy.deepcopy(conv), copy.deepcopy(norm)
    partner.bias = None  # its batch norm would take it away
    partner_norm.reset_running_stats()
    if not preserve:
        norm.reset_running_stats()
        _draw_kernel_(conv)
        nn.init.constant_(norm.weight, START_GAMMA)
        nn.init.zeros_(norm.bias)
    _draw_kernel_(partner)
    nn.init.constant_(partner_norm.weight, 0.0 if preserve else START_GAMMA)
    nn.init.zeros_(partner_norm.bias)
    return PartneredConv(conv, norm, partner, partner_norm, norm_name)


def _draw_kernel_(conv: Convolution) -> None:
    """Draw a kernel by PyTorch's rule, in float32 on the CPU, so that it depends on the seed alone."""
    conv.weight.copy_(nn.init.kaiming_uniform_(torch.empty(conv.weight.shape, device="cpu"), a=math.sqrt(5)))
