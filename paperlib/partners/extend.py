"""Extension: every k x k convolution with a batch norm of its own gets partners to train with (BPL, ACNet).

With W and P the kernels of a convolution and its partner, an extended block computes
BN(W * x; gamma, beta) + BN(P * x; gamma', beta') where the network had BN(W * x; gamma, beta). The rival ACNet (X. Ding
et al., ICCV 2019) has two partners, with kernels of 1 x k and k x 1, and three terms.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Collection
from typing import Literal, cast, get_args

import torch
from torch import fx, nn
from torch.nn.utils import skip_init

from paperlib.costs import layer_macs
from paperlib.pairs import TWIN, Convolution, PartneredConv, find_partners
from paperlib.pruning.fx_ops import classify_node
from paperlib.pruning.tracing import trace_graph
from paperlib.seeding import seeded_rng

PartnerShape = Literal["twin", "asymmetric"]


def extend(
    module: nn.Module, *, kernels: Collection[int] = (3, 5), preserve: bool = True, seed: int = 0,
    shape: PartnerShape = "twin", copy_noise: float | None = None,
) -> nn.Module:  # fmt: skip
    """Return a copy of `module` in which every k x k convolution that has its own batch norm also has a partner.

    A partner has the stride, dilation and groups of its original. Convolutions of these sizes that get none are named
    in a warning, with the reason (see `skipped_convolutions`).

    Args:
        module: any network that torch.fx can trace; untouched.
        kernels: the sides k of the square kernels that get a partner. The paper extends those between 1 and 7.
        preserve: start the partner at gamma' = beta' = 0, so that the network computes what it computed before, and
            trained weights are kept. Otherwise the pair starts as in the public code: both kernels drawn by PyTorch's
            rule, gamma = gamma' = 0.5 (1/3 if there are two partners), beta = beta' = 0, and the original weights of
            the convolution are lost.
        seed: determines the drawn kernels, for every precision and device.
        shape: `twin`: one partner of the same shape (BPL). `asymmetric`: two, with kernels of 1 x k and k x 1 on the
            same centre (ACNet); for odd k and a padding of at least half a kernel, as `same` convolutions have.
        copy_noise: another start that preserves: both have half of gamma and beta, and the partner's kernel is a copy
            with normal noise of this many of its standard deviations. With 0 the network computes what it computed
            before, with more almost so.

    Raises:
        ValueError: the network is already extended, or has no such convolution; an unknown shape; or a negative
            `copy_noise`, or one for another start or shape.
    """
    check_shape(shape)
    check_copy_noise(copy_noise, preserve, shape)
    if extended := find_partners(module):
        raise ValueError(f"{next(iter(extended))} already has a partner; fuse the network before extending it again")
    norms, skipped = _choose_convolutions(module, kernels, shape)
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
            if copy_noise is None:
                pair = _make_pair(conv, norm, norm_name, preserve, shape)
            else:
                pair = _halve(conv, norm, norm_name, copy_noise)
            new.set_submodule(name, pair, strict=True)
            new.set_submodule(norm_name, nn.Identity().train(norm.training), strict=True)
    return new


def check_shape(shape: str) -> None:
    """Raise ValueError unless `shape` is a shape of partners."""
    known = get_args(PartnerShape)
    if shape not in known:
        raise ValueError(f"partners of shape {shape!r} are not known; choose one of: {', '.join(known)}")


def check_copy_noise(copy_noise: float | None, preserve: bool, shape: str) -> None:
    """Raise ValueError unless partners of this shape can start as copies with this noise."""
    if copy_noise is None:
        return
    if not copy_noise >= 0 or math.isinf(copy_noise):
        raise ValueError(f"copy_noise {copy_noise} must be >= 0 and finite")
    if not preserve or shape != "twin":
        raise ValueError("copy_noise is a start of twins that preserves the network; it takes no other start or shape")


def skipped_convolutions(
    module: nn.Module, kernels: Collection[int] = (3, 5), shape: PartnerShape = "twin"
) -> dict[str, str]:
    """Return the k x k convolutions that `extend` would leave without a partner: name -> reason."""
    return _choose_convolutions(module, kernels, shape)[1]


def partner_gmacs(module: nn.Module, image_size: int, kernels: Collection[int] = (3, 5)) -> float:
    """Count the multiply-accumulates / 10^9 that partners of the same shape add to one pass of `module`."""
    macs = layer_macs(module, image_size)
    return sum(macs[name] for name in _choose_convolutions(module, kernels, "twin")[0]) / 1e9


def _choose_convolutions(
    module: nn.Module, kernels: Collection[int], shape: PartnerShape
) -> tuple[dict[str, str], dict[str, str]]:
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
        elif shape == "asymmetric" and not _reaches_edges(cast(Convolution, modules[name])):
            skipped[name] = "its padding is less than half its kernel, or its kernel has no centre"
        else:
            norms[name] = norm
            del skipped[name]
    return norms, skipped


def _has_kernel(module: nn.Module, kernels: Collection[int]) -> bool:
    sizes = [(side, side) for side in kernels]
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.kernel_size in sizes


def _reaches_edges(conv: Convolution) -> bool:
    """Return whether a kernel of 1 x k or k x 1 on the same centre gives as many outputs with some padding >= 0."""
    side = conv.kernel_size[0]
    if isinstance(conv.padding, str):
        return side % 2 == 1 and conv.padding == "same"
    return side % 2 == 1 and all(p >= r for p, r in zip(conv.padding, _reach(conv), strict=True))


def _reach(conv: Convolution) -> list[int]:
    """Return how far a k x k kernel reaches from its centre, in rows and columns of its input."""
    return [dilation * (side // 2) for dilation, side in zip(conv.dilation, conv.kernel_size, strict=True)]


def _next_norm(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """Return the batch norm that alone reads a call of a convolution."""
    users = list(node.users)
    # A convolution with a second argument, such as an output size, is called as no pair can be.
    alone = len(users) == 1 and len(node.args) == 1 and not node.kwargs
    return str(users[0].target) if alone and classify_node(users[0], modules) == "norm" else None


@torch.no_grad()
def _make_pair(
    conv: Convolution, norm: nn.BatchNorm2d, norm_name: str, preserve: bool, shape: PartnerShape
) -> PartneredConv:
    layers = {TWIN: _copy_without_bias(conv)}
    if shape == "asymmetric":
        layers = {"row": _narrow_kernel(conv, axis=0), "column": _narrow_kernel(conv, axis=1)}
    partners = {name: (layer, copy.deepcopy(norm)) for name, layer in layers.items()}
    start_gamma = 1 / (1 + len(partners))
    if not preserve:
        _restart_(conv, norm, start_gamma)
    for partner, partner_norm in partners.values():
        _restart_(partner, partner_norm, 0.0 if preserve else start_gamma)
    return PartneredConv(conv, norm, partners, norm_name)


@torch.no_grad()
def _halve(conv: Convolution, norm: nn.BatchNorm2d, norm_name: str, noise: float) -> PartneredConv:
    """Return a pair of which each has half of gamma and beta, the partner with a copy of the kernel and some noise."""
    norm.weight.mul_(0.5)
    norm.bias.mul_(0.5)
    partner, partner_norm = _copy_without_bias(conv), copy.deepcopy(norm)
    # Drawn in float32 on the CPU, so that it depends on the seed alone.
    drawn = torch.randn(conv.weight.shape, device="cpu").to(conv.weight)
    partner.weight.add_(noise * conv.weight.std() * drawn)
    if conv.bias is not None:
        partner_norm.get_buffer("running_mean").sub_(conv.bias)  # a partner has none
    return PartneredConv(conv, norm, {TWIN: (partner, partner_norm)}, norm_name)


def _copy_without_bias(conv: Convolution) -> Convolution:
    partner = copy.deepcopy(conv)
    partner.bias = None  # its batch norm would take it away
    return partner


def _narrow_kernel(conv: Convolution, axis: int) -> Convolution:
    """Return a convolution for the middle row (axis 0) or column (axis 1) of the kernel, with undefined weights."""
    kernel_size, padding = list(conv.kernel_size), conv.padding
    kernel_size[axis] = 1
    if not isinstance(padding, str):
        padding = [*padding]
        padding[axis] -= _reach(conv)[axis]
    options = {name: getattr(conv, name) for name in ("stride", "dilation", "groups", "padding_mode")}
    kind = nn.Conv2d
    if isinstance(conv, nn.ConvTranspose2d):
        kind = nn.ConvTranspose2d
        options["output_padding"] = conv.output_padding
    # The constructor would draw weights, by another generator on another device.
    partner = skip_init(
        kind, conv.in_channels, conv.out_channels, kernel_size, padding=padding, bias=False, **options,
        device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    return cast(Convolution, partner.train(conv.training).requires_grad_(conv.weight.requires_grad))


def _restart_(conv: Convolution, norm: nn.BatchNorm2d, gamma: float) -> None:
    norm.reset_running_stats()
    _draw_kernel_(conv)
    nn.init.constant_(norm.weight, gamma)
    nn.init.zeros_(norm.bias)


def _draw_kernel_(conv: Convolution) -> None:
    """Draw a kernel by PyTorch's rule, in float32 on the CPU, so that it depends on the seed alone."""
    conv.weight.copy_(nn.init.kaiming_uniform_(torch.empty(conv.weight.shape, device="cpu"), a=math.sqrt(5)))
