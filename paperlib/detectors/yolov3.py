"""YOLOv3 and YOLOv3-SPP (Section 4.3; Redmon and Farhadi 2018), in the order of the official configurations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperlib.detectors.blocks import (
    ConvBlock,
    ResidualBlock,
    alternating_layers,
    pyramid_neck,
    scaled_depth,
    scaled_width,
)
from paperlib.detectors.yolo_head import Anchor, Yolo, YoloHead


class Darknet53(nn.Module):
    """YOLOv3's trunk: five stages of residual blocks, each entered by a convolution of stride 2.

    Args:
        channels: the channel counts that are called 32, 64, … 1024 at full width.
        depth: multiplies the numbers of residual blocks; each stage keeps one at least.
    """

    def __init__(self, channels: dict[int, int], depth: float = 1.0) -> None:
        super().__init__()
        c = channels
        self.stem = ConvBlock(3, c[32], 3)
        self.stage1 = _stage(c[32], c[64], scaled_depth(1, depth))
        self.stage2 = _stage(c[64], c[128], scaled_depth(2, depth))
        self.stage3 = _stage(c[128], c[256], scaled_depth(8, depth))
        self.stage4 = _stage(c[256], c[512], scaled_depth(8, depth))
        self.stage5 = _stage(c[512], c[1024], scaled_depth(4, depth))

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map `[B, 3, H, W]` to the last three stages' outputs, at strides 8, 16 and 32."""
        fine = self.stage3(self.stage2(self.stage1(self.stem(batch))))
        middle = self.stage4(fine)
        return fine, middle, self.stage5(middle)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Halve the resolution, then `blocks` residual blocks of half the channels."""
    return nn.Sequential(
        ConvBlock(inputs, outputs, 3, stride=2), *(ResidualBlock(outputs, inputs) for _ in range(blocks))
    )


class YoloV3(Yolo):
    """YOLOv3: Darknet-53 and three heads, each finer one fed by the coarser one's neck and an earlier stage.

    Modules stand in the order of the official configuration, which is also the order of its weights file. A box has
    one row to answer for it, that of the most similar anchor.

    Args:
        num_classes: C, without background.
        width: multiplies every channel count but those of the outputs.
        depth: multiplies the numbers of residual blocks; each stage keeps one at least.
        anchors: the nine anchors `(width, height)` in pixels, small to large; the official file's by default.

    Raises:
        ValueError: not nine anchors, or one without an area.
    """

    usual_anchors = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))
    masks = ((6, 7, 8), (3, 4, 5), (0, 1, 2))
    strides = (32, 16, 8)
    scale_xy = (1.0, 1.0, 1.0)
    match_iou = 1.0

    def __init__(
        self, num_classes: int, *, width: float = 1.0, depth: float = 1.0, anchors: Sequence[Anchor] | None = None
    ) -> None:
        super().__init__(num_classes, anchors)
        c = {channels: scaled_width(channels, width) for channels in (32, 64, 128, 256, 512, 1024)}
        self.trunk = Darknet53(c, depth)
        self.coarse_neck = self._coarse_neck(c[1024], c[512])
        self.coarse = ConvBlock(c[512], c[1024], 3)
        self.coarse_out = YoloHead(c[1024], 3, num_classes)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.middle_lateral = ConvBlock(c[512], c[256], 1)
        self.middle_neck = alternating_layers(c[256] + c[512], c[256], c[512], layers=5)
        self.middle = ConvBlock(c[256], c[512], 3)
        self.middle_out = YoloHead(c[512], 3, num_classes)
        self.fine_lateral = ConvBlock(c[256], c[128], 1)
        self.fine_neck = alternating_layers(c[128] + c[256], c[128], c[256], layers=5)
        self.fine = ConvBlock(c[128], c[256], 3)
        self.fine_out = YoloHead(c[256], 3, num_classes)

    @staticmethod
    def _coarse_neck(wide: int, narrow: int) -> nn.Sequential:
        return alternating_layers(wide, narrow, wide, layers=5)

    def head_outputs(self, batch: Tensor) -> list[Tensor]:
        """Raw head tensors `[B, 3*(5+C), H/s, W/s]`, s = 32, 16, 8, of a `[B, 3, H, W]` batch."""
        fine, middle, coarse = self.trunk(batch)
        coarse = self.coarse_neck(coarse)
        middle = self.middle_neck(torch.cat([self.upsample(self.middle_lateral(coarse)), middle], 1))
        fine = self.fine_neck(torch.cat([self.upsample(self.fine_lateral(middle)), fine], 1))
        return [
            self.coarse_out(self.coarse(coarse)),
            self.middle_out(self.middle(middle)),
            self.fine_out(self.fine(fine)),
        ]


class YoloV3Spp(YoloV3):
    """YOLOv3 with spatial pyramid pooling before the coarse head."""

    @staticmethod
    def _coarse_neck(wide: int, narrow: int) -> nn.Sequential:
        return pyramid_neck(wide, narrow, wide)
