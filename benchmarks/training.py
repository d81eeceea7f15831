"""Compare the training speed of YOLOv4-tiny with other PyTorch implementations, in one run.

    python benchmarks/training.py --threads 2 --rounds 7

A training step is timed: forward pass, loss, backward pass and AdamW on one batch in memory, with the same images and
boxes for all. Reading and augmenting images is not included. The contestants take turns; a row is the median over the
rounds, and the ratio that of a round, with its quartiles. A time is processor time divided by the number of threads,
which other programs on the machine affect less than the clock. Ours has a second row in mixed precision (`precision:
bf16` of a profile), which is faster if the processor multiplies bfloat16. The other implementations are optional and
not part of this package:

    pip install --no-deps pytorchyolo              GPL-3.0: the same network, built from Darknet's own format
    pip install ultralytics-opencv-headless        AGPL-3.0: has no YOLOv4-tiny; its YOLOv3-tiny is the nearest

Without `--no-deps` the first would replace torch by a version of 2022. Networks of different sizes are compared per
multiply-accumulate: see the column `GMACs/s`, which counts those of the forward passes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from spread import show_quartiles
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import box_convert

import paperlib as pl
from paperlib.store import provenance

CLASSES = 10
BOXES_PER_IMAGE = 8


@dataclass(frozen=True)
class Batch:
    """Noise with boxes: `images` `[B, 3, S, S]`, and per box its image, label in 0..C-1 and xyxy pixels."""

    images: Tensor
    image: Tensor
    label: Tensor
    boxes: Tensor

    @property
    def side(self) -> int:
        """S."""
        return self.images.shape[-1]

    @property
    def centred(self) -> Tensor:
        """Return the boxes as centre and size, as fractions of the image."""
        return box_convert(self.boxes, "xyxy", "cxcywh") / self.side


@dataclass
class Contestant:
    """A network, its training step, and the times of its steps."""

    name: str
    network: nn.Module
    loss: Callable[[], Tensor]
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network.train()
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-4)

    def gmacs(self, image: Tensor) -> float:
        """Multiply-accumulates of one image's forward pass / 10^9."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.network.eval()(image)
        return counter.get_total_flops() / 2e9

    def step(self) -> None:
        """Run one training step."""
        self.loss().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()

    def take_turn(self, steps: int) -> None:
        """Train for some steps and note the seconds of one."""
        started = time.process_time()
        for _ in range(steps):
            self.step()
        self.seconds.append((time.process_time() - started) / steps / torch.get_num_threads())


def ours(batch: Batch, *, bfloat16: bool = False) -> Contestant:
    """Return our detector, in the memory order that `paperlib.fit` uses."""
    detector = pl.build_detector("yolov4-tiny", CLASSES).to(memory_format=torch.channels_last)
    images = batch.images.contiguous(memory_format=torch.channels_last)
    targets = [
        {"boxes": batch.boxes[batch.image == index], "labels": batch.label[batch.image == index] + 1}
        for index in range(len(images))
    ]

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return torch.stack(list(detector(images, targets).values())).sum()

    return Contestant("paperlib, bfloat16" if bfloat16 else "paperlib", detector, loss)


def pytorchyolo(batch: Batch) -> Contestant:
    """Return the network of PyTorch-YOLOv3, which builds any network in Darknet's format."""
    # It asks imgaug for augmentation only, which is not timed here and does not import beside NumPy 2.
    sys.modules.setdefault("imgaug", ModuleType("imgaug"))
    from pytorchyolo.models import Darknet  # pyright: ignore[reportMissingImports]
    from pytorchyolo.utils.loss import compute_loss  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "yolov4-tiny.cfg")
        file.write_text(darknet_configuration(batch.side))
        network = Darknet(str(file))
    numbers = torch.stack([batch.image, batch.label], 1)
    targets = torch.cat([numbers, batch.centred], 1)
    return Contestant("pytorchyolo", network, lambda: compute_loss(network(batch.images), targets, network)[0])


def ultralytics(batch: Batch) -> Contestant:
    """Return Ultralytics' YOLOv3-tiny with its newer head, which is its closest network to YOLOv4-tiny."""
    from ultralytics.cfg import get_cfg  # pyright: ignore[reportMissingImports]
    from ultralytics.nn.tasks import DetectionModel  # pyright: ignore[reportMissingImports]

    network = DetectionModel("yolov3-tiny.yaml", nc=CLASSES, verbose=False)
    network.args = get_cfg()
    entries = {"img": batch.images, "batch_idx": batch.image, "cls": batch.label[:, None], "bboxes": batch.centred}
    return Contestant("ultralytics (YOLOv3-tiny)", network, lambda: network.loss(entries)[0].sum())


