"""Prune every network of torchvision and 60 of timm, with random weights, and the same with Torch-Pruning.

    python benchmarks/zoo.py run torchvision timm --out zoo.jsonl
    python benchmarks/zoo.py table --out zoo.jsonl > docs/zoo.md

Each network runs in a process of its own, under a limit of time and memory. A line of the file holds one result, and
what the file holds already is not run again. For each network and each of the two libraries:

- prunable: the convolutions whose output channels can be removed. For Torch-Pruning: those that it has made smaller.
- difference: the largest difference between the outputs of the pruned network and of the full one whose removed
  channels have gamma 0 (compensate="exact"; where that is refused, gamma and beta 0), in float64, relative to the
  largest output. Detectors are compared by losses and detections; SSD, many of whose untrained scores are equal,
  so that rounding decides their order, by losses and the outputs of its head.
- trains: one step of SGD in training mode leaves a finite loss, and every parameter has a gradient.

Torch-Pruning gets the mildest reference: what is removed is set to zero where the next layer reads it. Its output
layers, and the whole heads of detectors, are given to it as `ignored_layers`, as in its own tests.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import multiprocessing
import platform
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch_pruning
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.ssd import SSD

from paperlib.pruning import apply_plan, mask_plan, plan_pruning, trace_channels
from paperlib.structure import shapes_only

CLASSES, RATIO = 7, 0.5
EXACT = 1e-10
"""The largest relative difference, in float64, that counts as none."""
SIDES = {
    "inception_v3": 299,
    "inception_v4": 96,
    "maxvit_t": 224,
    "inception_resnet_v2": 96,
    "levit_128s": 224,
    "efficientformer_l1": 224,
}
SIDES |= {"visformer_tiny": 224, "botnet26t_256": 256, "mobilevit_xxs": 64, "efficientvit_m0": 224, "tresnet_m": 64}
"""Sides of the images of networks that do not take 64 x 64 pixels."""
TIMM = """
    resnet26d seresnet18 ecaresnet26t resnext26ts gcresnet33ts skresnet18 resnest14d res2net50_26w_4s resnetblur18
    resnetv2_18 dla34 hrnet_w18_small selecsls42 xception41 legacy_seresnext26_32x4d rexnet_100 mobilenetv1_100
    mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small efficientnet_lite0 tf_efficientnet_lite0
    efficientnet_b0 tf_efficientnetv2_b0 efficientnet_es ghostnet_100 repghostnet_050 densenet121 cspresnet50
    cspdarknet53 darknet53 cs3darknet_s regnetx_002 regnety_002 regnetz_005 repvgg_a0 mobileone_s0 fastvit_t8
    repvit_m0_9 inception_v4 inception_resnet_v2 tinynet_e mnasnet_050 semnasnet_050 spnasnet_100 fbnetc_100 fbnetv3_b
    hardcorenas_a lcnet_050 mixnet_s ese_vovnet19b_dw gernet_s hgnetv2_b0 starnet_s050 vgg11_bn levit_128s
    mobilevit_xxs fasternet_t0 dpn48b convmixer_768_32
""".split()


def main() -> None:
    """Run networks, or print the table of what was run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("networks", nargs="*", help="torchvision, timm, or single names such as timm/dla34")
    parser.add_argument("--out", type=Path, default=Path("zoo.jsonl"))
    parser.add_argument("--library", choices=tuple(LIBRARIES), help="run this one only")
    parser.add_argument("--seconds", type=int, default=240, help="limit of processor time per network and library")
    parser.add_argument("--memory", type=float, default=10, help="limit per process, in GB")
    options = parser.parse_args()
    if options.action == "table":
        print(write_table(_read_results(options.out)))
        return
    done = {(row["network"], row["library"]) for row in _read_results(options.out)}
    for network in list_networks(options.networks):
        for library, prune in LIBRARIES.items():
            if (network, library) not in done and options.library in (None, library):
                row = {"network": network, "library": library} | _run_apart(network, prune, options)
                print(json.dumps(row), flush=True)
                with options.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")


