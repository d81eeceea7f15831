"""ResNet-50 and ResNet-101 as classifiers, with torchvision's names of modules and parameters."""

from __future__ import annotations

from torch import Tensor, nn

from paperlib.classifiers.base import Classifier, ClassLayer
from paperlib.detectors.resnet import RESNET_50, RESNET_101, ResNetTrunk

STEM_STRIDES = (4, 2)


# The trunk's own forward pass is `stages` here.
class ResNetClassifier(Classifier, ResNetTrunk):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A ResNet of bottleneck blocks; weights of torchvision's classifier fit at full width and depth.

    Args:
        num_classes: C.
        width: multiplies the channel counts.
        depth: multiplies the numbers of blocks; each stage keeps at least one.
        stem_stride: 4, or 2 for small images: then the max pooling after the first convolution is left out, and every
            stage sees twice the resolution with the same weights.

    Raises:
        ValueError: another stride of the stem.
    """

    blocks: tuple[int, ...]

    def __init__(self, num_classes: int, *, width: float = 1.0, depth: float = 1.0, stem_stride: int = 4) -> None:
        if stem_stride not in STEM_STRIDES:
            raise ValueError(f"stem_stride {stem_stride} is not one of {', '.join(map(str, STEM_STRIDES))}")
        super().__init__(self.blocks, width=width, depth=depth)
        if stem_stride == 2:
            self.maxpool = nn.Identity()
        self.num_classes = num_classes
        self.fc = ClassLayer(self.channels[-1], num_classes)

    def stages(self, batch: Tensor) -> list[Tensor]:
        """Return the outputs of the four stages, at strides 4, 8, 16 and 32, or half of these."""
        return ResNetTrunk.forward(self, batch)


class ResNet50(ResNetClassifier):
    """ResNet-50: 3, 4, 6 and 3 blocks."""

    blocks = RESNET_50


class ResNet101(ResNetClassifier):
    """ResNet-101: 3, 4, 23 and 3 blocks."""

    blocks = RESNET_101
