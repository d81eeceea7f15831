"""The channel graph: what a convolution, a shortcut, a split … do to channel numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.detectors import build_detector
from paperlib.pruning import trace_channels
from paperlib.structure import ChannelSplit


class Net(nn.Module):
    """Two conv + batch norm stems, `body` between them and an output convolution without batch norm."""

    def __init__(self, out_inputs: int = 4) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.bn_b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.out = nn.Conv2d(out_inputs, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.bn_a(self.a(x)), self.bn_b(self.b(x))))


def test_a_shortcut_ties_the_channels_of_both_operands() -> None:
    class Shortcut(Net):
        def body(self, a: Tensor, b: Tensor) -> Tensor:
            return F.relu(a + b)

    graph = trace_channels(Shortcut())
    np.testing.assert_array_equal(graph.layers["a"].outputs, graph.layers["b"].outputs)
    np.testing.assert_array_equal(graph.layers["out"].inputs, graph.layers["a"].outputs)
    assert graph.prunable == {"a": "bn_a", "b": "bn_b"}
    assert graph.fixed[graph.layers["out"].outputs].all()
    assert graph.fixed[graph.layers["a"].inputs].all()


def test_concatenation_keeps_order_and_repeats_channels_that_come_twice() -> None:
    class Spp(Net):
        def body(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([b, F.max_pool2d(a, 3, 1, 1), F.interpolate(a, size=b.shape[-2:])], dim=1)

    layers = trace_channels(Spp(12)).layers
    a, b = layers["a"].outputs, layers["b"].outputs
    np.testing.assert_array_equal(layers["out"].inputs, np.concatenate([b, a, a]))


def test_a_channel_split_gives_parts_a_chunk_equal_parts_and_a_constant_size_fixed_ones() -> None:
    class Split(Net):
        def __init__(self) -> None:
            super().__init__(3)
            self.split = ChannelSplit([1, 3])

        def body(self, a: Tensor, b: Tensor) -> Tensor:
            _, second = self.split(a)
            return second + b.split([2, 2], 1)[0][:, :1]

    class Chunk(Net):
        def __init__(self) -> None:
            super().__init__(2)

        def body(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.chunk(a, 2, 1)[0]

    graph = trace_channels(Split())
    outputs = graph.layers["a"].outputs
    parts = [segment.channels.tolist() for segment in graph.segments if segment.layer == "split"]
    assert parts == [outputs[:1].tolist(), outputs[1:].tolist()]
    assert graph.fixed[outputs].tolist() == [False, True, True, True], "added to a part of constant size"
    chunked = trace_channels(Chunk())
    outputs = chunked.layers["a"].outputs
    assert [part.tolist() for part in chunked.balanced[0]] == [outputs[:2].tolist(), outputs[2:].tolist()]


def test_a_depthwise_convolution_passes_channels_on_and_is_pruned_with_its_source() -> None:
    class Depthwise(Net):
        def __init__(self) -> None:
            super().__init__()
            self.dw, self.bn_dw = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)

        def body(self, a: Tensor, b: Tensor) -> Tensor:
            return self.bn_dw(self.dw(a))

    graph = trace_channels(Depthwise())
    np.testing.assert_array_equal(graph.layers["dw"].outputs, graph.layers["a"].outputs)
    assert graph.prunable["dw"] == "bn_dw"


def test_flattening_repeats_each_channel_for_every_position() -> None:
    class Classifier(Net):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4 * 6, 2)
            self.out = nn.Identity()

        def body(self, a: Tensor, b: Tensor) -> Tensor:
            return self.linear(F.relu(b).flatten(1))

    layers = trace_channels(Classifier()).layers
    np.testing.assert_array_equal(layers["linear"].inputs, np.repeat(layers["b"].outputs, 6))


def test_a_module_called_twice_ties_what_it_reads() -> None:
    class SharedHead(Net):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.out(self.bn_a(self.a(x))), self.out(self.bn_b(self.b(x)))]

    layers = trace_channels(SharedHead()).layers
    np.testing.assert_array_equal(layers["a"].outputs, layers["b"].outputs)


def test_a_convolution_read_before_its_batch_norm_is_not_prunable() -> None:
    class Peek(Net):
        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            return self.out(self.bn_a(a) + a)

    assert trace_channels(Peek()).prunable == {}


def test_an_unknown_operation_holds_what_reaches_it_and_a_note_names_both() -> None:
    class Softmax(Net):
        def body(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.softmax(a, 1) + F.relu(self.bn_c(self.c(b)))

        def __init__(self) -> None:
            super().__init__()
            self.c, self.bn_c = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    class SoftmaxAfterwards(Net):
        def forward(self, x: Tensor) -> Tensor:
            out = self.out(self.bn_a(self.a(x)))
            return torch.softmax(out, 1).reshape(out.shape[0], -1)

    graph = trace_channels(Softmax())
    assert list(graph.prunable) == ["b"]
    assert graph.notes == [
        "a cannot be pruned for softmax at softmax",
        "c cannot be pruned for add at add",
    ]
    assert list(trace_channels(SoftmaxAfterwards()).prunable) == ["a"]


@pytest.mark.parametrize(
    ("name", "heads", "split_parts"), [("yolov3", 3, 0), ("yolov3-spp", 3, 0), ("yolov4", 3, 0), ("yolov4-tiny", 2, 6)]
)
def test_a_yolo_is_prunable_everywhere_but_in_its_outputs(name: str, heads: int, split_parts: int) -> None:
    detector = build_detector(name, num_classes=10, width=0.0625)
    graph = trace_channels(detector)
    convolutions = {n for n, m in detector.named_modules() if isinstance(m, nn.Conv2d)}
    outputs = {n for n in convolutions if detector.get_submodule(n).bias is not None}
    assert len(outputs) == heads
    assert set(graph.prunable) == convolutions - outputs, "the convolutions before the channel splits included"
    assert sum(segment.layer.endswith("split") for segment in graph.segments) == split_parts
