"""Faster R-CNN with a feature pyramid (Section 4.7), on torchvision's parts.

Every convolution of trunk, pyramid and heads, except the outputs, has a trainable batch norm, because pruning needs its
gamma. torchvision's own detectors freeze it or leave it out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from paperlib.detectors.base import (
    Detector,
    FeatureMap,
    HeadResponses,
    InstanceLogits,
    Instances,
    Targets,
)
from paperlib.detectors.blocks import at_least_float32, initialise_output_, scaled_depth, scaled_width
from paperlib.detectors.regions import (
    RegionAssignment,
    RegionHead,
    RegionOutputs,
    Shape,
    ShapedAnchors,
    best_negatives,
    flat_rows,
    judge_stages,
)
from paperlib.detectors.resnet import RESNET_101, STRIDES, ResNetTrunk, initialise_convolutions_

LEVEL_STRIDES = (*STRIDES, 64)
POOLED = ("0", "1", "2", "3")
"""torchvision's names of the levels from which regions are pooled: all except the coarsest."""
SOURCE = "neck.layer_blocks.0.0"
"""The convolution of the finest level of the pyramid. Those of all levels are pruned alike, since they share heads."""
SHAPES = 3
"""Number of anchors in a cell."""
ANCHORS: tuple[Shape, ...] = tuple(
    (4 * stride * stretch, 4 * stride / stretch) for stride in LEVEL_STRIDES for stretch in (2**0.5, 1.0, 0.5**0.5)
)
ROI_SIDE = 7
ROI_SCALE = 1.75
"""A box of this many anchor sides is pooled from the level of that anchor: 224 over 128 pixels, as in FPN."""
BOX_BETA = 1 / 9
"""Distance at which the smooth L1 loss of boxes changes from quadratic to linear."""


