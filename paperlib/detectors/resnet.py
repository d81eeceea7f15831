"""ResNet trunks (Section 4.7) from torchvision, with adjustable numbers of channels and blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from paperlib.detectors.blocks import INITIAL_GAMMA, scaled_depth, scaled_width
from paperlib.structure import describe_structure, reshape_

RESNET_50, RESNET_101 = (3, 4, 6, 3), (3, 4, 23, 3)
"""Bottleneck blocks of the four stages."""
STRIDES = (4, 8, 16, 32)


class ResNetTrunk(nn.Module):
    """A ResNet of bottleneck blocks without its classifier, every batch norm trainable.

    Its parameters have torchvision's names, so weights of torchvision's classifiers fit at full width and depth.

    Args:
        blocks: how many blocks each of the four stages has.
        width: multiplies the channel counts.
        depth: multiplies the numbers of blocks; each stage keeps at least one.
        early_stride: whether a stage halves the image in its first 1x1 convolution, like the original ResNet, or in
            the 3x3 one after it, like torchvision; early means fewer multiply-accumulates with the same weights.

    Attributes:
        channels: channel counts of the four stages' outputs.
    """

    def __init__(
        self, blocks: Sequence[int], *, width: float = 1.0, depth: float = 1.0, early_stride: bool = False
    ) -> None:
        super().__init__()
        classifier = ResNet(Bottleneck, [scaled_depth(count, depth) for count in blocks])
        self.conv1 = classifier.conv1
        self.bn1 = classifier.bn1
        self.relu = classifier.relu
        self.maxpool = classifier.maxpool
        self.layer1 = classifier.layer1
        self.layer2 = classifier.layer2
        self.layer3 = classifier.layer3
        self.layer4 = classifier.layer4
        if early_stride:
            for stage in ("layer2", "layer3", "layer4"):
                first, second = self.get_submodule(f"{stage}.0.conv1"), self.get_submodule(f"{stage}.0.conv2")
                first.stride, second.stride = second.stride, first.stride
        # The changed layers are zeros until the weights are drawn at the end.
        if width != 1.0:
            reshape_(self, {name: _scaled_shape(shape, width) for name, shape in describe_structure(self).items()})
        self.channels = tuple(scaled_width(channels, width) for channels in (256, 512, 1024, 2048))
        self.initialise_weights()

    def initialise_weights(self) -> None:
        """Draw fresh weights by He's rule; set gamma to `INITIAL_GAMMA` and beta to 0."""
        initialise_convolutions_(self)

    def forward(self, batch: Tensor) -> list[Tensor]:
        """Map `[B, 3, H, W]` to the four stages' outputs, `[B, channels[i], H / STRIDES[i], W / STRIDES[i]]`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(batch))))
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            outputs.append(x)
        return outputs


def initialise_convolutions_(module: nn.Module) -> None:
    """Draw the weights of convolutions by He's rule and reset batch norms, gamma to `INITIAL_GAMMA`, in place."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()
                nn.init.constant_(layer.weight, INITIAL_GAMMA)


def _scaled_shape(shape: dict[str, int], width: float) -> dict[str, int]:
    """Return a layer's shape with scaled channel counts; the image's three channels and the groups stay."""
    return {key: n if key == "groups" or n == 3 else scaled_width(n, width) for key, n in shape.items()}