def list_networks(names: list[str]) -> Iterator[str]:
    """Yield the names of single networks, `torchvision/...` or `timm/...`."""
    for name in names:
        if name == "torchvision":
            models = torchvision.models
            for module in (models, models.segmentation, models.detection):
                yield from (f"torchvision/{each}" for each in models.list_models(module=module))
        elif name == "timm":
            yield from (f"timm/{each}" for each in TIMM)
        else:
            yield name


# --- One network -----------------------------------------------------------------------------------------------------


def build_network(network: str) -> nn.Module:
    """Build a network with random weights for 7 classes."""
    source, name = network.split("/")
    if source == "timm":
        import timm

        return timm.create_model(name, num_classes=CLASSES)
    options: dict[str, Any] = {"weights": None, "num_classes": CLASSES}
    if name in (*torchvision.models.list_models(module=torchvision.models.detection), *_SEGMENTATION):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    net: Any = torchvision.models.get_model(name, **options)
    if hasattr(net, "transform") and not isinstance(net, SSD):
        net.transform.min_size, net.transform.max_size = (128,), 128
    return net


_SEGMENTATION = torchvision.models.list_models(module=torchvision.models.segmentation)


def check_network(network: str, prune: Callable[..., tuple[nn.Module, nn.Module, float]]) -> dict[str, Any]:
    """Prune one network and return its row."""
    with contextlib.suppress(NotImplementedError), shapes_only():  # RegNets compute their widths with tensors
        if not any(isinstance(m, _BatchNorm) for m in build_network(network).modules()):
            return {"outcome": "no batch norm"}
    torch.manual_seed(0)
    net = randomise(build_network(network).double().eval())
    side = SIDES.get(network.split("/")[1], 64)
    images = torch.rand(2, 3, side, side, dtype=torch.float64)
    convolutions = sum(isinstance(m, _ConvNd) for m in net.modules())
    small, masked, prunable = prune(net, images)
    outputs = run_network(small, images), run_network(masked, images)
    del masked
    return {
        "outcome": "pruned",
        "convolutions": convolutions,
        "prunable": prunable,
        "difference": largest_difference(*outputs),
        "trains": train_step(small, net, images),
    }


def randomise(net: nn.Module) -> nn.Module:
    """Give batch norms varied values, as after training; drop nothing, and show all detections of a detector."""
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.affine:
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)  # pyright: ignore
        if not type(module).forward.__module__.startswith("torch.nn."):
            for values in module.parameters(recurse=False):
                if 1 < values.numel() == max(values.shape):
                    values.data.uniform_(0.5, 1.5)  # a layer scale, nearly 0 at first
        if isinstance(getattr(module, "drop_rate", None), float):
            module.drop_rate = 0.0  # pyright: ignore
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0  # pyright: ignore
    return net


def is_detector(net: nn.Module) -> bool:
    """Tell whether a network takes targets in training mode."""
    return hasattr(net, "transform") and hasattr(net, "backbone")


