"""Layers that a user names: by their own name, by that of a module around them, or by a glob such as `layer1.*`."""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

Value = TypeVar("Value")


def name_layers(given: Any, network: nn.Module, option: str) -> dict[str, Any]:
    """Return a mapping of layers by their names; a list, or a single layer, becomes a mapping to None.

    Args:
        given: layers, each a pattern or a module of `network`; None for none.
        network: has the modules.
        option: the name of the argument, for the message.

    Raises:
        ValueError: something in it is neither text nor a module of the network.
    """
    if isinstance(given, str | nn.Module):
        given = [given]
    if not isinstance(given, Iterable | None):
        raise ValueError(f"{option}: {given!r} is not a collection of names of layers")
    found = {}
    for layer in given or ():
        names = [layer] if isinstance(layer, str) else [name for name, each in network.named_modules() if each is layer]
        if not names:
            kind = type(layer).__name__
            raise ValueError(f"{option}: {kind} is neither a name nor a module of {type(network).__name__}")
        found[names[0] or "*"] = given[layer] if isinstance(given, Mapping) else None
    return found


def match_layers(pattern: str, layers: Collection[str], option: str) -> list[str]:
    """Return the layers that `pattern` names, in their order.

    Args:
        pattern: the name of a layer, or of a module that contains some, or a glob for either.
        layers: the names to choose from.
        option: the name of the argument, for the message.

    Raises:
        ValueError: there is none; the nearest name is given.
    """
    found = [layer for layer in layers if any(fnmatchcase(name, pattern) for name in _with_modules(layer))]
    if not found:
        names = {name for layer in layers for name in _with_modules(layer)}
        nearest = get_close_matches(pattern, sorted(names), n=1, cutoff=0)
        hint = f"; the nearest is {nearest[0]}" if nearest else ""
        raise ValueError(f"{option}: {pattern} is no layer with channels, and no module that contains one{hint}")
    return found


def spread_values(
    values: Mapping[str, Value], layers: Collection[str], prunable: Iterable[str], option: str
) -> dict[str, Value]:
    """Return the value of each prunable layer that one of the patterns names; the last of several decides.

    Raises:
        ValueError: a pattern names no layer, or none that can be pruned.
    """
    found, known = {}, set(prunable)
    for pattern, value in values.items():
        named = [layer for layer in match_layers(pattern, layers, option) if layer in known]
        if not named:
            raise ValueError(f"{option}: {pattern} has no convolution that can be pruned")
        found |= dict.fromkeys(named, value)
    return found


def _with_modules(layer: str) -> list[str]:
    """Return the name of a layer and those of the modules around it."""
    parts = layer.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
