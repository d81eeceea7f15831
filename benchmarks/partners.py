"""Compare a training step of YOLOv4-tiny with partners (BPL) to one without, in one run.

    python benchmarks/partners.py --rounds 9

The contestants take turns on the batch of `benchmarks/training.py`; a row is the median over the rounds, in seconds of
the processor per thread, and the ratio that of a round, with its quartiles. The column
`GMACs` counts a forward pass of one image as it is in training, partners included; fused, the network costs what it
costs alone.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from spread import show_quartiles
from torch import Tensor
from training import CLASSES, Batch, Contestant, make_batch

import paperlib as pl
from paperlib.partners.extend import partner_gmacs
from paperlib.store import provenance


@dataclass
class WithPartners(Contestant):
    """A training step that adds the gradient of a diversity loss."""

    partnership: pl.Partnership | None = None

    def step(self) -> None:
        """Run one training step, as `paperlib.fit` does."""
        self.loss().backward()
        if self.partnership:
            self.partnership.before_step(self.network, 1e-4)
        self.optimiser.step()
        self.optimiser.zero_grad()


def make_contestant(name: str, batch: Batch, partnership: pl.Partnership | None) -> WithPartners:
    """Return a new YOLOv4-tiny, extended if there is a partnership, in the memory order that `paperlib.fit` uses."""
    plain = pl.build_detector("yolov4-tiny", CLASSES)
    detector = (pl.extend(plain) if partnership else plain).to(memory_format=torch.channels_last)
    images = batch.images.contiguous(memory_format=torch.channels_last)
    targets = [
        {"boxes": batch.boxes[batch.image == index], "labels": batch.label[batch.image == index] + 1}
        for index in range(len(images))
    ]

    def loss() -> Tensor:
        return torch.stack(list(detector(images, targets).values())).sum()

    return WithPartners(name, detector, loss, partnership=partnership)


def compare(batch: Batch, rounds: int) -> pd.DataFrame:
    """Time a step without partners, and with them for each of some diversity losses, in turns."""
    ways: dict[str, pl.Partnership | None] = {"alone": None}
    ways |= {f"partners, diversity {kind}": pl.Partnership(0.01, kind) for kind in ("none", "orthogonal", "output")}
    contestants = [make_contestant(name, batch, way) for name, way in ways.items()]
    for contestant in contestants:
        contestant.step()  # the first step of all allocates and tunes
    for _ in range(rounds):
        for contestant in contestants:
            contestant.take_turn(1)
    detector = pl.build_detector("yolov4-tiny", CLASSES)
    gmacs = pl.cost(detector, batch.side).gmacs
    together = gmacs + partner_gmacs(detector, batch.side)
    table = pd.DataFrame(
        {
            "": each.name,
            "GMACs": together if each.partnership else gmacs,
            "s a step": statistics.median(each.seconds),
            "GMACs, over alone": (together if each.partnership else gmacs) / gmacs,
            "s a step, over alone": show_quartiles(np.divide(each.seconds, contestants[0].seconds)),
        }
        for each in contestants
    )
    return table


def main() -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=416, help="side of the images in pixels (416)")
    parser.add_argument("--batch-size", type=int, default=8, help="images of a step (8)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (1)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant (9)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch = make_batch(options.batch_size, options.image_size)
    table = compare(batch, options.rounds)
    machine = provenance.describe_machine()
    print(f"{machine['processor']}, {options.threads} threads, torch {torch.__version__}, float32")
    print(f"batch {options.batch_size} of {options.image_size} px, {options.rounds} rounds")
    print(table.to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    main()
