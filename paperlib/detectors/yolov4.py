"""YOLOv4 (Section 4.3; Bochkovskiy, Wang and Liao 2020), in the order of the official configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperlib.detectors import blocks
from paperlib.detectors.base import HeadTensors
from paperlib.detectors.blocks import ConvBlock, DarknetTrunk, ResidualBlock, scaled_depth, scaled_width
from paperlib.detectors.yolo_head import Anchor, Yolo, YoloHead


class CspStage(nn.Module):
    """A cross-stage partial stage: after a convolution of stride 2, residual blocks on one of two branches.

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        branch: channels of either branch.
        blocks: number of residual blocks, with `inputs` channels inside.
    """

    def __init__(self, inputs: int, outputs: int, branch: int, blocks: int) -> None:
        super().__init__()
        self.down = ConvBlock(inputs, outputs, 3, stride=2, activation="mish")
        # Registered before `entry`, because a weights file holds the layers in this order.
        self.bypass = ConvBlock(outputs, branch, 1, activation="mish")
        self.entry = ConvBlock(outputs, branch, 1, activation="mish")
        self.blocks = nn.Sequential(*(ResidualBlock(branch, inputs, "mish") for _ in range(blocks)))
        self.exit = ConvBlock(branch, branch, 1, activation="mish")
        self.merge = ConvBlock(2 * branch, outputs, 1, activation="mish")

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, H/2, W/2]`."""
        x = self.down(x)
        bypass = self.bypass(x)
        return self.merge(torch.cat([self.exit(self.blocks(self.entry(x))), bypass], 1))


class YoloV4(Yolo):
    """YOLOv4: CSPDarknet-53, spatial pyramid pooling, a path down to the fine head and back up to the coarse one.

    Modules have the order of the official configuration, which is also the order of its weights file. There the fine
    head comes first; `head_outputs` returns the coarse head first, like all YOLOs here.

    Args:
        num_classes: C, without background.
        width: multiplies every channel count except those of the outputs.
        depth: multiplies the numbers of residual blocks; each stage keeps at least one.
        anchors: nine anchors `(width, height)` in pixels, small to large; by default those of the official file.

    Raises:
        ValueError: not nine anchors, or one without an area.
    """

    usual_anchors = ((12, 16), (19, 36), (40, 28), (36, 75), (76, 55), (72, 146), (142, 110), (192, 243), (459, 401))
    # A fine head's centres reach farther beyond their cells than a coarse one's.
    scale_xy = (1.05, 1.1, 1.2)

    def __init__(
        self, num_classes: int, *, width: float = 1.0, depth: float = 1.0, anchors: Sequence[Anchor] | None = None
    ) -> None:
        super().__init__(num_classes, anchors)
        c = {channels: scaled_width(channels, width) for channels in (32, 64, 128, 256, 512, 1024)}
        # The branches of the first stage have all of its channels, those of the others half.
        self.trunk = DarknetTrunk(
            ConvBlock(3, c[32], 3, activation="mish"),
            CspStage(c[32], c[64], c[64], scaled_depth(1, depth)),
            CspStage(c[64], c[128], c[64], scaled_depth(2, depth)),
            CspStage(c[128], c[256], c[128], scaled_depth(8, depth)),
            CspStage(c[256], c[512], c[256], scaled_depth(8, depth)),
            CspStage(c[512], c[1024], c[512], scaled_depth(4, depth)),
        )
        self.neck = blocks.pyramid_neck(c[1024], c[512], c[1024])
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.middle_reduce = ConvBlock(c[512], c[256], 1)
        self.middle_lateral = ConvBlock(c[512], c[256], 1)
        self.middle_neck = blocks.alternating_layers(2 * c[256], c[256], c[512], layers=5)
        self.fine_reduce = ConvBlock(c[256], c[128], 1)
        self.fine_lateral = ConvBlock(c[256], c[128], 1)
        self.fine_neck = blocks.alternating_layers(2 * c[128], c[128], c[256], layers=5)
        self.fine = ConvBlock(c[128], c[256], 3)
        self.fine_out = YoloHead(c[256], 3, num_classes)
        self.middle_down = ConvBlock(c[128], c[256], 3, stride=2)
        self.middle_joint = blocks.alternating_layers(2 * c[256], c[256], c[512], layers=5)
        self.middle = ConvBlock(c[256], c[512], 3)
        self.middle_out = YoloHead(c[512], 3, num_classes)
        self.coarse_down = ConvBlock(c[256], c[512], 3, stride=2)
        self.coarse_joint = blocks.alternating_layers(2 * c[512], c[512], c[1024], layers=5)
        self.coarse = ConvBlock(c[512], c[1024], 3)
        self.coarse_out = YoloHead(c[1024], 3, num_classes)

    def head_outputs(self, batch: Tensor) -> HeadTensors:
        """Compute raw head tensors `[B, 3*(5+C), H/s, W/s]`, s = 32, 16, 8, of a `[B, 3, H, W]` batch."""
        fine, middle, coarse = self.trunk(batch)
        coarse = self.neck(coarse)
        middle = torch.cat([self.middle_lateral(middle), self.upsample(self.middle_reduce(coarse))], 1)
        middle = self.middle_neck(middle)
        fine = torch.cat([self.fine_lateral(fine), self.upsample(self.fine_reduce(middle))], 1)
        fine = self.fine_neck(fine)
        middle = self.middle_joint(torch.cat([self.middle_down(fine), middle], 1))
        coarse = self.coarse_joint(torch.cat([self.coarse_down(middle), coarse], 1))
        return self._read_heads(
            (self.coarse, self.coarse_out, coarse),
            (self.middle, self.middle_out, middle),
            (self.fine, self.fine_out, fine),
        )
