"""Layer pruning: which residual blocks can be removed, and what replaces them (Section 3.1, contribution 2).

A block computes after(x + f(x)). Once the batch norm that ends its branch f has gamma 0, the branch emits a constant
whatever x is, and the block is after(x + shift): a `Bypass`.
"""

import copy
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from paperlib.pairs import PartneredConv
from paperlib.pruning.fx_ops import classify_node, execute_node, target_name
from paperlib.pruning.tracing import trace_graph
from paperlib.structure import Bypass, shared_tensors

_ADDITIONS = (operator.add, torch.add, "add", "add_")
_RELUS = (nn.functional.relu, torch.relu, "relu", "relu_")


@dataclass(frozen=True)
class Block:
    """A residual block that can be removed.

    Attributes:
        norms: name of the batch norm that ends its branch, with that of the partner, if its convolution has one.
        tail: the traced activations between there and the addition.
        after: name, inside the block, of the activation after the addition; None if there is none.
        idle_after: whether that activation does nothing to the block's own input (a ReLU after a ReLU).
    """

    norms: tuple[str, ...]
    tail: tuple[fx.Node, ...]
    after: str | None
    idle_after: bool


def removable_blocks(module: nn.Module) -> dict[str, Block]:
    """Find the residual blocks of `module` that can be removed, by name in `named_modules()`, in forward order.

    A block is a submodule, called once, that reads one tensor x and returns x + f(x), or one activation module of
    that sum. Its branch f ends in a batch norm of its own, followed only by activations. Blocks that change the shape
    of x have a convolution on the shortcut too, and cannot be removed.
    """
    recorded = trace_graph(module)
    modules = dict(module.named_modules())
    calls = [node.target for node in recorded.nodes if node.op == "call_module"]
    found = {}
    for node in recorded.nodes:
        scope = _scope_name(node)
        if node.target in _ADDITIONS and scope:
            block = _find_block(node, scope, modules)
            if block and all(calls.count(norm) == 1 for norm in block.norms):
                found[scope] = block
    return found


def least_important_blocks(module: nn.Module, count: int) -> list[str]:
    """Return the `count` blocks whose branch ends in batch norms of the lowest mean |gamma|, in forward order.

    Raises:
        ValueError: fewer blocks can be removed.
    """
    if count != int(count) or count < 0:
        raise ValueError(f"layers {count} is not a whole number ≥ 0")
    if count == 0:
        return []
    blocks = removable_blocks(module)
    kind = type(module).__name__
    if not blocks:
        raise ValueError(f"{kind} has no residual block that can be removed")
    if count > len(blocks):
        raise ValueError(f"layers {count}: {kind} has only {len(blocks)} removable residual blocks")
    # The sort is stable, so that among equal blocks the first is removed.
    chosen = sorted(blocks, key=lambda name: _mean_gamma(module, blocks[name]))[:count]
    return [name for name in blocks if name in chosen]


def _mean_gamma(module: nn.Module, block: Block) -> float:
    """Return the mean |gamma| of the end of the branch, of two the larger in each channel, as in `merge_partners`."""
    gammas = [module.get_parameter(f"{norm}.weight").abs() for norm in block.norms]
    return torch.stack(gammas).amax(0).mean().item()


def make_bypasses(module: nn.Module, names: Iterable[str], *, shifted: bool) -> dict[str, Bypass]:
    """Make the bypass of each block at `names`; if `shifted`, it adds what a branch with gamma 0 would add.

    Raises:
        ValueError: one of them is not a removable block.
    """
    names = list(names)
    blocks = removable_blocks(module) if names else {}
    for name in names:
        if name not in blocks:
            raise ValueError(f"the plan removes {name}, which is not a removable residual block")
    return {name: _make_bypass(module, name, blocks[name], shifted) for name in names}


def without_blocks(module: nn.Module, bypasses: Mapping[str, Bypass]) -> nn.Module:
    """Copy `module` with the given blocks replaced by bypasses.

    The copy shares the tensors of `module`. Without any bypass, `module` itself is returned.
    """
    if not bypasses:
        return module
    # deepcopy treats everything in its memo as copied already.
    memo = shared_tensors(module.modules())
    memo |= {id(module.get_submodule(name)): bypass for name, bypass in bypasses.items()}
    return copy.deepcopy(module, memo)


