"""Darknet's own arithmetic: OpenCV reads configurations written here by hand and finds what the detectors find.

Each function below spells one official configuration out, layer by layer, without a look at the detectors.
"""

import cv2
import numpy as np
import pytest
import torch

from paperlib.detectors import build_detector, load_darknet_weights

CLASSES, HEIGHT, WIDTH = 3, 224, 256
NARROW = 8
"""All channel counts are an eighth of the official ones."""
SMALL = 1 / 32
"""How large what batch norm sees is, so that its epsilon of 1e-6 shows in the results."""
HEADER = np.array([0, 2, 5, 0, 0], dtype="<i4").tobytes()


class Configuration:
    """A Darknet network as it is being written: the text, each layer's channels, and random weights."""

    def __init__(self, anchors: list[int]) -> None:
        self.anchors, self.random = anchors, np.random.default_rng(0)
        self.channels: list[int] = []
        self.text = self.section("net", height=HEIGHT, width=WIDTH, channels=3)
        self.weights = HEADER

    def section(self, kind: str, **options: object) -> str:
        return "\n".join([f"[{kind}]", *(f"{key}={value}" for key, value in options.items()), "\n"])

    def layer(self, kind: str, channels: int, **options: object) -> int:
        """Write a layer and return its number."""
        self.text += self.section(kind, **options)
        self.channels.append(channels)
        return len(self.channels) - 1

    def draw(self, *parts: np.ndarray) -> None:
        self.weights += b"".join(part.astype("<f4").tobytes() for part in parts)

    def conv(self, filters: int, size: int, stride: int = 1, activation: str = "leaky") -> int:
        filters, inputs, random = filters // NARROW, self.channels[-1] if self.channels else 3, self.random
        beta, gamma = random.normal(0, 0.2, filters), random.uniform(0.4, 0.8, filters)
        mean, variance = random.normal(0, 0.2 * SMALL, filters), random.uniform(0.5, 1.5, filters) * SMALL**2
        gain = 2.0 if activation == "mish" else 2.0**0.5  # mish is gentle to what is near zero
        kernels = random.normal(0, SMALL * gain / (inputs * size**2) ** 0.5, (filters, inputs, size, size))
        self.draw(beta, gamma, mean, variance, kernels)
        shape = {"filters": filters, "size": size, "stride": stride, "pad": 1}
        return self.layer("convolutional", filters, batch_normalize=1, **shape, activation=activation)

    def shortcut(self) -> int:
        return self.layer("shortcut", self.channels[-1], **{"from": -3}, activation="linear")

    def route(self, *layers: int) -> int:
        joined = sum(self.channels[layer] for layer in layers)
        return self.layer("route", joined, layers=",".join(str(layer) for layer in layers))

    def second_half(self) -> int:
        return self.layer("route", self.channels[-1] // 2, layers=-1, groups=2, group_id=1)

    def maxpool(self, size: int, stride: int) -> int:
        return self.layer("maxpool", self.channels[-1], size=size, stride=stride)

    def upsample(self) -> int:
        return self.layer("upsample", self.channels[-1], stride=2)

    def yolo(self, mask: tuple[int, ...], scale_x_y: float = 1.0) -> None:
        filters, inputs = 3 * (5 + CLASSES), self.channels[-1]
        self.draw(self.random.normal(0, 0.5, filters), self.random.normal(0, 3 * inputs**-0.5, (filters, inputs)))
        self.layer("convolutional", filters, filters=filters, size=1, stride=1, pad=1, activation="linear")
        numbers = {"mask": ",".join(map(str, mask)), "anchors": ",".join(map(str, self.anchors))}
        self.layer(
            "yolo", filters, **numbers, classes=CLASSES, num=len(self.anchors) // 2, scale_x_y=scale_x_y, thresh=0
        )

    def five(self, filters: int) -> int:
        for _ in range(2):
            self.conv(filters, 1)
            self.conv(2 * filters, 3)
        return self.conv(filters, 1)

    def pyramid(self) -> int:
        self.conv(512, 1)
        self.conv(1024, 3)
        start = self.conv(512, 1)
        pools = [self.maxpool(5, 1)]
        for size in (9, 13):
            self.route(start)
            pools.append(self.maxpool(size, 1))
        self.route(*reversed(pools), start)
        self.conv(512, 1)
        self.conv(1024, 3)
        return self.conv(512, 1)


def yolov3(pyramid: bool = False) -> Configuration:
    net = Configuration([10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326])
    net.conv(32, 3)
    ends = []
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        net.conv(filters, 3, stride=2)
        for _ in range(blocks):
            net.conv(filters // 2, 1)
            net.conv(filters, 3)
            net.shortcut()
        ends.append(len(net.channels) - 1)
    neck = net.pyramid() if pyramid else net.five(512)
    net.conv(1024, 3)
    net.yolo((6, 7, 8))
    for filters, end, mask in ((256, ends[3], (3, 4, 5)), (128, ends[2], (0, 1, 2))):
        net.route(neck)
        net.conv(filters, 1)
        net.route(net.upsample(), end)
        neck = net.five(filters)
        net.conv(2 * filters, 3)
        net.yolo(mask)
    return net


def yolov3_spp() -> Configuration:
    return yolov3(pyramid=True)


def yolov4() -> Configuration:
    net = Configuration([12, 16, 19, 36, 40, 28, 36, 75, 76, 55, 72, 146, 142, 110, 192, 243, 459, 401])
    net.conv(32, 3, activation="mish")
    ends = []
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        branch, inner = (64, 32) if filters == 64 else (filters // 2, filters // 2)
        start = net.conv(filters, 3, stride=2, activation="mish")
        bypass = net.conv(branch, 1, activation="mish")
        net.route(start)
        net.conv(branch, 1, activation="mish")
        for _ in range(blocks):
            net.conv(inner, 1, activation="mish")
            net.conv(branch, 3, activation="mish")
            net.shortcut()
        net.route(net.conv(branch, 1, activation="mish"), bypass)
        ends.append(net.conv(filters, 1, activation="mish"))
    coarse = net.pyramid()
    net.conv(256, 1)
    upper = net.upsample()
    net.route(ends[3])
    net.route(net.conv(256, 1), upper)
    middle = net.five(256)
    net.conv(128, 1)
    upper = net.upsample()
    net.route(ends[2])
    net.route(net.conv(128, 1), upper)
    last = net.five(128)
    net.conv(256, 3)
    net.yolo((0, 1, 2), 1.2)
    for filters, neck, mask, scale in ((256, middle, (3, 4, 5), 1.1), (512, coarse, (6, 7, 8), 1.05)):
        net.route(last)
        net.route(net.conv(filters, 3, stride=2), neck)
        last = net.five(filters)
        net.conv(2 * filters, 3)
        net.yolo(mask, scale)
    return net


def yolov4_tiny() -> Configuration:
    net = Configuration([10, 14, 23, 27, 37, 58, 81, 82, 135, 169, 344, 319])
    net.conv(32, 3, stride=2)
    net.conv(64, 3, stride=2)
    for filters in (64, 128, 256):
        start = net.conv(filters, 3)
        net.second_half()
        first = net.conv(filters // 2, 3)
        net.route(net.conv(filters // 2, 3), first)
        detail = net.conv(filters, 1)
        net.route(start, detail)
        net.maxpool(2, 2)
    net.conv(512, 3)
    neck = net.conv(256, 1)
    net.conv(512, 3)
    net.yolo((3, 4, 5), 1.05)
    net.route(neck)
    net.conv(128, 1)
    net.route(net.upsample(), detail)
    net.conv(256, 3)
    net.yolo((1, 2, 3), 1.05)
    return net


@pytest.mark.parametrize("write", [yolov3, yolov3_spp, yolov4, yolov4_tiny])
def test_boxes_and_scores_are_those_of_an_independent_reader(write, tmp_path):
    net = write()
    reader = cv2.dnn.readNetFromDarknet(
        np.frombuffer(net.text.encode(), np.uint8), np.frombuffer(net.weights, np.uint8)
    )
    images = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    reader.setInput(images.numpy())
    heads = reader.forward(reader.getUnconnectedOutLayersNames())
    rows = torch.cat([torch.from_numpy(head) for head in sorted(heads, key=len)])  # the coarse head has the fewest

    detector = build_detector(write.__name__.replace("_", "-"), CLASSES, width=1 / NARROW).eval()
    path = tmp_path / "random.weights"
    path.write_bytes(net.weights)
    load_darknet_weights(detector, path)
    with torch.no_grad():
        outputs = detector.head_outputs(images)
        boxes, scores = detector.decode(outputs, (HEIGHT, WIDTH))
    centre, size = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2, boxes[0, :, 2:] - boxes[0, :, :2]
    found = torch.cat([centre, size], 1) / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    objectness = torch.cat([o.permute(0, 2, 3, 1).reshape(-1, 5 + CLASSES)[:, 4] for o in outputs]).sigmoid()

    for mine, theirs in ((found, rows[:, :4]), (objectness, rows[:, 4]), (scores[0], rows[:, 5:])):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert (rows[:, 4:].std(0) > 0.02).all(), "rows are told apart"
