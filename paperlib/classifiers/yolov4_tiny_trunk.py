"""The trunk of YOLOv4-tiny as a classifier of scenes, which can start from the detector's COCO weights."""

from __future__ import annotations

from torch import Tensor, nn

from paperlib.classifiers.base import Classifier, ClassLayer
from paperlib.detectors.blocks import ConvBlock, scaled_width
from paperlib.detectors.yolov4_tiny import CspBlock


class YoloV4TinyTrunk(Classifier):
    """The first 15 convolutions of YOLOv4-tiny, under the detector's names, and a linear layer.

    Args:
        num_classes: C.
        width: multiplies the channel counts.
    """

    def __init__(self, num_classes: int, *, width: float = 1.0) -> None:
        super().__init__()
        c32, c64, c512 = (scaled_width(c, width) for c in (32, 64, 512))
        self.stem1 = ConvBlock(3, c32, 3, stride=2)
        self.stem2 = ConvBlock(c32, c64, 3, stride=2)
        self.block1 = CspBlock(c64)
        self.block2 = CspBlock(2 * c64)
        self.block3 = CspBlock(4 * c64)
        self.pool = nn.MaxPool2d(2, 2)
        self.neck = ConvBlock(8 * c64, c512, 3)
        self.num_classes = num_classes
        self.fc = ClassLayer(c512, num_classes)

    def stages(self, batch: Tensor) -> list[Tensor]:
        """Return the outputs of the three cross-stage blocks and of the last convolution, at strides 4, 8, 16, 32."""
        outputs, x = [], self.stem2(self.stem1(batch))
        for block in (self.block1, self.block2, self.block3):
            x = block(x)[0]
            outputs.append(x)
            x = self.pool(x)
        return [*outputs, self.neck(x)]