@torch.no_grad()
def _make_bypass(module: nn.Module, name: str, block: Block, shifted: bool) -> Bypass:
    shift = _branch_constant(module, block) if shifted else None
    shift = shift if shift is not None and shift.any() else None
    # A ReLU after a ReLU does nothing, unless a shift lies between them.
    after = None if block.idle_after and shift is None else block.after
    return Bypass(module.get_submodule(name), after, shift)


def _branch_constant(module: nn.Module, block: Block) -> Tensor:
    """Compute what the branch emits if the gamma of its last batch norm is 0: [C]."""
    biases: list[Tensor] = [module.get_parameter(f"{norm}.bias") for norm in block.norms]
    constant = torch.stack(biases).sum(0).reshape(1, -1, 1, 1)
    modules = dict(module.named_modules())
    for node in block.tail:
        constant = execute_node(node, modules, {node.all_input_nodes[0]: constant})
    return constant.flatten()


def _find_block(addition: fx.Node, scope: str, modules: dict[str, nn.Module]) -> Block | None:
    """Return the block that the submodule at `scope` is, if `addition` is the shortcut of a removable block."""
    # A block reads one value from outside and passes one on; other submodules of the scope count as inside.
    inside = [node for node in addition.graph.nodes if f"{_scope_name(node)}.".startswith(f"{scope}.")]
    sources = {source for node in inside for source in node.all_input_nodes} - set(inside)
    results = [node for node in inside if not node.users.keys() <= set(inside)]
    operands = addition.all_input_nodes
    if len(sources) != 1 or len(results) != 1 or len(operands) != 2 or "alpha" in addition.kwargs:
        return None
    source = sources.pop()
    if source not in operands:
        return None
    branch = operands[1] if operands[0] is source else operands[0]
    norms, tail = _trace_back_to_norms(branch, modules)
    after = _activations_between(addition, results[0], modules)
    if not norms or not all(norm in inside for norm in norms) or after is None or len(after) > 1:
        return None
    names = [target_name(node) for node in after]
    if not all(name.startswith(f"{scope}.") for name in names):
        return None
    name = names[0].removeprefix(f"{scope}.") if names else None
    idle_after = all(_is_relu(node, modules) for node in (*after, source))
    return Block(tuple(map(target_name, norms)), tuple(tail), name, idle_after)


def _trace_back_to_norms(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[list[fx.Node], list[fx.Node]]:
    """Return the batch norm that `node` comes from (several, if partners are added up), and the activations between.

    There is no batch norm if anything else lies between, or if another node reads a value on the way.
    """
    tail: list[fx.Node] = []
    while len(node.users) == 1:
        kind = classify_node(node, modules)
        if kind == "norm":
            return [node], tail
        if _is_partner_sum(node, modules):
            return _addends(node, modules), tail
        if kind == "activation":
            tail.insert(0, node)
        elif not _is_idle(node, modules):
            break
        node = node.all_input_nodes[0]
    return [], tail


def _is_partner_sum(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return isinstance(modules.get(_scope_name(node)), PartneredConv) and node.target in _ADDITIONS


def _addends(node: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """Return the batch norms whose outputs `node` adds up, for partners in several additions."""
    if not _is_partner_sum(node, modules):
        return [node]
    return [norm for operand in node.all_input_nodes for norm in _addends(operand, modules)]


def _activations_between(first: fx.Node, last: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node] | None:
    """Return the activation modules from `first` to `last`; None if there is anything else."""
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


def _scope_name(node: fx.Node) -> str:
    """Return the name of the submodule whose forward recorded the node; empty for the network's own forward."""
    # torch.fx orders the stack from the network down to the innermost submodule.
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return next(reversed(stack.values()))[0]


def _is_idle(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Tell whether the node does nothing in evaluation mode."""
    return node.op == "call_module" and isinstance(modules[target_name(node)], nn.Identity | nn.Dropout | nn.Dropout2d)


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return type(modules[target_name(node)]) is nn.ReLU if node.op == "call_module" else node.target in _RELUS
