"""YOLOv3 and YOLOv3-SPP (Section 4.3; Redmon and Farhadi 2018), in the order of the official configurations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperlib.detectors import blocks
from paperlib.detectors.base import HeadTensors
from paperlib.detectors.blocks import ConvBlock, DarknetTrunk, ResidualBlock, scaled_depth, scaled_width
from paperlib.detectors.yolo_head import Anchor, Yolo, YoloHead


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Build a convolution of stride 2 and `blocks` residual blocks with half the channels inside."""
    down = ConvBlock(inputs, outputs, 3, stride=2)
    return nn.Sequential(down, *(ResidualBlock(outputs, inputs) for _ in range(blocks)))


class YoloV3(Yolo):
    """YOLOv3: Darknet-53 and three heads, each finer one fed by the coarser one's neck and an earlier stage.

    Modules have the order of the official configuration, which is also the order of its weights file. Only the row
    of the most similar anchor is assigned to a box.

    Args:
        num_classes: C, without background.
        width: multiplies every channel count except those of the outputs.
        depth: multiplies the numbers of residual blocks; each stage keeps at least one.
        anchors: nine anchors `(width, height)` in pixels, small to large; by default those of the official file.

    Raises:
        ValueError: not nine anchors, or one without an area.
    """

    usual_anchors = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))
    scale_xy = (1.0, 1.0, 1.0)
    # An IoU never exceeds 1, so no anchor besides the most similar one matches.
    match_iou = 1.0

    def __init__(
        self, num_classes: int, *, width: float = 1.0, depth: float = 1.0, anchors: Sequence[Anchor] | None = None
    ) -> None:
        super().__init__(num_classes, anchors)
        c = {channels: scaled_width(channels, width) for channels in (32, 64, 128, 256, 512, 1024)}
        self.trunk = DarknetTrunk(
            ConvBlock(3, c[32], 3),
            _stage(c[32], c[64], scaled_depth(1, depth)),
            _stage(c[64], c[128], scaled_depth(2, depth)),
            _stage(c[128], c[256], scaled_depth(8, depth)),
            _stage(c[256], c[512], scaled_depth(8, depth)),
            _stage(c[512], c[1024], scaled_depth(4, depth)),
        )
        self.coarse_neck = self._coarse_neck(c[1024], c[512])
        self.coarse = ConvBlock(c[512], c[1024], 3)
        self.coarse_out = YoloHead(c[1024], 3, num_classes)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.middle_lateral = ConvBlock(c[512], c[256], 1)
        self.middle_neck = blocks.alternating_layers(c[256] + c[512], c[256], c[512], layers=5)
        self.middle = ConvBlock(c[256], c[512], 3)
        self.middle_out = YoloHead(c[512], 3, num_classes)
        self.fine_lateral = ConvBlock(c[256], c[128], 1)
        self.fine_neck = blocks.alternating_layers(c[128] + c[256], c[128], c[256], layers=5)
        self.fine = ConvBlock(c[128], c[256], 3)
        self.fine_out = YoloHead(c[256], 3, num_classes)

    @staticmethod
    def _coarse_neck(wide: int, narrow: int) -> nn.Sequential:
        return blocks.alternating_layers(wide, narrow, wide, layers=5)

    def head_outputs(self, batch: Tensor) -> HeadTensors:
        """Compute raw head tensors `[B, 3*(5+C), H/s, W/s]`, s = 32, 16, 8, of a `[B, 3, H, W]` batch."""
        fine, middle, coarse = self.trunk(batch)
        coarse = self.coarse_neck(coarse)
        middle = self.middle_neck(torch.cat([self.upsample(self.middle_lateral(coarse)), middle], 1))
        fine = self.fine_neck(torch.cat([self.upsample(self.fine_lateral(middle)), fine], 1))
        return self._read_heads(
            (self.coarse, self.coarse_out, coarse),
            (self.middle, self.middle_out, middle),
            (self.fine, self.fine_out, fine),
        )


class YoloV3Spp(YoloV3):
    """YOLOv3 with spatial pyramid pooling before the coarse head."""

    @staticmethod
    def _coarse_neck(wide: int, narrow: int) -> nn.Sequential:
        return blocks.pyramid_neck(wide, narrow, wide)
