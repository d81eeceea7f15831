"""Building blocks of the detectors (Eqs. 1-3: a convolution, its batch normalisation, an activation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.1
STRIDE_PADDING_GREY = 0.5
INITIAL_GAMMA = 0.5
"""Section 4.3: every scale factor gamma starts at 0.5."""


class _Mish(torch.autograd.Function):
    """Mish, `x tanh(log(1 + e^x))`, as `x (1 - 2r)` with `r = 1/(1 + (1 + e^x)^2)`, in few operations.

    torch's own backward pass is several times slower on a gradient that is a slice, as concatenations return it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # For large x the exponential overflows to infinity. Then r is 0 and the output x, which is the right limit.
        root = x.exp().add_(1)
        r = torch.addcmul(root.new_ones(()), root, root).reciprocal_()
        ctx.save_for_backward(x, r)
        return torch.addcmul(x, x, r, value=-2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (gradient,) = grad_outputs
        x, r = ctx.saved_tensors
        # The slope is 1 - 2r + 4 x sigmoid(x) (r - r^2).
        bend = F.silu(x).mul_(torch.addcmul(r, r, r, value=-1)).sub_(r, alpha=0.5)
        return torch.addcmul(gradient, gradient, bend, value=4)


class Mish(nn.Mish):
    """torch's Mish with a faster backward pass."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply Mish to a tensor of any shape."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(input)
        output: Any = _Mish.apply(input)
        return output


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": partial(nn.LeakyReLU, LEAKY_SLOPE),
    "mish": Mish,
    "linear": nn.Identity,
}


class ConvBlock(nn.Module):
    """Convolution without bias, batch normalisation and activation: `g(BN(W * z))`, Eq. 1.

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        kernel: side of the square kernel; padding keeps the size at stride 1.
        stride: step of the kernel in pixels.
        activation: a key of `ACTIVATIONS`.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, activation: str = "leaky") -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        # The epsilon of Darknet's forward pass on the CPU; torch's default is 1e-5.
        self.bn = nn.BatchNorm2d(outputs, eps=1e-6)
        self.act = ACTIVATIONS[activation]()
        self.initialise_weights()

    def initialise_weights(self) -> None:
        """Draw fresh weights by He's rule; set gamma to `INITIAL_GAMMA` and beta to 0."""
        nn.init.kaiming_normal_(self.conv.weight, a=LEAKY_SLOPE, mode="fan_out")
        self.bn.reset_parameters()
        nn.init.constant_(self.bn.weight, INITIAL_GAMMA)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, H/stride, W/stride]`."""
        return self.act(self.bn(self.conv(x)))


class ResidualBlock(nn.Module):
    """Darknet's residual block, `x + f(x)`: a 1x1 convolution to `inner` channels and a 3x3 one back to `channels`."""

    def __init__(self, channels: int, inner: int, activation: str = "leaky") -> None:
        super().__init__()
        self.first = ConvBlock(channels, inner, 1, activation=activation)
        self.second = ConvBlock(inner, channels, 3, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to the same shape."""
        return x + self.second(self.first(x))


class SpatialPyramid(nn.Module):
    """Spatial pyramid pooling of the YOLOs: max-pools of sides 13, 9 and 5 at stride 1, concatenated with the input."""

    def __init__(self) -> None:
        super().__init__()
        # The order of the official configurations, on which the next layer's pretrained weights depend.
        self.pools = nn.ModuleList(nn.MaxPool2d(side, 1, side // 2) for side in (13, 9, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, 4C, H, W]`, widest pool first."""
        return torch.cat([*(pool(x) for pool in self.pools), x], 1)


class DarknetTrunk(nn.Module):
    """The trunk of YOLOv3 and YOLOv4: a stem and five stages, each of which halves the resolution."""

    def __init__(self, stem: nn.Module, *stages: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stage1, self.stage2, self.stage3, self.stage4, self.stage5 = stages

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map `[B, 3, H, W]` to the last three stages' outputs, at strides 8, 16 and 32."""
        fine = self.stage3(self.stage2(self.stage1(self.stem(batch))))
        middle = self.stage4(fine)
        return fine, middle, self.stage5(middle)


def initialise_output_(layer: nn.Conv2d | nn.Linear, std: float, bias: float = 0.0) -> None:
    """Draw small random weights in place and set every bias to `bias`."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)


def alternating_layers(inputs: int, narrow: int, wide: int, layers: int) -> nn.Sequential:
    """Build leaky layers from `inputs` channels: 1x1 to `narrow`, 3x3 to `wide`, 1x1 to `narrow`, …"""
    blocks = []
    for layer in range(layers):
        outputs, kernel = (wide, 3) if layer % 2 else (narrow, 1)
        blocks.append(ConvBlock(inputs, outputs, kernel))
        inputs = outputs
    return nn.Sequential(*blocks)


def pyramid_neck(inputs: int, narrow: int, wide: int) -> nn.Sequential:
    """Build three alternating layers, the spatial pyramid, and three more: from `inputs` to `narrow` channels."""
    return nn.Sequential(
        *alternating_layers(inputs, narrow, wide, layers=3),
        SpatialPyramid(),
        *alternating_layers(4 * narrow, narrow, wide, layers=3),
    )


def scaled_depth(blocks: int, depth: float) -> int:
    """Return `blocks * depth`, rounded; at least 1."""
    return max(1, round(blocks * depth))


def scaled_width(channels: int, width: float) -> int:
    """Return `channels * width`, rounded to an even number so that a block can be split in halves; at least 2."""
    return max(2, 2 * round(channels * width / 2))


def as_batch(images: Tensor | Sequence[Tensor], stride: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Stack images into one batch whose sides are multiples of `stride`.

    Args:
        images: a `[B, 3, H, W]` batch or a list of float `[3, H, W]` images in [0, 1], sizes may differ.
        stride: the detector's coarsest stride in pixels.

    Returns:
        The batch, padded with grey on the right and at the bottom where needed, and the `(height, width)` of each
        image before padding.

    Raises:
        ValueError: an image is not float `[3, H, W]`, or there is none.
    """
    if len(images) == 0:
        raise ValueError("the list of images is empty")
    for index, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise ValueError(f"image {index} is a {type(image).__name__}; expected a tensor")
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            found = f"{image.dtype} {list(image.shape)}"
            raise ValueError(f"image {index} is {found}; expected floating point [3, H, W] in [0, 1]")
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    # Floor division of the negated side rounds up.
    height, width = (-(-max(side) // stride) * stride for side in zip(*sizes, strict=True))
    if isinstance(images, Tensor) and images.shape[2:] == (height, width):
        return images, sizes
    batch = images[0].new_full((len(images), 3, height, width), STRIDE_PADDING_GREY)
    for padded, image in zip(batch, images, strict=True):
        # In the upper left corner, so that boxes keep their pixel coordinates.
        padded[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def at_least_float32(output: Tensor) -> Tensor:
    """Convert a head tensor to float32, if it is not wider: half precision is too coarse for pixels."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def box_area(boxes: Tensor) -> Tensor:
    """Return the area in square pixels of `[..., 4]` xyxy boxes."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def paired_iou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the intersection over union of broadcastable `[..., 4]` xyxy boxes, and the area of the union."""
    corner_low = torch.maximum(first[..., :2], second[..., :2])
    corner_high = torch.minimum(first[..., 2:], second[..., 2:])
    # Without the bound, boxes apart on both axes would have two negative sides and a positive intersection.
    intersection = (corner_high - corner_low).clamp(min=0).prod(-1)
    union = box_area(first) + box_area(second) - intersection
    return intersection / union.clamp(min=1e-9), union
