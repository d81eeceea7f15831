"""Every kind of detector of torchvision, small, goes through the public face: pruned exactly, and trained on."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_networks import randomise
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.detection import (
    FCOS,
    FasterRCNN,
    KeypointRCNN,
    MaskRCNN,
    RetinaNet,
    ssd300_vgg16,
)
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, RPNHead, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.models.detection.ssdlite import SSDLiteHead, _mobilenet_extractor
from torchvision.models.mobilenetv3 import mobilenet_v3_small
from torchvision.models.resnet import BasicBlock

import paperlib as pl
from paperlib.pruning import mask_plan

CLASSES, SIDE, WIDTH = 3, 64, 32


def backbone() -> nn.Module:
    stages = [block(3, 8)] + [nn.Sequential(block(8, 8), BasicBlock(8, 8)) for _ in range(4)]
    trunk = nn.Sequential(OrderedDict((f"stage{i}", stage) for i, stage in enumerate(stages)))
    levels = {f"stage{i}": str(i) for i in (1, 2, 3, 4)}
    return BackboneWithFPN(trunk, levels, [8] * 4, WIDTH, norm_layer=nn.BatchNorm2d)


def block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def two_stages(kind: Callable[..., nn.Module] = FasterRCNN, **parts: Any) -> nn.Module:
    few = {"rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 10, "box_batch_size_per_image": 16}
    head = {"box_head": TwoMLPHead(WIDTH * 49, 32), "box_predictor": FastRCNNPredictor(32, CLASSES)}
    return kind(backbone(), None, min_size=SIDE, max_size=SIDE, box_score_thresh=0, **few, **(head | parts))


def second_version() -> nn.Module:
    head = FastRCNNConvFCHead((WIDTH, 7, 7), [16, 16], [32], norm_layer=nn.BatchNorm2d)
    return two_stages(rpn_head=RPNHead(WIDTH, 3, conv_depth=2), box_head=head)


def with_masks() -> nn.Module:
    heads = MaskRCNNHeads(WIDTH, (16, 16), 1, norm_layer=nn.BatchNorm2d)
    return two_stages(MaskRCNN, mask_head=heads, mask_predictor=MaskRCNNPredictor(16, 16, CLASSES))


def with_keypoints() -> nn.Module:
    heads = KeypointRCNNHeads(WIDTH, (16, 16))
    return two_stages(KeypointRCNN, keypoint_head=heads, keypoint_predictor=KeypointRCNNPredictor(16, 17))


def one_stage(kind: Callable[..., nn.Module], **options: Any) -> nn.Module:
    return kind(backbone(), CLASSES, min_size=SIDE, max_size=SIDE, score_thresh=0.0, **options)


def single_shots() -> nn.Module:
    boxes = DefaultBoxGenerator([[2]] * 5, min_ratio=20, max_ratio=90)
    head = SSDHead([WIDTH] * 5, boxes.num_anchors_per_location(), CLASSES)
    return SSD(backbone(), boxes, (SIDE, SIDE), CLASSES, head=head, score_thresh=0.0)


def lite() -> nn.Module:
    trunk = _mobilenet_extractor(mobilenet_v3_small(width_mult=0.5), 6, nn.BatchNorm2d)
    boxes = DefaultBoxGenerator([[2]] * 6, min_ratio=20, max_ratio=95)
    widths = retrieve_out_channels(trunk, (320, 320))
    head = SSDLiteHead(widths, boxes.num_anchors_per_location(), CLASSES, nn.BatchNorm2d)
    return SSD(trunk, boxes, (SIDE, SIDE), CLASSES, head=head, score_thresh=0.0)


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "Faster R-CNN": two_stages,
    "Faster R-CNN v2": second_version,
    "Mask R-CNN": with_masks,
    "Keypoint R-CNN": with_keypoints,
    "RetinaNet": lambda: one_stage(RetinaNet),
    "FCOS": lambda: one_stage(FCOS),
    "SSD": single_shots,
    "SSDlite": lite,
}


def run(net: Any, images: list[Tensor]) -> list[Tensor]:
    """Return the detections, and the losses with batch norms as in evaluation mode."""
    target = {
        "boxes": torch.tensor([[5.0, 5, 40, 40], [20, 10, 60, 50]], dtype=torch.float64),
        "labels": torch.tensor([1, 2]),
        "masks": torch.ones(2, SIDE, SIDE, dtype=torch.uint8),
        "keypoints": torch.full((2, 17, 3), SIDE / 2, dtype=torch.float32),
    }
    detections = net.eval()(images)
    for part in (net, getattr(net, "rpn", net), getattr(net, "roi_heads", net)):
        part.training = True
    torch.manual_seed(0)
    losses = net(images, [dict(target) for _ in images])
    net.eval()
    return [each for each in tree_leaves((detections, losses)) if each.is_floating_point()]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_of_torchvision_is_pruned_exactly_and_trains(name: str) -> None:
    torch.manual_seed(0)
    net = randomise(DETECTORS[name]())
    plan = pl.plan_pruning(net, 0.4, image_size=SIDE)
    assert plan.channels_kept < 0.95 * plan.channels_total
    small, masked = pl.apply_plan(net, plan, compensate="off"), mask_plan(net, plan)
    images = list(torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64))
    found, expected = run(small, images), run(masked, images)
    assert [each.shape for each in found] == [each.shape for each in expected]
    for left, right in zip(found, expected, strict=True):
        assert torch.allclose(left, right, rtol=1e-9, atol=1e-9)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    optimiser = torch.optim.SGD(small.parameters(), lr=1e-3)
    sum(each for each in run(small, images) if each.dim() == 0).backward()
    optimiser.step()
    assert all(each.isfinite().all() for each in small.parameters())
    assert any(not torch.equal(before[key], value) for key, value in small.state_dict().items())


def test_a_detector_without_batch_norm_hears_it() -> None:
    net = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"SSD has no prunable channel: .*\(it has 35 Conv2d\)"):
        pl.plan_pruning(net, 0.3)