@torch.no_grad()
def run_network(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the outputs in evaluation mode, and those in training mode with batch norms as they are.

    The auxiliary heads of classifiers and the losses of detectors belong to the latter.
    """
    net.eval()
    outputs = [_head_outputs(net, images) if isinstance(net, SSD) else net(images)]
    parts = [net, *(getattr(net, name) for name in ("rpn", "roi_heads") if hasattr(net, name))]
    for part in parts:
        part.training = True
    torch.manual_seed(0)
    try:
        outputs.append(_call_training(net, images))
    except Exception as error:
        raise RuntimeError(f"in training mode only: {error}") from error
    net.eval()
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _head_outputs(net: SSD, images: Tensor) -> Any:
    batch, _ = net.transform(list(images))
    features: Any = net.backbone(batch.tensors)
    return net.head(list(features.values()))


def _call_training(net: nn.Module, images: Tensor) -> Any:
    if not is_detector(net):
        return net(images)
    size = images.shape[-1]
    box = torch.tensor([[0.1, 0.1, 0.8, 0.9], [0.3, 0.2, 0.6, 0.5]], dtype=images.dtype) * size
    target: dict[str, Tensor] = {"boxes": box, "labels": torch.tensor([1, 2])}
    target["masks"] = torch.ones(2, size, size, dtype=torch.uint8)
    target["keypoints"] = torch.full((2, 17, 3), 0.5 * size)  # torchvision takes no float64 here
    return net(list(images), [dict(target) for _ in images])


def largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    """Return the largest difference of outputs, relative to the largest value; infinity if shapes differ."""
    if [tensor.shape for tensor in left] != [tensor.shape for tensor in right] or not left:
        return math.inf
    gaps = [0.0]
    for one, other in zip(left, right, strict=True):
        if one.numel():
            gaps.append(float((one - other).abs().max() / other.abs().max().clamp_min(1e-30)))
    return math.inf if any(map(math.isnan, gaps)) else max(gaps)


def train_step(small: nn.Module, net: nn.Module, images: Tensor) -> bool:
    """Train a pruned network for a step; tell whether all is finite, and all has a gradient that has one unpruned."""
    loss = _backward(small.train(), images)
    silent = {name for name, each in small.named_parameters() if each.requires_grad and each.grad is None}
    if silent:
        _backward(net.train(), images)
        silent -= {name for name, each in net.named_parameters() if each.grad is None}
    torch.optim.SGD(small.parameters(), lr=1e-3).step()
    return not silent and math.isfinite(loss) and all(each.isfinite().all() for each in small.parameters())


def _backward(net: nn.Module, images: Tensor) -> float:
    outputs = [leaf for leaf in tree_leaves(_call_training(net, images)) if isinstance(leaf, Tensor)]
    total: Any = sum((out if out.dim() == 0 else out.square().mean()) for out in outputs)
    total.backward()
    return float(total.detach())


# --- The two libraries -----------------------------------------------------------------------------------------------


def prune_with_paperlib(net: nn.Module, images: Tensor) -> tuple[nn.Module, nn.Module, int]:
    """Return the pruned network, the masked one, and the number of prunable convolutions."""
    plan = plan_pruning(net, RATIO, importance=spread_evenly, image_size=images.shape[-1])
    if plan.channels_kept == plan.channels_total:
        raise RuntimeError("nothing was removed")
    try:
        return apply_plan(net, plan, compensate="exact"), mask_plan(net, plan, keep_beta=True), len(plan.kept)
    except ValueError:  # a constant that a removed channel emits would vary at the border
        return apply_plan(net, plan, compensate="off"), mask_plan(net, plan), len(plan.kept)


def spread_evenly(module: nn.Module, prunable: dict[str, str]) -> dict[str, Tensor]:
    """Score channels by their number in the channel graph, so that all that are tied agree."""
    layers = trace_channels(module).layers
    return {name: torch.from_numpy(layers[name].outputs * 0.618034 % 1) for name in prunable}


def prune_with_torch_pruning(net: nn.Module, images: Tensor) -> tuple[nn.Module, nn.Module, int]:
    """Return the pruned network, the full one with silenced inputs, and the number of smaller convolutions."""
    small: Any = copy.deepcopy(net)
    masked = copy.deepcopy(net)
    names = {module: name for name, module in small.named_modules()}
    widths = {name: each.out_channels for name, each in net.named_modules() if isinstance(each, _ConvNd)}
    pruner = torch_pruning.pruner.MagnitudePruner(
        small, images, torch_pruning.importance.MagnitudeImportance(p=1), pruning_ratio=RATIO,
        ignored_layers=_output_layers(small),
    )  # fmt: skip
    silenced: dict[str, list[int]] = {}
    left: dict[str, list[int]] = {}
    for group in pruner.step(interactive=True) or ():
        for dependency, positions in group:
            layer = dependency.target.module
            if pruner.DG.is_in_channel_pruning_fn(dependency.handler) and isinstance(layer, _ConvNd | nn.Linear):
                name, count = names[layer], getattr(layer, "in_channels", getattr(layer, "in_features", 0))
                alive = left.setdefault(name, list(range(count)))
                gone = [alive[position] for position in positions]
                silenced.setdefault(name, []).extend(gone)
                left[name] = [each for each in alive if each not in set(gone)]
        group.prune()
    for name, gone in silenced.items():
        masked.get_submodule(name).register_forward_pre_hook(_silence(gone))
    smaller = sum(small.get_submodule(name).out_channels < width for name, width in widths.items())
    if not smaller:
        raise RuntimeError("nothing was removed")
    return small, masked, smaller


def _output_layers(net: Any) -> list[nn.Module]:
    heads = ("rpn", "roi_heads", "head") if is_detector(net) else ()
    outputs = [m for m in net.modules() if CLASSES in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
    fpn = [net.backbone.fpn] if is_detector(net) and hasattr(net.backbone, "fpn") else []
    return outputs + fpn + [getattr(net, name) for name in heads if hasattr(net, name)]


def _silence(channels: list[int]) -> Callable[..., Tensor]:
    def hook(layer: nn.Module, args: tuple[Tensor]) -> Tensor:
        return args[0].index_fill(1 if isinstance(layer, _ConvNd) else -1, torch.tensor(channels), 0.0)

    return hook


LIBRARIES = {
    "paperlib": prune_with_paperlib,
    f"Torch-Pruning {version('torch-pruning')}": prune_with_torch_pruning,
}


# --- Processes and the table -----------------------------------------------------------------------------------------


def _run_apart(network: str, prune: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Run `check_network` in a process of its own, under limits."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_run_child, args=(network, prune, results, options), daemon=True)
    child.start()
    child.join()
    if not results.empty():
        return results.get()
    slow = child.exitcode == -signal.SIGPROF
    return {"outcome": "stopped", "why": f"{options.seconds} s" if slow else f"process ended with {child.exitcode}"}


def _run_child(network: str, prune: Any, results: Any, options: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (int(options.memory * 1e9), resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, options.seconds)
    try:
        row = check_network(network, prune)
    except Exception as error:
        fault = (str(error).splitlines() or [""])[0][:200]
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = type(error).__name__
        refused = isinstance(error, ValueError) and "paperlib" in place.filename
        row = {"outcome": "refused" if refused else "failed", "why": f"{kind}: {fault}", "place": str(place)}
    results.put(row | {"seconds": round(time.process_time(), 1)})


_COMMANDS = ["```console", *[f"$ {line.strip()}" for line in (__doc__ or "").splitlines()[2:4]], "```"]


def _read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_table(rows: list[dict[str, Any]]) -> str:
    """Return all results as a page of Markdown."""
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["network"], {})[row["library"]] = row
    bare = [name for name, each in found.items() if any(row["outcome"] == "no batch norm" for row in each.values())]
    with_norms = {name: each for name, each in found.items() if name not in bare}
    lines = ["# Which networks can be pruned", "", *(__doc__ or "").splitlines()[5:], ""]
    lines += [f"Of {len(with_norms)} networks that have a batch norm:", ""]
    for library in libraries:
        tried = [each[library] for each in with_norms.values() if library in each]
        good = sum(map(_is_good, tried))
        lines.append(f"- {library}: {good} of the {len(tried)} that it was run on are pruned exactly and train.")
    both = [each for each in with_norms.values() if all(library in each for library in libraries)]
    counts = ", ".join(f"{library} {sum(_is_good(each[library]) for each in both)}" for library in libraries)
    lines += [f"- On the {len(both)} that both were run on: {counts}.", "", *_describe_machine()]
    head = [f"{library}: prunable | difference | trains" for library in libraries]
    lines += ["", f"| network | {' | '.join(head)} |", "|---" * (1 + 3 * len(libraries)) + "|"]
    for name, each in with_norms.items():
        lines.append(f"| {name} | {' | '.join(_write_cells(each.get(library, {})) for library in libraries)} |")
    return "\n".join([*lines, "", f"{len(bare)} more have no batch norm: {', '.join(bare)}."])


def _describe_machine() -> list[str]:
    """Return the versions and the processor, as they are where the table is written."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "torch-pruning"))
    return [f"{versions}; {names[0] if names else platform.processor()}, one thread. The commands:", "", *_COMMANDS]


def _is_good(row: dict[str, Any]) -> bool:
    return row.get("outcome") == "pruned" and row["difference"] <= EXACT and row["trains"]


def _write_cells(row: dict[str, Any]) -> str:
    if row.get("outcome") != "pruned":
        if not row:
            return "not run | |"
        why = row.get("why", "").replace("|", "/")
        return f"{row['outcome']}: {'too large for the memory' if 'allocate memory' in why else why} | |"
    share = f"{row['prunable']} of {row['convolutions']}"
    return f"{share} | {row['difference']:.0e} | {'yes' if row['trains'] else 'no'}"


if __name__ == "__main__":
    sys.exit(main())
