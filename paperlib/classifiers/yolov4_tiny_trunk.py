"""The trunk of YOLOv4-tiny as a classifier of scenes, which can start from the detector's COCO weights."""

from __future__ import annotations

from torch import Tensor

from paperlib.classifiers.base import Classifier, ClassLayer
from paperlib.detectors.blocks import scaled_width
from paperlib.detectors.yolov4_tiny import TinyTrunk


class YoloV4TinyTrunk(TinyTrunk, Classifier):
    """The first 15 convolutions of YOLOv4-tiny, under the detector's names, and a linear layer.

    Args:
        num_classes: C.
        width: multiplies the channel counts.
    """

    def __init__(self, num_classes: int, *, width: float = 1.0) -> None:
        super().__init__()
        self.add_trunk(width)
        self.num_classes = num_classes
        self.fc = ClassLayer(scaled_width(512, width), num_classes)

    def stages(self, batch: Tensor) -> list[Tensor]:
        """Return the outputs of the three cross-stage blocks and of the last convolution, at strides 4, 8, 16, 32."""
        return self.run_trunk(batch)[0]
