"""What one-stage detectors share (Section 4.7): torchvision's calling convention around their head tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from paperlib.detectors.base import Targets
from paperlib.detectors.blocks import as_batch


class OneStage(nn.Module):
    """A detector whose head tensors are all there is; a subclass supplies `strides` and the methods that read them.

    Called as torchvision's detectors are: in training `detector(images, targets)` gives a dict of losses, in
    evaluation `detector(images)` gives a list of `{boxes, labels, scores}`. The subclass offers `head_outputs`,
    `decode`, `assign`, `losses`, `responses` and `_detections`.

    Attributes:
        image_multiple: the sides of a batch are padded to multiples of this many pixels.
        strides: of each head tensor, in pixels.
        score_threshold: detections score more than this.
        max_detections: as many an image at most, the best.
    """

    traced_method = "head_outputs"
    image_multiple = 32
    strides: tuple[int, ...]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.score_threshold = 0.005
        self.max_detections = 100

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: list of float `[3, H, W]` in [0, 1], or a batch.
            targets: in training, per image `boxes` `[N, 4]` xyxy pixels and `labels` `[N]` in 1..C.

        Raises:
            ValueError: training without targets, or with those of another number of images; images of another form.
        """
        batch, sizes = as_batch(images, self.image_multiple)
        outputs = self.head_outputs(batch)
        if self.training:
            if targets is None:
                raise ValueError("a detector in training mode needs targets")
            if len(targets) != len(sizes):
                raise ValueError(f"{len(targets)} targets for {len(sizes)} images")
            return self.losses(outputs, self.assign(outputs, targets))
        return self._detections(outputs, (batch.shape[2], batch.shape[3]), sizes)

    def _check_sizes(self, outputs: list[Tensor], image_size: tuple[int, int]) -> None:
        """Refuse head tensors that do not belong to a batch of `image_size`."""
        expected = [(image_size[0] // s, image_size[1] // s) for s in self.strides]
        found = [tuple(output.shape[2:]) for output in outputs]
        if found != expected:
            raise ValueError(f"head tensors of sizes {found} do not belong to an image of {image_size}")


def widened(output: Tensor) -> Tensor:
    """A head tensor in float32 at least: half precision is too coarse for pixels."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def flattened(targets: Targets, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All N boxes of a batch `[N, 4]`, their labels in 1..C and images `[N]`, and each image's number of boxes.

    Boxes get the type of `like`, everything its device.
    """
    boxes = torch.cat([t["boxes"] for t in targets]).to(like)
    labels = torch.cat([t["labels"] for t in targets]).to(like.device)
    counts = torch.tensor([len(t["boxes"]) for t in targets], device=like.device)
    image = torch.repeat_interleave(torch.arange(len(targets), device=like.device), counts)
    return boxes, labels, image, counts


def candidates(
    boxes: Tensor, scores: Tensor, size: tuple[int, int], threshold: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One image's best pairs of a box and a class, best first: boxes `[N, 4]`, classes in 0..C-1 and scores `[N]`.

    Args:
        boxes: `[R, 4]` xyxy pixels, to be clipped to the image; those in its padding vanish.
        scores: `[R, C]`.
        size: the image's `(height, width)` in pixels.
        threshold: scores must exceed this.
        most: the largest N.
    """
    boxes = clip_boxes_to_image(boxes, size)
    shows = (boxes[:, 2:] > boxes[:, :2]).all(1)
    row, label = ((scores > threshold) & shows[:, None]).nonzero(as_tuple=True)
    score = scores[row, label]
    order = score.argsort(descending=True, stable=True)[:most]
    return boxes[row[order]], label[order], score[order]
