"""The interface of a classifier of scenes: logits in evaluation, losses in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.detectors.blocks import as_batch, at_least_float32


class ClassLayer(nn.Linear):
    """The linear layer from averaged features `[B, D]` to logits `[B, C]`."""

    def initialise_weights(self) -> None:
        """Draw fresh weights by PyTorch's rule."""
        self.reset_parameters()


class Classifier(nn.Module):
    """A network that tells which of C classes an image shows; a subclass defines `stages` and a `ClassLayer` `fc`.

    In training `classifier(images, targets)` returns a dict of losses, in evaluation `classifier(images)` returns
    logits `[B, C]`.

    Attributes:
        image_multiple: any side is accepted, because the features are averaged over the image.
        num_classes: C.
        build_arguments: the arguments of `build_classifier` that made this classifier.
        traced_method: name of the method that shows `torch.fx` how channels are connected.
    """

    image_multiple = 1
    traced_method = "logits"
    num_classes: int
    build_arguments: dict[str, Any]
    fc: ClassLayer

    def stages(self, batch: Tensor) -> list[Tensor]:
        """Return the features of a `[B, 3, H, W]` batch after each stage, fine to coarse."""
        raise NotImplementedError

    def logits(self, batch: Tensor) -> Tensor:
        """Map `[B, 3, H, W]` in [0, 1] to logits `[B, C]`: the last features, averaged over the image."""
        averaged = F.adaptive_avg_pool2d(self.stages(batch)[-1], 1)
        return self.fc(torch.flatten(averaged, 1))

    def forward(self, images: Tensor | Sequence[Tensor], targets: Tensor | None = None) -> dict[str, Tensor] | Tensor:
        """Return losses in training mode, logits `[B, C]` in evaluation mode.

        Args:
            images: float `[B, 3, H, W]` in [0, 1], or a list of images of one size.
            targets: in training, the class of each image, int64 `[B]` in 0..C-1.

        Raises:
            ValueError: training without targets, or with targets of a wrong shape or dtype; images of a wrong shape
                or dtype, or of different sizes.
        """
        batch, sizes = as_batch(images, self.image_multiple)
        if len(set(sizes)) > 1:
            raise ValueError(f"images of different sizes, such as {sizes[0]} and {sizes[-1]}; scale them to one size")
        if not self.training:
            return self.logits(batch)
        if targets is None:
            raise ValueError("a classifier in training mode needs targets")
        if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.shape != (len(batch),):
            found = f"{targets.dtype} {list(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
            raise ValueError(f"targets are {found}; {len(batch)} images need one class each, int64 [{len(batch)}]")
        return {"classes": F.cross_entropy(at_least_float32(self.logits(batch)), targets.to(batch.device))}
