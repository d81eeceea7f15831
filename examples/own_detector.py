"""Prune, distil, save and export a detector of one's own: `python examples/own_detector.py [FOLDER]`, a few seconds.

`GridDetector` knows nothing of paperlib but what `fit` and `evaluate` need: torchvision's calling convention. The
methods after `forward` are for those who also want distillation (four) and an ONNX file (`decode`).
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

import paperlib as pl
from paperlib.detectors.base import Assignment, FeatureMap, HeadResponses, InstanceLogits, Instances, Targets

STRIDE, SIDE = 8, 96


class GridDetector(nn.Module):
    """Predicts classes and a box in each cell of a grid."""

    image_multiple = STRIDE
    traced_method = "head_outputs"  # what torch.fx follows; without it, `forward`

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = [3, width, 2 * width, 4 * width]
        self.body = nn.Sequential(*(_block(*pair) for pair in zip(widths, widths[1:], strict=False)))
        self.head = nn.Conv2d(widths[-1], num_classes + 4, 1)
        nn.init.constant_(self.head.bias[:num_classes], -3.0)  # objects are rare

    def forward(self, images: list[Tensor] | Tensor, targets: Targets | None = None) -> object:
        """Return losses in training mode, else per image `boxes`, `labels` and `scores`."""
        outputs = self.head_outputs(torch.stack(list(images)))
        if targets is not None and self.training:
            return self.compute_losses(outputs, self.assign_targets(outputs, targets))
        return [_select(*found) for found in zip(*self.decode(outputs), strict=True)]

    def head_outputs(self, images: Tensor) -> Tensor:
        """Map `[B, 3, H, W]` to `[B, C + 4, H / 8, W / 8]`: logits of classes, then offset and size of the box."""
        return self.head(self.body(images))

    def decode(self, outputs: Tensor, image_size: object = None) -> tuple[Tensor, Tensor]:
        """Return boxes `[B, R, 4]`, xyxy in pixels, and scores `[B, R, C]`."""
        logits, box = outputs.flatten(2).transpose(1, 2).split([self.num_classes, 4], 2)
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in outputs.shape[2:]), indexing="ij")
        centres = torch.stack([columns, rows], 2).reshape(-1, 2).to(box) + box[..., :2].sigmoid()
        return box_convert(STRIDE * torch.cat([centres, box[..., 2:].exp()], 2), "cxcywh", "xyxy"), logits.sigmoid()

    # --- What distillation reads -------------------------------------------------------------------------------------

    def assign_targets(self, outputs: Tensor, targets: Targets) -> Assignment:
        """Give each true box to the cell of its centre."""
        boxes = torch.cat([target["boxes"] for target in targets])
        image = torch.cat([torch.full_like(t["labels"], index) for index, t in enumerate(targets)])
        column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).long().unbind(1)
        labels = torch.cat([target["labels"] for target in targets]) - 1
        nothing = outputs.new_zeros(len(outputs), outputs[0, 0].numel(), dtype=torch.bool)
        return Assignment(image, row * outputs.shape[3] + column, boxes, labels, nothing)

    def compute_losses(self, outputs: Tensor, assignment: Assignment) -> dict[str, Tensor]:
        """Return the cross entropy of all cells and the distance of the boxes."""
        answers = self.head_responses(outputs, assignment)
        distance = (answers.regression - answers.regression_target).abs().sum() / assignment.count
        return {**answers.hard_losses(), "box": distance}

    def head_responses(self, outputs: Tensor, assignment: Assignment) -> HeadResponses:
        """Return logits with their truth and weights, and the boxes of the cells that have an object, in cells."""
        rows = outputs.flatten(2).transpose(1, 2)
        logits, positive = rows[..., : self.num_classes], rows[assignment.image, assignment.row]
        truth = torch.zeros_like(logits)
        truth[assignment.image, assignment.row, assignment.labels] = 1
        boxes = self.decode(outputs)[0][assignment.image, assignment.row]
        target = box_convert(assignment.boxes, "xyxy", "cxcywh") / STRIDE
        found = box_convert(boxes, "xyxy", "cxcywh") / STRIDE
        return HeadResponses(
            kind="sigmoid",
            logits={"classes": logits},
            hard_targets={"classes": truth},
            weights={"classes": torch.full_like(logits, 1 / assignment.count)},
            regression=found,
            regression_target=target,
            regression_weight=1 / assignment.count,
            boxes=boxes,
            true_boxes=assignment.boxes,
            instances=self._judge_positives(positive, assignment, (found - target).abs().sum(1)),
        )

    def _judge_positives(self, rows: Tensor, assignment: Assignment, box_losses: Tensor) -> Instances:
        logits, truth = rows[:, : self.num_classes], F.one_hot(assignment.labels, self.num_classes).to(rows)
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1)
        each = InstanceLogits(logits, torch.arange(len(rows), device=rows.device), torch.ones_like(logits))
        return Instances({"classes": each}, losses, box_losses, logits.argmax(1) == assignment.labels)

    def features(self, outputs: Tensor) -> list[FeatureMap]:
        """Return the levels of the detector: one, of stride 8."""
        return [FeatureMap(outputs, STRIDE, "head")]


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _select(boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
    best, labels = scores.max(1)
    kept = batched_nms(boxes, best, labels, 0.5)[:100]
    return {"boxes": boxes[kept], "labels": labels[kept] + 1, "scores": best[kept]}


def _few_images(dataset: pl.Dataset) -> pl.Dataset:
    return dataset.subset(dataset.spaced_indices(32), f"{dataset.name}/few")


def main(folder: Path) -> None:
    """Train, prune, distil, save, load, export and time the detector."""
    torch.manual_seed(0)
    train, val = (_few_images(pl.load_dataset("toy-aerial", split)) for split in ("train", "val"))
    recipe = pl.Recipe(epochs=1, image_size=SIDE, learning_rate=1e-2)
    history = pl.fit(GridDetector(len(train.classes)), train, recipe, regulariser=pl.Sparsity(0.005), validation=val)
    teacher = history.best()

    plan = pl.plan_pruning(teacher, 0.5, image_size=SIDE)
    student = pl.apply_plan(teacher, plan, compensate="exact")
    pl.fit(student, train, recipe, objective=pl.Distillation(teacher))
    print(f"{pl.cost(teacher, SIDE).gmacs:.4f} -> {pl.cost(student, SIDE).gmacs:.4f} GMACs,", end=" ")
    print(f"mAP50 {pl.evaluate(student, val, image_size=SIDE).map50:.2f}")

    pl.save_network(student, folder / "student.safetensors")
    again = pl.load_network(folder / "student.safetensors", build=lambda: GridDetector(len(train.classes)))
    pl.export_onnx(again, folder / "student.onnx", image_size=SIDE, classes=train.classes)
    print(pl.latency(again, SIDE, runtime="onnxruntime", threads=1))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
