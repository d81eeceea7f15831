"""The part of the walk that visits modules with channels: convolutions, linear layers, norms, splits."""

from dataclasses import replace

import numpy as np
from torch import fx, nn
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm3d
from torch.nn.modules.conv import _ConvNd

from paperlib.pruning.axes import LOUD, SILENT, Axis, IntArray
from paperlib.pruning.fx_ops import NORMS, classify_node, target_name
from paperlib.pruning.walk_base import Hold, Layer, WalkBase, level_array


class LayerWalk(WalkBase):
    """Visits the modules that have channels."""

    def _axis(self, node: fx.Node, count: int, ndim: int | None) -> Axis:
        """Return the axis that `node` reads, or new fixed numbers if it reads an opaque value."""
        axis = self.input_values(node)[0] if node.all_input_nodes else None
        if isinstance(axis, Axis):
            return axis
        numbers, source = self.ties.new_numbers(count), next(iter(node.all_input_nodes), node)
        whence = "an input" if source.op == "placeholder" else f"read from {source.name}, which is not followed"
        self.holds.append(Hold(numbers, f"being {whence}"))
        return Axis(numbers, ndim=ndim)

    def _record(self, node: fx.Node, kind: str, inputs: IntArray, outputs: IntArray) -> None:
        """Add a layer. At every further call of it, tie its channels to those of the first call."""
        name = target_name(node)
        if known := self.layers.get(name):
            self.ties.tie_numbers(known.inputs, inputs)
            self.ties.tie_numbers(known.outputs, outputs)
        else:
            self.layers[name] = Layer(kind, inputs, outputs)

    def _record_follower(self, node: fx.Node) -> bool:
        """Note which batch norm, if any, is the only reader of this call of a layer; tell whether there is one.

        Activations and poolings may come between the two.
        """
        name, reader = target_name(node), _sole_reader(node)
        while reader is not None and classify_node(reader, self.modules) in ("activation", "pass_through", "slope"):
            reader = _sole_reader(reader)
        is_norm = reader is not None and classify_node(reader, self.modules) in NORMS
        self.followers.setdefault(name, set()).add(target_name(reader) if reader is not None and is_norm else None)
        if is_norm and _sole_reader(node) is not reader:
            self.apart.add(name)
        return is_norm

    def visit_conv(self, node: fx.Node) -> Axis | None:
        """Give the outputs of a convolution new numbers."""
        conv, ndim = self.module_of(node), _layer_dims(self.module_of(node))
        axis = self._consume(self._axis(node, conv.in_channels, ndim), node)
        if not axis.plain or axis.dim != 1 or len(axis.numbers) != conv.in_channels:
            return self.visit_unknown(node)
        outputs = self.ties.new_numbers(conv.out_channels)
        self._record(node, classify_node(node, self.modules), axis.numbers, outputs)
        self._record_follower(node)
        return Axis(outputs, ndim=ndim, levels=np.full(len(outputs), LOUD))

    def visit_depthwise(self, node: fx.Node) -> Axis | None:
        """Give the outputs of each group the number of its inputs, which are tied: the group goes as a whole."""
        conv = self.module_of(node)
        axis = self._axis(node, conv.in_channels, _layer_dims(conv))
        if not axis.plain or axis.dim != 1 or len(axis.numbers) != conv.in_channels:
            return self.visit_unknown(node)
        by_group = axis.numbers.reshape(conv.groups, -1)
        self._tie_parts(list(by_group.T))
        multiplier = conv.out_channels // conv.groups
        outputs = np.repeat(by_group[:, 0], multiplier)
        self._record(node, "depthwise", axis.numbers, outputs)
        loud = (level_array(axis) == LOUD).reshape(by_group.shape).any(1).repeat(multiplier)
        # Its own batch norm silences what its bias, or a constant that it reads, would emit.
        loud |= self._record_follower(node)
        return replace(axis, numbers=outputs, levels=np.where(loud, LOUD, SILENT) if loud.any() else None)

    def visit_grouped(self, node: fx.Node) -> Axis | None:
        """Give the outputs of a grouped convolution new numbers; every group keeps equally many of each."""
        found = self.visit_conv(node)
        if found is not None:
            layer, groups = self.layers[target_name(node)], self.module_of(node).groups
            self.balanced += [np.split(layer.inputs, groups), np.split(layer.outputs, groups)]
        return found

    def visit_linear(self, node: fx.Node) -> Axis | None:
        """Give the outputs of a linear layer new numbers; it may read flattened maps."""
        linear = self.module_of(node)
        opaque = self.input_values(node)[0] is None
        axis = self._consume(self._axis(node, linear.in_features, None), node)
        positions, rest = divmod(linear.in_features, len(axis.numbers))
        last = axis.ndim is None or axis.dim == axis.ndim - 1
        fits = axis.groups == 1 and last and (axis.flat or positions == 1)
        if rest or not (fits or opaque):
            return self.visit_unknown(node)
        outputs = self.ties.new_numbers(linear.out_features)
        self._record(node, "linear", np.repeat(axis.numbers, positions), outputs)
        self._record_follower(node)
        levels = np.full(len(outputs), LOUD)
        return Axis(outputs, dim=axis.dim, ndim=None if opaque else axis.ndim, levels=levels)

    def visit_norm(self, node: fx.Node) -> Axis | None:
        """Keep the numbers; a batch norm silences its outputs once gamma and beta are 0."""
        norm = self.module_of(node)
        axis = self._axis(node, norm.num_features, _norm_dims(norm))
        if not axis.plain or axis.dim != 1 or len(axis.numbers) != norm.num_features:
            return self.visit_unknown(node)
        return self._silence(node, "norm", axis)

    def _silence(self, node: fx.Node, kind: str, axis: Axis) -> Axis:
        """Record a norm: where both its gamma and beta are 0, a channel is silent, however loud it was."""
        name, loud = target_name(node), level_array(axis) == LOUD
        self._record(node, kind, axis.numbers, axis.numbers)
        if loud.any():
            self.silencing[name] = self.silencing.get(name, False) | loud
        return replace(axis, levels=None)

    def visit_group_norm(self, node: fx.Node) -> Axis | None:
        """Tie the channels of each group: the statistics of the others stay as they are if it goes as a whole."""
        norm = self.module_of(node)
        count = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
        axis = self._axis(node, count, None)
        if not axis.plain or axis.dim != 1 or len(axis.numbers) != count:
            return self.visit_unknown(node)
        if isinstance(norm, nn.GroupNorm):
            self._tie_parts(list(axis.numbers.reshape(norm.num_groups, -1).T))
        return self._silence(node, "group_norm", axis)

    def visit_slope(self, node: fx.Node) -> Axis | None:
        """Keep the numbers through a module that treats each channel alone, such as a PReLU per channel."""
        axis = self.input_values(node)[0]
        if axis is None or not axis.plain or axis.dim != 1:
            return self.visit_unknown(node)
        self._record(node, classify_node(node, self.modules), axis.numbers, axis.numbers)
        return axis

    visit_pixel_norm = visit_slope

    def visit_split(self, node: fx.Node) -> tuple[Axis, ...]:
        """Give each part of a `ChannelSplit` its share of the numbers."""
        axis = self._consume(self._axis(node, sum(self.module_of(node).sizes), 4), node)
        self._record(node, "split", axis.numbers, axis.numbers)
        ends = np.cumsum(self.module_of(node).sizes)
        return tuple(axis.take(slice(*ends_)) for ends_ in zip([0, *ends[:-1]], ends, strict=True))

    def visit_bypass(self, node: fx.Node) -> Axis | None:
        """Keep the numbers through the replacement of a removed block."""
        shift = self.module_of(node).shift
        if shift is None:
            return self.input_values(node)[0]
        axis = self._consume(self._axis(node, len(shift), 4), node)
        self._record(node, "bypass", axis.numbers, axis.numbers)
        return axis


def _sole_reader(node: fx.Node) -> fx.Node | None:
    """Return the only node that reads another."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _layer_dims(layer: nn.Module) -> int:
    assert isinstance(layer, _ConvNd)
    return len(layer.kernel_size) + 2


def _norm_dims(norm: nn.Module) -> int | None:
    return None if isinstance(norm, BatchNorm1d) else 5 if isinstance(norm, BatchNorm3d) else 4
