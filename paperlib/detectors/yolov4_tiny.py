"""YOLOv4-tiny (Section 4.3; Wang et al. 2021), module by module in the order of the official configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperlib.detectors.base import HeadTensors
from paperlib.detectors.blocks import ConvBlock, scaled_width
from paperlib.detectors.yolo_head import Anchor, Yolo, YoloHead
from paperlib.structure import ChannelSplit


class CspBlock(nn.Module):
    """YOLOv4-tiny's cross-stage block: half of the channels pass more layers, and all are concatenated.

    It maps `[B, C, H, W]` to its output `[B, 2C, H, W]` and to the `[B, C, H, W]` before the last concatenation,
    which the finer head reads.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.entry = ConvBlock(channels, channels, 3)
        self.split = ChannelSplit([channels - half, half])
        self.first = ConvBlock(half, half, 3)
        self.second = ConvBlock(half, half, 3)
        self.merge = ConvBlock(2 * half, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and what the last concatenation adds to the input."""
        entry = self.entry(x)
        # The second half: Darknet's route layer with groups=2, group_id=1.
        first = self.first(self.split(entry)[1])
        merged = self.merge(torch.cat([self.second(first), first], 1))
        return torch.cat([entry, merged], 1), merged


class TinyTrunk(nn.Module):
    """The first 15 convolutions of YOLOv4-tiny, which its detector and a classifier have under the same names."""

    def add_trunk(self, width: float) -> None:
        """Add the layers; `width` multiplies their channel counts."""
        c32, c64, c512 = (scaled_width(c, width) for c in (32, 64, 512))
        self.stem1 = ConvBlock(3, c32, 3, stride=2)
        self.stem2 = ConvBlock(c32, c64, 3, stride=2)
        self.block1 = CspBlock(c64)
        self.block2 = CspBlock(2 * c64)
        self.block3 = CspBlock(4 * c64)
        self.pool = nn.MaxPool2d(2, 2)
        self.neck = ConvBlock(8 * c64, c512, 3)

    def run_trunk(self, batch: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the outputs of the three blocks and of the last convolution, and the detail of the third block.

        Their strides are 4, 8, 16 and 32; the detail is what the finer head reads, at stride 16.
        """
        outputs, x, detail = [], self.stem2(self.stem1(batch)), batch
        for block in (self.block1, self.block2, self.block3):
            x, detail = block(x)
            outputs.append(x)
            x = self.pool(x)
        return [*outputs, self.neck(x)], detail


class YoloV4Tiny(TinyTrunk, Yolo):
    """YOLOv4-tiny: three cross-stage blocks, two heads at strides 32 and 16.

    Modules have the order of the official configuration, which is also the order of its weights file.

    Args:
        num_classes: C, without background.
        width: multiplies every channel count except those of the outputs.
        anchors: six anchors `(width, height)` in pixels, small to large; by default those of the official file.

    Raises:
        ValueError: not six anchors, or one without an area.
    """

    usual_anchors = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))
    # The fine head really takes anchors 1-3, not 0-2: a slip in the official configuration, kept by all weights.
    masks = ((3, 4, 5), (1, 2, 3))
    strides = feature_strides = (32, 16)
    sources = ("coarse.conv", "fine.conv")
    scale_xy = (1.05, 1.05)

    def __init__(self, num_classes: int, *, width: float = 1.0, anchors: Sequence[Anchor] | None = None) -> None:
        super().__init__(num_classes, anchors)
        c64, c128, c256, c512 = (scaled_width(c, width) for c in (64, 128, 256, 512))
        self.add_trunk(width)
        self.squeeze = ConvBlock(c512, c256, 1)
        self.coarse = ConvBlock(c256, c512, 3)
        self.coarse_out = YoloHead(c512, 3, num_classes)
        self.lateral = ConvBlock(c256, c128, 1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.fine = ConvBlock(c128 + 4 * c64, c256, 3)
        self.fine_out = YoloHead(c256, 3, num_classes)

    def head_outputs(self, batch: Tensor) -> HeadTensors:
        """Compute raw head tensors `[B, 3*(5+C), H/s, W/s]`, s = 32, 16, of a `[B, 3, H, W]` batch."""
        outputs, detail = self.run_trunk(batch)
        x = self.squeeze(outputs[-1])
        fine = torch.cat([self.upsample(self.lateral(x)), detail], 1)
        return self._read_heads((self.coarse, self.coarse_out, x), (self.fine, self.fine_out, fine))
