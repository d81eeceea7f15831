"""Networks that are built by name: what `build_detector` and `build_classifier` have in common."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from paperlib import limits
from paperlib.structure import Structure, reshape_, shapes_only

N = TypeVar("N", bound=Any)


@dataclass(frozen=True, eq=False)
class Family(Generic[N]):
    """All networks of one task.

    Attributes:
        noun: what messages call one of them.
        file_format: what their files say under `format`.
        kinds: their classes by name; each takes the number of classes and some of the options.
        defaults: the options of building, with the values that every kind accepts.
        limits: further options, which are attributes that are set after building; a kind need not have them.
    """

    noun: str
    file_format: str
    kinds: Mapping[str, type[N]]
    defaults: Mapping[str, Any]
    limits: tuple[str, ...] = ()

    def kind(self, name: str) -> type[N]:
        """Return the class of a name.

        Raises:
            ValueError: an unknown name.
        """
        if name not in self.kinds:
            raise ValueError(f"unknown {self.noun} {name!r}; known: {', '.join(self.kinds)}")
        return self.kinds[name]

    def build(self, name: str, num_classes: int, *, structure: Structure | None = None, **options: Any) -> N:
        """Build a network with fresh weights.

        Args:
            name: a key of `kinds`.
            num_classes: C.
            structure: shapes of a pruned network (`paperlib.structure.describe_structure`), applied after building.
            options: some of `defaults`, with other values, and some of `limits`.

        Raises:
            ValueError: an unknown name, no or too many classes, a width or depth out of range, an option that this
                kind does not have, or a structure of another network.
        """
        kind = self.kind(name)
        limits = {key: value for key, value in options.items() if key in self.limits}
        chosen = {**self.defaults, **{key: value for key, value in options.items() if key not in self.limits}}
        self._check_size(num_classes, chosen["width"], chosen["depth"])
        # Only what differs is passed on: a network without a depth or anchors then accepts their defaults.
        changed = {
            key: value for key, value in chosen.items() if key not in self.defaults or value != self.defaults[key]
        }
        if unknown := sorted(changed.keys() - inspect.signature(kind).parameters.keys()):
            raise ValueError(f"{name} has no {unknown[0]} to choose")
        network = kind(num_classes, **changed)
        for key, value in limits.items():
            if not hasattr(network, key):
                raise ValueError(f"{name} has no {key} to choose")
            setattr(network, key, value)
        network.build_arguments = {"name": name, "num_classes": num_classes, **chosen, **limits}
        if structure is not None:
            reshape_(network, structure)
        return network

    def build_without_weights(self, **arguments: Any) -> N:
        """Build a network as `build` does, on the meta device: shapes without values, no random number drawn."""
        with shapes_only():
            return self.build(**arguments)

    def _check_size(self, num_classes: int, width: float, depth: float) -> None:
        if num_classes < 1:
            raise ValueError(f"a {self.noun} needs at least 1 class, not {num_classes}")
        if num_classes > limits.MOST_CLASSES:
            raise ValueError(f"a {self.noun} has at most {limits.MOST_CLASSES} classes, not {num_classes:.6g}")
        for factor, value, most in (("width", width, limits.MOST_WIDTH), ("depth", depth, limits.MOST_DEPTH)):
            if not value > 0:
                raise ValueError(f"{factor} {value} is not positive")
            if value > most:
                raise ValueError(f"{factor} {value:.6g} is larger than {most:g}")