RIVALS = {"pytorchyolo": pytorchyolo, "ultralytics": ultralytics}


def darknet_configuration(side: int) -> str:
    """Return YOLOv4-tiny in Darknet's format."""
    sections = [f"[net]\nbatch=1\nsubdivisions=1\nwidth={side}\nheight={side}\nchannels=3\nmomentum=0.9\ndecay=0\n"
                "learning_rate=0.001\nburn_in=1\nmax_batches=1\npolicy=steps\nsteps=1\nscales=1"]  # fmt: skip

    def add(kind: str, **options: object) -> None:
        sections.append("\n".join([f"[{kind}]", *(f"{name}={value}" for name, value in options.items())]))

    def convolution(filters: int, size: int = 3, stride: int = 1) -> None:
        shape = {"filters": filters, "size": size, "stride": stride, "pad": 1}
        add("convolutional", batch_normalize=1, **shape, activation="leaky")

    def head(mask: str) -> None:
        rows = {"filters": 3 * (5 + CLASSES), "size": 1, "stride": 1, "pad": 1}
        add("convolutional", batch_normalize=0, **rows, activation="linear")
        add("yolo", mask=mask, anchors="10,14,23,27,37,58,81,82,135,169,344,319", classes=CLASSES, num=6)

    convolution(32, stride=2)
    convolution(64, stride=2)
    for filters in (64, 128, 256):
        convolution(filters)
        add("route", layers="-1", groups=2, group_id=1)
        convolution(filters // 2)
        convolution(filters // 2)
        add("route", layers="-1,-2")
        convolution(filters, size=1)
        add("route", layers="-6,-1")
        add("maxpool", size=2, stride=2)
    convolution(512)
    convolution(256, size=1)
    convolution(512)
    head("3,4,5")
    add("route", layers="-4")
    convolution(128, size=1)
    add("upsample", stride=2)
    add("route", layers="-1,23")
    convolution(256)
    head("1,2,3")
    return "\n\n".join(sections) + "\n"


def make_batch(size: int, side: int) -> Batch:
    """Return noise images with boxes of a tenth to a third of the side."""
    generator = torch.Generator().manual_seed(0)
    count = size * BOXES_PER_IMAGE
    corner, extent = (torch.rand(count, 2, generator=generator) for _ in range(2))
    low, length = corner * 0.6 * side, (0.1 + 0.25 * extent) * side
    return Batch(
        images=torch.rand(size, 3, side, side, generator=generator),
        image=torch.arange(size).repeat_interleave(BOXES_PER_IMAGE),
        label=torch.randint(CLASSES, (count,), generator=generator),
        boxes=torch.cat([low, low + length], 1),
    )


def compare(contestants: list[Contestant], batch: Batch, rounds: int, steps: int) -> pd.DataFrame:
    """Time the contestants in turns, and return one row each, ours first."""
    for contestant in contestants:
        contestant.step()  # the first step of all allocates and tunes
    for _ in range(rounds):
        for contestant in contestants:
            contestant.take_turn(steps)
    rows = []
    gmacs = [contestant.gmacs(batch.images[:1]) for contestant in contestants]
    for contestant, each in zip(contestants, gmacs, strict=True):
        rate = len(batch.images) / statistics.median(contestant.seconds)
        ratios = np.divide(contestant.seconds, contestants[0].seconds)
        rows.append({
            "": contestant.name, "GMACs": each, "images/s": rate, "GMACs/s": rate * each,
            "ours over it, images/s": show_quartiles(ratios),
            "ours over it, GMACs/s": show_quartiles(ratios * gmacs[0] / each),
        })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=[name for name in RIVALS if find_spec(name)])
    parser.add_argument("--image-size", type=int, default=416, help="side of the images in pixels (416)")
    parser.add_argument("--batch-size", type=int, default=16, help="images of a step (16)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (1)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant (5)")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn (2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch = make_batch(options.batch_size, options.image_size)
    contestants = [ours(batch), ours(batch, bfloat16=True), *(RIVALS[name](batch) for name in options.rivals)]
    table = compare(contestants, batch, options.rounds, options.steps)
    machine = provenance.describe_machine()
    print(f"{machine['processor']}, {options.threads} threads, torch {torch.__version__}, float32 unless named")
    print(f"batch {options.batch_size} of {options.image_size} px, {options.rounds} rounds of {options.steps} steps")
    print(table.to_markdown(index=False, floatfmt=".2f"))
    for name in RIVALS.keys() - set(options.rivals):
        print(f"without {name}: see --help")


if __name__ == "__main__":
    main()
