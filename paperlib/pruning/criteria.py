"""Criteria of importance by name, and those of users: how a plan gets the scores of channels."""

import functools
import hashlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paperlib.pruning.importance import CALIBRATED, IMPORTANCES, Batches, Prunable, Scores, output_filters
from paperlib.pruning.walk_base import NormRead

Criterion = Callable[..., Mapping[str, Any]]
"""A criterion of one's own: see `score_channels`."""
_REGISTERED: dict[str, Criterion] = {}


def register_importance(name: str, criterion: Criterion) -> None:
    """Make a criterion known by a name, which plans then record; see `score_channels` for its arguments.

    Raises:
        ValueError: the name is that of a criterion of this package, or holds a colon.
    """
    if name in IMPORTANCES:
        raise ValueError(f"importance {name!r} is a criterion of this package; choose another name")
    if not isinstance(name, str) or ":" in name or not name:
        raise ValueError(f"importance {name!r}: a name is not empty and has no colon, which means module:function")
    if not callable(criterion):
        raise ValueError(f"importance {name!r}: {type(criterion).__name__} is no function")
    _REGISTERED[name] = criterion


def registered_name(criterion: object) -> str | None:
    """Return the name under which a function was registered."""
    return next((name for name, known in _REGISTERED.items() if known is criterion), None)


def find_criterion(importance: str | Criterion) -> Criterion:
    """Return the function of a criterion: of this package, registered, or named as `module:function`.

    Raises:
        ValueError: there is none of that name.
    """
    if callable(importance):
        return importance
    if not isinstance(importance, str):
        raise ValueError(f"importance {importance!r} is neither a name nor a function")
    if importance in IMPORTANCES or importance in _REGISTERED:
        return IMPORTANCES.get(importance) or _REGISTERED[importance]
    known = ", ".join([*IMPORTANCES, *_REGISTERED])
    if ":" not in importance:
        raise ValueError(f"importance {importance!r} is not known; choose one of: {known}; or give module:function")
    if os.getcwd() not in sys.path:
        # An installed command does not look for modules where it is started; last, so that nothing is hidden.
        sys.path.append(os.getcwd())
    try:
        found: Any = pkgutil.resolve_name(importance)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"importance {importance!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"importance {importance!r} is no function but {type(found).__name__}")
    return cast(Criterion, found)


def describe_importance(importance: str | Criterion) -> str:
    """Return the name of a criterion."""
    if isinstance(importance, str):
        return importance
    function = importance.func if isinstance(importance, functools.partial) else importance
    return getattr(function, "__name__", type(function).__name__)


def needs_calibration(importance: str | Criterion) -> bool:
    """Tell whether a criterion needs data: `taylor`, `hrank`, and functions of one's own with three arguments."""
    if isinstance(importance, str) and importance in IMPORTANCES:
        return importance in CALIBRATED
    given = inspect.signature(find_criterion(importance)).parameters.values()
    return sum(each.default is each.empty and each.kind <= each.POSITIONAL_OR_KEYWORD for each in given) > 2


def criterion_digest(importance: str | Criterion) -> str | None:
    """Return the SHA-256 of the source of a criterion of one's own; None for one of this package.

    The source is the whole module in which it is defined, so that its helpers count, or, in a notebook, the cell's
    function. The arguments of `functools.partial` and the attributes of an object count, too.

    Raises:
        ValueError: the source cannot be read.
    """
    if isinstance(importance, str) and importance in IMPORTANCES:
        return None
    criterion = find_criterion(importance)
    settings: Any = vars(criterion) if not inspect.isfunction(criterion) and hasattr(criterion, "__dict__") else {}
    if isinstance(criterion, functools.partial):
        settings, criterion = [criterion.args, criterion.keywords], criterion.func
    defined = criterion if inspect.isfunction(criterion) else type(criterion)
    module = inspect.getmodule(defined)
    try:
        source = inspect.getsource(module if getattr(module, "__file__", None) and module is not None else defined)
    except (OSError, TypeError) as error:
        name = describe_importance(importance)
        raise ValueError(f"importance {name!r}: its source cannot be read; define it in a file") from error
    return hashlib.sha256(f"{defined.__qualname__} {settings!r} {source}".encode()).hexdigest()


def score_channels(
    importance: str | Criterion,
    module: nn.Module,
    prunable: Mapping[str, str],
    calibration: Batches | None = None,
    norms: Prunable | None = None,
) -> Scores:
    """Return the scores of a criterion for the convolutions of `prunable` (-> their batch norms).

    Args:
        importance: the name of a criterion, or a function `(module, prunable)`, or `(module, prunable, calibration)` if
            batches are given, that returns one score per output channel of each convolution, by its name. Where the
            norm of a convolution reads others, too, one score per channel of the norm will do.
        module: the network.
        prunable: convolution -> batch norm, by name.
        calibration: batches for a criterion that needs data.
        norms: convolution -> all norms that read it (`ChannelGraph.norms`); by default the one of `prunable`.

    Raises:
        ValueError: no such criterion; calibration batches are missing, or given to a criterion that needs only the
            weights; or a score is not finite (diverged training).
    """
    criterion, name = find_criterion(importance), describe_importance(importance)
    reads = {layer: (norms or {}).get(layer) or (NormRead(norm),) for layer, norm in prunable.items()}
    if calibration is None and needs_calibration(importance):
        raise ValueError(f"importance {name!r} needs calibration: batches of (images, targets)")
    if not isinstance(importance, str) or importance not in IMPORTANCES:
        found = _call_criterion(name, criterion, module, prunable, *(() if calibration is None else (calibration,)))
        return {layer: _checked_scores(name, module, layer, found, read[0]) for layer, read in reads.items()}
    if importance not in CALIBRATED and calibration is not None:
        raise ValueError(f"importance {importance!r} takes no calibration: it uses only the weights")
    data = () if calibration is None else (calibration,)
    scores = IMPORTANCES[importance](module, reads, *data)
    for layer, values in scores.items():
        if not np.isfinite(values).all():
            raise ValueError(f"importance {importance!r} of {layer} is not finite; did the training diverge?")
    return scores


def _call_criterion(name: str, criterion: Criterion, *arguments: Any) -> Mapping[str, Any]:
    """Return what a criterion of one's own has found; refuse one that takes other arguments or returns no mapping."""
    try:
        inspect.signature(criterion).bind(*arguments)
    except (TypeError, ValueError) as error:
        given = ", ".join(("module", "prunable", "calibration")[: len(arguments)])
        raise ValueError(f"importance {name!r} cannot be called with ({given}): {error}") from error
    try:
        found = criterion(*arguments)
    except Exception as error:
        raise ValueError(f"importance {name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"importance {name!r} returns {type(found).__name__}, not scores by the name of a convolution")
    return found


def _checked_scores(
    name: str, module: nn.Module, layer: str, found: Mapping[str, Any], read: NormRead
) -> NDArray[np.float64]:
    """Return the scores that a criterion of one's own has found for the outputs of a layer."""
    count, scores = len(output_filters(module, layer)), np.empty(0)
    if layer in found:
        with suppress(TypeError, ValueError, RuntimeError):  # what is no array of numbers is told below
            scores = torch.as_tensor(found[layer]).detach().cpu().double().numpy()
    if scores.shape == module.get_parameter(f"{read.norm}.weight").shape != (count,):
        scores = scores[read.channels]  # those of the norm, which reads other layers, too
    if scores.shape != (count,):
        raise ValueError(f"importance {name!r} gives no {count} scores for {layer}")
    if not np.isfinite(scores).all():
        raise ValueError(f"importance {name!r} of {layer} is not finite")
    return scores
