"""Layer pruning: which residual blocks can go, and what stays in their place (Section 3.1, contribution 2).

A block computes after(x + f(x)). Once the batch norm that ends its branch f has gamma 0, the branch emits a constant
whatever x is, and the block is after(x + shift): a `Bypass`.
"""

import copy
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from paperlib.pruning.fx_ops import classify_node, execute, trace
from paperlib.structure import Bypass

_ADDITIONS = (operator.add, torch.add, "add", "add_")
_RELUS = (nn.functional.relu, torch.relu, "relu", "relu_")


@dataclass(frozen=True)
class Block:
    """A residual block that can be removed.

    Attributes:
        norm: name of the batch norm that ends its branch.
        tail: the traced activations between that batch norm and the addition.
        after: name, inside the block, of the activation after the addition; None if there is none.
        idle_after: whether that activation does nothing to the block's own input (a ReLU after a ReLU).
    """

    norm: str
    tail: tuple[fx.Node, ...]
    after: str | None
    idle_after: bool


def removable_blocks(module: nn.Module) -> dict[str, Block]:
    """The residual blocks of `module` that can go, by name in `named_modules()`, in forward order.

    A block is a submodule, called once, that reads one tensor x and returns x + f(x), or one activation module of
    that sum. Its branch f ends in a batch norm of its own, with nothing but activations behind it. Blocks that
    change the shape of x have a convolution on the other way too, and stay.
    """
    recorded = trace(module)
    modules = dict(module.named_modules())
    found = {
        scope: block
        for node in recorded.nodes
        if node.target in _ADDITIONS and (scope := _scope(node)) and (block := _block(node, scope, modules))
    }
    calls = [node.target for node in recorded.nodes if node.op == "call_module"]
    return {name: block for name, block in found.items() if calls.count(block.norm) == 1}


def least_important_blocks(module: nn.Module, count: int) -> list[str]:
    """The `count` blocks with the lowest mean |gamma| of the batch norm that ends their branch, in forward order.

    Raises:
        ValueError: there are fewer that can go.
    """
    if count != int(count) or count < 0:
        raise ValueError(f"layers {count} is not a whole number of at least 0")
    if count == 0:
        return []
    blocks = removable_blocks(module)
    if not blocks:
        raise ValueError(f"{type(module).__name__} has no residual block that can be removed")
    if count > len(blocks):
        raise ValueError(f"layers {count}: {type(module).__name__} has {len(blocks)} residual blocks that can go")
    level = {name: module.get_submodule(block.norm).weight.abs().mean().item() for name, block in blocks.items()}
    chosen = sorted(blocks, key=level.__getitem__)[:count]
    return [name for name in blocks if name in chosen]


def make_bypasses(module: nn.Module, names: Iterable[str], *, shifted: bool) -> dict[str, Bypass]:
    """What takes the places of the blocks at `names`; `shifted`, it adds what a branch of gamma 0 would.

    Raises:
        ValueError: one of them is not a block that can go.
    """
    names = list(names)
    blocks = removable_blocks(module) if names else {}
    for name in names:
        if name not in blocks:
            raise ValueError(f"the plan removes {name}, which is no residual block that can go")
    return {name: _bypass(module, name, blocks[name], shifted) for name in names}


def without_blocks(module: nn.Module, bypasses: Mapping[str, Bypass]) -> nn.Module:
    """A copy of `module` with bypasses in the places of its blocks, which shares its tensors; itself without any."""
    if not bypasses:
        return module
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    # What the memo of a deep copy names is taken for copied already.
    return copy.deepcopy(module, shared | {id(module.get_submodule(name)): new for name, new in bypasses.items()})


@torch.no_grad()
def _bypass(module: nn.Module, name: str, block: Block, shifted: bool) -> Bypass:
    shift = _shift(module, block) if shifted else None
    shift = shift if shift is not None and shift.any() else None
    after = None if block.idle_after and shift is None else block.after
    return Bypass(module.get_submodule(name), after, shift)


def _shift(module: nn.Module, block: Block) -> Tensor:
    """What the branch emits if the gamma of its last batch norm is 0: `[C]`."""
    constant = module.get_submodule(block.norm).bias.reshape(1, -1, 1, 1).clone()
    modules = dict(module.named_modules())
    for node in block.tail:
        constant = execute(node, modules, {node.all_input_nodes[0]: constant})
    return constant.flatten()


def _block(addition: fx.Node, scope: str, modules: dict[str, nn.Module]) -> Block | None:
    """The block that the submodule at `scope` is, if it is one, by the one addition that closes it."""
    inside = [node for node in addition.graph.nodes if f"{_scope(node)}.".startswith(f"{scope}.")]
    sources = {source for node in inside for source in node.all_input_nodes} - set(inside)
    results = [node for node in inside if not node.users.keys() <= set(inside)]
    operands = addition.all_input_nodes
    if len(sources) != 1 or len(results) != 1 or len(operands) != 2 or "alpha" in addition.kwargs:
        return None
    source = sources.pop()
    if source not in operands:
        return None
    norm, tail = _backwards(next(node for node in operands if node is not source), modules)
    after = _between(addition, results[0], modules)
    if norm is None or norm not in inside or after is None or len(after) > 1:
        return None
    if not all(node.target.startswith(f"{scope}.") for node in after):
        return None
    name = after[0].target.removeprefix(f"{scope}.") if after else None
    return Block(norm.target, tuple(tail), name, all(_is_relu(node, modules) for node in (*after, source)))


def _backwards(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[fx.Node | None, list[fx.Node]]:
    """The batch norm from which `node` comes, if only activations lie between and nothing else reads on the way."""
    tail: list[fx.Node] = []
    while len(node.users) == 1:
        kind = classify_node(node, modules)
        if kind == "norm":
            return node, tail
        if kind == "activation":
            tail.insert(0, node)
        elif not _is_idle(node, modules):
            break
        node = node.all_input_nodes[0]
    return None, tail


def _between(first: fx.Node, last: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node] | None:
    """The activation modules from `first` to `last`; None if there is anything else."""
    found: list[fx.Node] = []
    while first is not last:
        if len(first.users) != 1:
            return None
        first = next(iter(first.users))
        if _is_idle(first, modules):
            continue
        if first.op != "call_module" or classify_node(first, modules) != "activation":
            return None
        found.append(first)
    return found


def _scope(node: fx.Node) -> str:
    """Name of the submodule in whose forward the node was recorded; empty for the network's own."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return next(reversed(stack.values()))[0]


def _is_idle(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the node does nothing in evaluation mode."""
    return node.op == "call_module" and isinstance(modules[node.target], nn.Identity | nn.Dropout | nn.Dropout2d)


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return type(modules[node.target]) is nn.ReLU if node.op == "call_module" else node.target in _RELUS
