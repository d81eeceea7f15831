"""Compare the time of planning and pruning a full-size detector with Torch-Pruning, in one run.

    python benchmarks/surgery.py yolov4
    python benchmarks/surgery.py torchvision/resnet152
    python benchmarks/surgery.py --curve

Prints the median seconds of the processor of both, and the median and quartiles of their ratio in each round. Both rank
|gamma| over all layers and remove the same fraction of channels. Torch-Pruning prunes in place, so it gets a copy whose
time is not counted. So do we, because a network that is known already is not traced again; the copy that our surgery
makes is counted.
With `--curve` it times paperlib alone, on residual networks of up to 1,000 convolutions, which take turns.
"""

from __future__ import annotations

import argparse
import copy
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import pandas as pd
import torch
import torch_pruning
import torchvision
from torch import nn

from paperlib.detectors import COCO_CLASSES, build_detector
from paperlib.pruning import apply_plan, plan_pruning, trace_channels

SIDE = 64
"""Side of the image that Torch-Pruning traces with, in pixels: a small one, in its favour."""


def main() -> None:
    """Time both, in turns, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("detector", nargs="?", default="yolov4")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--compensate", default="bias", choices=("off", "bias", "exact"))
    parser.add_argument("--curve", action="store_true", help="time networks of growing depth instead")
    options = parser.parse_args()
    if options.curve:
        print_curve(options.ratio, options.compensate, options.rounds)
        return
    source, _, name = options.detector.rpartition("/")
    built = torchvision.models.get_model(name) if source else build_detector(name, COCO_CLASSES)
    detector = _lively(built).eval()
    rivals = {
        "paperlib": lambda: _ours(copy.deepcopy(detector), options.ratio, options.compensate),
        f"Torch-Pruning {version('torch-pruning')}": lambda: _theirs(copy.deepcopy(detector), options.ratio),
    }
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(1 + options.rounds):  # the first warms up
        for name, prune in rivals.items():
            times[name].append(prune())
    rows = [{"": name, **_spread(found[1:])} for name, found in times.items()]
    ratios = [ours / theirs for ours, theirs in zip(*times.values(), strict=True)][1:]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"$ python {' '.join(sys.argv)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))
    print(f"ours / theirs: {middle:.2f} ({low:.2f} to {high:.2f})")


def print_curve(ratio: float, compensate: str, rounds: int) -> None:
    """Print the time of planning and cutting for networks of 124 to 1,000 convolutions of 64 channels."""
    networks = {count: _lively(_Tower(count)).eval() for count in (124, 250, 500, 1000)}
    times: dict[int, list[float]] = {count: [] for count in networks}
    for _ in range(1 + rounds):  # the first warms up
        for count, network in networks.items():
            times[count].append(1000 * _ours(copy.deepcopy(network), ratio, compensate) / count)
    rows = []
    for count, found in times.items():
        low, middle, high = statistics.quantiles(found[1:], n=4)
        row = {"convolutions": count, "ms per convolution": middle, "quartile 1": low, "quartile 3": high}
        rows.append(row)
    print(f"$ python {' '.join(sys.argv)}")
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))


class _Tower(nn.Module):
    """A residual network: every second convolution ends a block."""

    def __init__(self, convolutions: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
        self.out = nn.Conv2d(width, 1, 1)
        layers = [
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)) for _ in range(convolutions)
        ]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images to a map of one channel."""
        x = self.stem(x)
        for first, second in zip(self.layers[::2], self.layers[1::2], strict=False):
            x = x + second(first(x).relu())
        return self.out(x)


def _ours(detector: nn.Module, ratio: float, compensate: str) -> float:
    return _seconds(lambda: apply_plan(detector, plan_pruning(detector, ratio), compensate=compensate))


def _theirs(detector: nn.Module, ratio: float) -> float:
    method = getattr(detector, "traced_method", "forward")
    image = torch.zeros(1, 3, SIDE, SIDE)
    outputs = [m for m in detector.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None]

    def prune() -> None:
        pruner = torch_pruning.pruner.BNScalePruner(
            detector, image, torch_pruning.importance.BNScaleImportance(), global_pruning=True, pruning_ratio=ratio,
            ignored_layers=[*outputs], forward_fn=lambda model, x: getattr(model, method)(x),
        )  # fmt: skip
        pruner.step()

    return _seconds(prune)


def _lively(detector: nn.Module) -> nn.Module:
    """Return the detector with widely spread scale factors, as after sparse training."""
    torch.manual_seed(0)
    for norm in trace_channels(detector).prunable.values():
        nn.init.uniform_(detector.get_parameter(f"{norm}.weight"), 0.01, 1.0)
        nn.init.normal_(detector.get_parameter(f"{norm}.bias"), std=0.1)
    return detector


def _seconds(prune: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    prune()
    return time.process_time() - start


def _spread(seconds: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {"median / s": middle, "quartile 1": low, "quartile 3": high, "rounds": len(seconds)}


if __name__ == "__main__":
    main()