class FasterRcnnResNet101(Detector):
    """Faster R-CNN on ResNet-101 and a feature pyramid of strides 4 to 64.

    Images are neither normalised nor resized.

    Args:
        num_classes: C, without background.
        width: multiplies every channel count except those of the outputs.
        depth: multiplies the numbers of blocks in the trunk and of convolutions in the box head.
        anchors: fifteen shapes `(width, height)` in pixels, three for each level, small to large. By default of area
            (4 x stride)^2 and ratios 1:2, 1:1, 2:1: torchvision's, made for 800 pixels, brought to 416.

    Raises:
        ValueError: not fifteen anchors, or one without an area.
    """

    traced_method = "channel_wiring"
    counted_method = "full_workload"
    usual_anchors = ANCHORS

    def __init__(
        self, num_classes: int, *, width: float = 1.0, depth: float = 1.0, anchors: Sequence[Shape] | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        anchors = self.usual_anchors if anchors is None else anchors
        self.anchors = tuple((float(w), float(h)) for w, h in anchors)
        if len(self.anchors) != len(ANCHORS) or not all(w > 0 and h > 0 for w, h in self.anchors):
            raise ValueError(f"Faster R-CNN needs fifteen anchors (width, height) of at least some area, not {anchors}")
        self.trunk = ResNetTrunk(RESNET_101, width=width, depth=depth)
        channels, representation = scaled_width(256, width), scaled_width(1024, width)
        self.neck = FeaturePyramidNetwork(list(self.trunk.channels), channels, LastLevelMaxPool(), nn.BatchNorm2d)
        self.rpn = self._proposal_network(channels)
        box_head = self._box_head(channels, representation, scaled_depth(4, depth))
        self.roi_heads = self._region_heads(box_head, FastRCNNPredictor(representation, num_classes + 1))
        self.initialise_weights()

    @property
    def max_detections(self) -> int:
        """Return the maximum number of detections per image, highest scores first."""
        return self.roi_heads.detections_per_img

    @max_detections.setter
    def max_detections(self, most: int) -> None:
        self.roi_heads.detections_per_img = most

    @property
    def sampled_anchors(self) -> int:
        """Return the number of anchors of an image that the first stage's losses sample; 256 in torchvision."""
        return self.rpn.fg_bg_sampler.batch_size_per_image

    @sampled_anchors.setter
    def sampled_anchors(self, count: int) -> None:
        self.rpn.fg_bg_sampler.batch_size_per_image = count

    @property
    def sampled_regions(self) -> int:
        """Return the number of proposals of an image that the second stage's losses sample; 512 in torchvision."""
        return self.roi_heads.fg_bg_sampler.batch_size_per_image

    @sampled_regions.setter
    def sampled_regions(self, count: int) -> None:
        self.roi_heads.fg_bg_sampler.batch_size_per_image = count

    @property
    def proposals(self) -> list[int]:
        """Return the numbers of proposals of an image in training and in detection; [2000, 1000] in torchvision."""
        return [self.rpn._post_nms_top_n["training"], self.rpn._post_nms_top_n["testing"]]

    @proposals.setter
    def proposals(self, counts: Sequence[int]) -> None:
        # As in torchvision, suppression starts from as many proposals of each level as it may keep.
        training, testing = counts
        self.rpn._pre_nms_top_n = {"training": training, "testing": testing}
        self.rpn._post_nms_top_n = {"training": training, "testing": testing}

    def _proposal_network(self, channels: int) -> RegionProposalNetwork:
        shapes = [self.anchors[first : first + SHAPES] for first in range(0, len(self.anchors), SHAPES)]
        # Fewer than torchvision's 256 sampled anchors and 2000 proposals, which are meant for images of 800 pixels and
        # can be chosen when the detector is built.
        return RegionProposalNetwork(
            ShapedAnchors(shapes),
            RegionHead(channels, SHAPES),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=64,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 400, "testing": 400},
            post_nms_top_n={"training": 300, "testing": 300},
            nms_thresh=0.7,
        )

    @staticmethod
    def _box_head(channels: int, representation: int, convolutions: int) -> nn.Sequential:
        """Build convolutions, then the fully connected layer, as a convolution over the region to have a gamma."""
        norm = nn.BatchNorm2d
        return nn.Sequential(
            *(Conv2dNormActivation(channels, channels, 3, norm_layer=norm) for _ in range(convolutions)),
            Conv2dNormActivation(channels, representation, ROI_SIDE, padding=0, norm_layer=norm),
            nn.Flatten(),
        )

    def _region_heads(self, box_head: nn.Module, box_predictor: nn.Module) -> RoIHeads:
        # FPN's level k has stride 2^k, so the middle anchor of stride 16 sets the scale of canonical level 4.
        middle = LEVEL_STRIDES.index(16)
        width, height = self.anchors[middle * SHAPES + 1]
        pool = MultiScaleRoIAlign(
            list(POOLED), ROI_SIDE, sampling_ratio=2, canonical_level=4,
            canonical_scale=ROI_SCALE * (width * height) ** 0.5,
        )  # fmt: skip
        # Without `bbox_reg_weights` torchvision multiplies the target deltas by its usual (10, 10, 5, 5).
        return RoIHeads(
            pool, box_head, box_predictor,
            fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size_per_image=32, positive_fraction=0.5,
            bbox_reg_weights=None, score_thresh=0.01, nms_thresh=0.5, detections_per_img=100,
        )  # fmt: skip

    def initialise_weights(self) -> None:
        """Draw fresh weights in neck and box head; trunk and proposal head initialise themselves."""
        initialise_convolutions_(self.neck)
        initialise_convolutions_(self.roi_heads.box_head)
        initialise_output_(self.roi_heads.box_predictor.cls_score, std=0.01)
        initialise_output_(self.roi_heads.box_predictor.bbox_pred, std=0.001)

    def _outputs(self, batch: Tensor, sizes: list[tuple[int, int]]) -> RegionOutputs:
        return self.head_outputs(batch, sizes)

    def _detections(
        self, outputs: RegionOutputs, image_size: tuple[int, int], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the highest-scoring detections of each image, from both stages."""
        proposals = self.propose_regions(outputs)
        logits, deltas = self.classify_regions(outputs, proposals)
        found = self.roi_heads.postprocess_detections(logits, deltas.flatten(1), proposals, sizes)
        return [dict(zip(("boxes", "scores", "labels"), image, strict=True)) for image in zip(*found, strict=True)]

    def head_outputs(self, batch: Tensor, sizes: list[tuple[int, int]] | None = None) -> RegionOutputs:
        """Compute the first stage's outputs for a `[B, 3, H, W]` batch whose images have `sizes`, if smaller."""
        levels = self._levels(batch)
        objectness, deltas = self.rpn.head(levels)
        objectness = flat_rows(objectness, 1).squeeze(2)
        anchors = cast(ShapedAnchors, self.rpn.anchor_generator).on_grids(levels, LEVEL_STRIDES, objectness.dtype)
        sizes = sizes or [(batch.shape[2], batch.shape[3])] * len(batch)
        return RegionOutputs(levels, anchors, objectness, flat_rows(deltas, 4), sizes)

    # Approximate joint training (Ren et al. 2015): the second stage takes proposals as constants.
    @torch.no_grad()
    def propose_regions(self, outputs: RegionOutputs) -> list[Tensor]:
        """Return the first stage's proposals after suppression, per image `[k, 4]` xyxy pixels."""
        anchors = [outputs.anchors] * len(outputs.sizes)
        boxes = self.rpn.box_coder.decode(outputs.deltas, anchors).view_as(outputs.deltas)
        rows = [SHAPES * level[0, 0].numel() for level in outputs.levels]
        return self.rpn.filter_proposals(boxes, outputs.objectness, outputs.sizes, rows)[0]

    def classify_regions(self, outputs: RegionOutputs, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Classify K proposals in all: class logits `[K, C+1]` and deltas per class `[K, C+1, 4]`.

        The proposals may come from another detector; class 0 is the background.
        """
        finest = outputs.levels[0]
        # The padded size, from which torchvision derives the stride of each level.
        size = (LEVEL_STRIDES[0] * finest.shape[2], LEVEL_STRIDES[0] * finest.shape[3])
        # In float32 at least, like the proposals: a detector in half precision could not pool otherwise.
        levels = {name: at_least_float32(level) for name, level in zip(POOLED, outputs.levels, strict=False)}
        proposals = [boxes.to(next(iter(levels.values()))) for boxes in proposals]
        features = self.roi_heads.box_roi_pool(levels, proposals, [size]).to(finest.dtype)
        logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(features))
        return logits.to(outputs.anchors.dtype), deltas.to(outputs.anchors.dtype).unflatten(1, (-1, 4))

    @torch.no_grad()
    def assign_targets(self, outputs: RegionOutputs, targets: Targets) -> RegionAssignment:
        """Sample the anchors and proposals of the losses, and assign them to ground-truth boxes."""
        anchors, device = outputs.anchors, outputs.anchors.device
        targets = [{"boxes": t["boxes"].to(anchors), "labels": t["labels"].to(device)} for t in targets]
        marks, boxes = self.rpn.assign_targets_to_anchors([anchors] * len(targets), targets)
        positive, negative = (torch.stack(chosen).bool() for chosen in self.rpn.fg_bg_sampler(marks))
        image, row = (positive | negative).nonzero(as_tuple=True)
        objects = positive[image, row]
        anchor_boxes = torch.stack([each.to(anchors) for each in boxes])[image[objects], row[objects]]
        # torchvision adds the true boxes to the proposals, so that there are positives from the start.
        proposals, matched, labels, _ = self.roi_heads.select_training_samples(self.propose_regions(outputs), targets)
        proposal_boxes = torch.cat(
            [t["boxes"][index[label > 0]] for t, index, label in zip(targets, matched, labels, strict=True)]
        )
        return RegionAssignment(image, row, objects, anchor_boxes, proposals, torch.cat(labels), proposal_boxes)

    def compute_losses(self, outputs: RegionOutputs, assignment: RegionAssignment) -> dict[str, Tensor]:
        """Compute the detector's own losses, each a mean over its sample."""
        boxes = {
            name: F.smooth_l1_loss(found, wanted, beta=BOX_BETA, reduction="sum") / count
            for name, (found, wanted, count) in self._regressions(outputs, assignment).items()
        }
        return self.head_responses(outputs, assignment).hard_losses() | boxes

    def head_responses(self, outputs: RegionOutputs, assignment: RegionAssignment) -> HeadResponses:
        """Return what distillation compares (Eqs. 10-12), in both stages, on proposals of any detector.

        Objectness is a softmax over background and object. The regression space is that of each stage, divided by the
        square root of its sample's size, so that squared errors contain their weight in the loss.
        """
        # A softmax over 0 and x is the sigmoid of x, so both stages have losses of one kind.
        logits = outputs.objectness[assignment.image, assignment.row]
        logits = {
            "rpn_objectness": torch.stack([torch.zeros_like(logits), logits], 1),
            "classes": self._classified(outputs, assignment)[0],
        }
        truth = {"rpn_objectness": assignment.objects.long(), "classes": assignment.labels}
        regressions = [
            (found / count**0.5, wanted / count**0.5)
            for found, wanted, count in self._regressions(outputs, assignment).values()
        ]
        found, wanted = (torch.cat(parts) for parts in zip(*regressions, strict=True))
        return HeadResponses(
            kind="softmax",
            logits=logits,
            hard_targets={k: F.one_hot(truth[k], v.shape[1]).to(v.dtype) for k, v in logits.items()},
            weights={k: v.new_full((len(v),), 1 / max(1, len(v))) for k, v in logits.items()},
            regression=found,
            regression_target=wanted,
            regression_weight=1.0,
            **self._positives(outputs, assignment, logits),
        )

    def _positives(
        self, outputs: RegionOutputs, assignment: RegionAssignment, logits: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Return the positives of both stages, the first's first: their boxes, and what they answer."""
        objects, positive = assignment.objects, assignment.labels > 0
        answers = {
            "rpn_objectness": (logits["rpn_objectness"][objects], torch.ones_like(assignment.row[objects])),
            "classes": (logits["classes"][positive], assignment.labels[positive]),
        }
        regressions = [pair[:2] for pair in self._regressions(outputs, assignment).values()]
        distances = [F.smooth_l1_loss(*pair, beta=BOX_BETA, reduction="none").sum(1) for pair in regressions]
        anchors = outputs.anchors[assignment.row[objects]]
        proposals = torch.cat(assignment.proposals)[positive]
        boxes = [
            self.rpn.box_coder.decode_single(regressions[0][0], anchors).view(-1, 4),
            self.roi_heads.box_coder.decode_single(regressions[1][0], proposals).view(-1, 4),
        ]
        return {
            "boxes": torch.cat(boxes),
            "true_boxes": torch.cat([assignment.anchor_boxes, assignment.proposal_boxes]),
            "instances": judge_stages(answers, distances),
        }

    def features(self, outputs: RegionOutputs) -> list[FeatureMap]:
        """Return the levels of the pyramid, finest first."""
        return [
            FeatureMap(values, stride, SOURCE, values.new_tensor(self.anchors[first : first + SHAPES]))
            for values, stride, first in zip(
                outputs.levels, LEVEL_STRIDES, range(0, len(self.anchors), SHAPES), strict=True
            )
        ]

    def cell_scores(self, outputs: RegionOutputs) -> list[Tensor]:
        """Return the highest objectness of each cell of each level, `[B, h, w]` each."""
        cells = outputs.objectness.sigmoid().unflatten(1, (-1, SHAPES)).amax(2)
        parts = cells.split([level[0, 0].numel() for level in outputs.levels], 1)
        return [part.view(len(part), *level.shape[2:]) for part, level in zip(parts, outputs.levels, strict=True)]

    def find_background(
        self, outputs: RegionOutputs, assignment: RegionAssignment, limit: int
    ) -> tuple[Tensor, Tensor]:
        """Return image and place in the sample of the proposals that least look like the background that they are."""
        scores = 1 - self._classified(outputs, assignment)[0].detach().softmax(1)[:, 0]
        return best_negatives(scores, assignment, limit)

    def background_responses(
        self, outputs: RegionOutputs, assignment: RegionAssignment, places: tuple[Tensor, Tensor]
    ) -> Instances:
        """Judge proposals of the sample whose truth is background, by the cross entropy of the second stage."""
        logits = self._classified(outputs, assignment)[0][places[1]]
        losses = F.cross_entropy(logits, torch.zeros_like(places[1]), reduction="none")
        instances = torch.arange(len(logits), device=logits.device)
        answers = {"classes": InstanceLogits(logits, instances, torch.ones_like(losses))}
        return Instances(answers, losses, torch.zeros_like(losses), logits.argmax(1) == 0)

    def channel_wiring(self, batch: Tensor) -> list[Tensor]:
        """Connect all channels as a detection does, for `torch.fx`, which cannot trace proposals.

        Every level passes the proposal head and, pooled as a whole instead of its regions, the box head.
        """
        levels, outputs = self._levels(batch), []
        head, predictor = cast(RegionHead, self.rpn.head), cast(FastRCNNPredictor, self.roi_heads.box_predictor)
        for level in levels:
            features = head.conv(level)
            outputs += [head.cls_logits(features), head.bbox_pred(features)]
        for level in levels[: len(POOLED)]:
            features = self.roi_heads.box_head(F.adaptive_max_pool2d(level, ROI_SIDE))
            outputs += [predictor.cls_score(features), predictor.bbox_pred(features)]
        return outputs

    def full_workload(self, batch: Tensor) -> None:
        """Run each layer as often as a detection with the maximum number of proposals does, to count operations."""
        levels = self._levels(batch)
        self.rpn.head(levels)
        regions = len(batch) * self.rpn.post_nms_top_n()
        features = batch.new_zeros(regions, levels[0].shape[1], ROI_SIDE, ROI_SIDE)
        self.roi_heads.box_predictor(self.roi_heads.box_head(features))

    def _levels(self, batch: Tensor) -> list[Tensor]:
        return list(self.neck(OrderedDict(enumerate(self.trunk(batch)))).values())

    def _classified(self, outputs: RegionOutputs, assignment: RegionAssignment) -> tuple[Tensor, Tensor]:
        if outputs.classified is None or outputs.classified[0] is not assignment:
            outputs.classified = (assignment, *self.classify_regions(outputs, assignment.proposals))
        return outputs.classified[1:]

    def _regressions(
        self, outputs: RegionOutputs, assignment: RegionAssignment
    ) -> dict[str, tuple[Tensor, Tensor, int]]:
        """Return per stage the deltas of the positives, their targets, and the size of its sample."""
        image, row = assignment.image[assignment.objects], assignment.row[assignment.objects]
        wanted = self.rpn.box_coder.encode_single(assignment.anchor_boxes, outputs.anchors[row])
        positive = assignment.labels > 0
        found = self._classified(outputs, assignment)[1][positive, assignment.labels[positive]]
        proposals = torch.cat(assignment.proposals)[positive]
        true = self.roi_heads.box_coder.encode_single(assignment.proposal_boxes, proposals)
        return {
            "rpn_box": (outputs.deltas[image, row], wanted, max(1, len(assignment.row))),
            "box": (found, true, max(1, len(assignment.labels))),
        }
