"""What torchvision's detectors compute of an image batch, without the parts that torch.fx cannot follow."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD

REGION_SIDE = 7
"""Any size would do: channels do not depend on it, except in box heads, which torchvision builds for 7."""


def find_wiring(module: nn.Module) -> Callable[..., Any] | None:
    """Return a function `(detector, images)` that shows how the channels of a detector are connected."""
    if hasattr(module, "traced_method"):
        return None
    if isinstance(module, GeneralizedRCNN):
        return _wire_two_stages
    return _wire_one_stage if isinstance(module, FCOS | SSD | RetinaNet) else None


def _wire_one_stage(detector: Any, images: Any) -> Any:
    return detector.head(list(detector.backbone(images).values()))


def _wire_two_stages(detector: Any, images: Any) -> Any:
    levels, heads = list(detector.backbone(images).values()), detector.roi_heads
    outputs = [detector.rpn.head(levels)]
    # Regions are cut from every level, and the heads read them all.
    for level in levels:
        regions = F.adaptive_avg_pool2d(level, REGION_SIDE)
        boxes = heads.box_head(regions)
        outputs += [heads.box_predictor.cls_score(boxes), heads.box_predictor.bbox_pred(boxes)]
        if heads.has_mask():
            outputs.append(heads.mask_predictor(heads.mask_head(regions)))
        if heads.has_keypoint():
            outputs.append(heads.keypoint_predictor(heads.keypoint_head(regions)))
    return outputs
