"""The smallest detectors of one and of two stages: one convolution, one box for each cell of 8 pixels."""

import torch
from torch import nn
from torchvision.ops import nms

SIZE = (64, 96)


class Cells(nn.Module):
    """One stage."""

    num_classes, image_multiple = 2, 8

    def __init__(self, noise=0.0):
        super().__init__()
        self.noise = noise
        with torch.random.fork_rng(devices=[]):  # the same weights in every run, so that there are always boxes
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 6, 8, 8)

    def head_outputs(self, batch):
        outputs = self.conv(batch)
        return [outputs + self.noise * torch.rand_like(outputs) if self.noise else outputs]

    def decode(self, outputs, image_size):
        if outputs[0].shape[2:] != (image_size[0] / 8, image_size[1] / 8):
            raise ValueError(f"no image of {image_size}")
        table = outputs[0].flatten(2).transpose(1, 2)
        return 100 * table[..., :4], table[..., 4:].sigmoid()

    def forward(self, images):
        return [choose(*found) for found in zip(*self.decode(self.head_outputs(images), SIZE), strict=True)]


class Finder(nn.Module):
    """Two stages, as far as can be seen from outside: how many boxes it gives depends on the image."""

    num_classes, image_multiple = 2, 8

    def __init__(self, forgetful=False):
        super().__init__()
        self.cells, self.forgetful = Cells(), forgetful

    def forward(self, images):
        found = self.cells(images)
        if self.forgetful:
            for each in found:
                each["boxes"] = each["boxes"] + sum(
                    each["scores"].tolist()
                )  # a number that a tracer takes for constant
        return found


def choose(boxes, scores):
    score, label = scores.max(1)
    row = (score > 0.5).nonzero()[:, 0]
    boxes = torch.cat([boxes[row, :2], boxes[row, :2] + boxes[row, 2:].abs()], 1)
    kept = nms(boxes, score[row], 0.5)
    return {"boxes": boxes[kept], "labels": label[row][kept] + 1, "scores": score[row][kept]}
