"""VGG-16 with batch norm as a classifier of scenes."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from paperlib.classifiers.base import Classifier, ClassLayer
from paperlib.detectors.blocks import scaled_width
from paperlib.detectors.resnet import initialise_convolutions_


class Vgg16(Classifier):
    """VGG-16 with batch norm: thirteen 3x3 convolutions in five stages.

    `features` has torchvision's names, so those weights of its classifier fit at full width. Its three large linear
    layers, nine tenths of its weights, are replaced by an average over the image and one linear layer.

    Args:
        num_classes: C.
        width: multiplies the channel counts.
    """

    def __init__(self, num_classes: int, *, width: float = 1.0) -> None:
        super().__init__()
        layers = [layer if isinstance(layer, str) else scaled_width(layer, width) for layer in cfgs["D"]]
        self.features = make_layers(layers, batch_norm=True)
        self.num_classes = num_classes
        self.fc = ClassLayer(scaled_width(512, width), num_classes)
        self.initialise_weights()

    def initialise_weights(self) -> None:
        """Draw the weights of the convolutions by He's rule; set gamma to 0.5 and beta to 0."""
        initialise_convolutions_(self)

    def stages(self, batch: Tensor) -> list[Tensor]:
        """Return the five stages' outputs, at strides 2, 4, 8, 16 and 32."""
        outputs, x = [], batch
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                outputs.append(x)
        return outputs
