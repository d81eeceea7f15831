"""Typed options: the base class of every options model, and the check of plain values against one.

Fields are documented by the text below them, which is also the help of their option on the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from paperlib import limits

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
ImageSize = Annotated[int, Field(ge=32, le=limits.LARGEST_SIDE, multiple_of=32)]
Count = Annotated[int, Field(gt=0, le=limits.LARGEST_COUNT)]
Threads = Annotated[int, Field(gt=0, le=limits.MOST_THREADS)]
Seed = Annotated[int, Field(ge=0, le=limits.LARGEST_SEED)]
Number = Annotated[float, Field(ge=0.0, le=limits.LARGEST_NUMBER)]
PositiveNumber = Annotated[float, Field(gt=0.0, le=limits.LARGEST_NUMBER)]
WidthFactor = Annotated[float, Field(gt=0.0, le=limits.MOST_WIDTH)]
DepthFactor = Annotated[float, Field(gt=0.0, le=limits.MOST_DEPTH)]


def _known_name(kind: str, known: tuple[str, ...]) -> Callable[[str], str]:
    """Return a check that a name is one of those known; the message proposes the most similar one."""

    def check_name(name: str) -> str:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {similar[0]!r}?" if similar else ""
            raise ValueError(f"unknown {kind} {name[:60]!r}{hint} (known: {', '.join(known)})")
        return name

    return check_name


DetectorName = Annotated[str, AfterValidator(_known_name("detector", limits.DETECTOR_NAMES))]
NetworkName = Annotated[
    str, AfterValidator(_known_name("detector or classifier", limits.DETECTOR_NAMES + limits.CLASSIFIER_NAMES))
]

OLD_NAMES = {"keep_floor": "min_keep_ratio", "color": "colour"}
"""Names that are accepted, too, for fields that have another name now."""

Model = TypeVar("Model", bound="Options")


class Options(BaseModel):
    """Options of one topic. Unknown names and values of a wrong type or range are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def select(self, topic: type[Model]) -> Model:
        """Return the options of one topic; fields that this model lacks have their defaults."""
        return topic(**self.model_dump(include=set(topic.model_fields)))

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, values: Any) -> Any:
        return rename_old(cls, values) if isinstance(values, Mapping) else values


def rename_old(model: type[Options], values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Return the values under the names that the model's fields have today.

    Raises:
        ValueError: a field is given under its old and its present name.
    """
    renamed = {}
    for key, value in values.items():
        name = OLD_NAMES.get(key, key)
        if name not in model.model_fields:
            name = key
        if name in renamed:
            raise ValueError(f"{place}{key}: this is {name}, which is given twice")
        renamed[name] = value
    return renamed


def check_values(model: type[Model], place: str = "", /, **values: Any) -> Model:
    """Return an object of the model made from plain values.

    Raises:
        ValueError: one line that names, after `place`, each key that is unknown, missing, or of a wrong type or range.
    """
    try:
        return model(**values)
    except ValidationError as error:
        faults = "; ".join(_describe_fault(fault, model) for fault in error.errors())
        raise ValueError(f"{place}: {faults}" if place else faults) from None


def read_text(model: type[Options], name: str, text: str) -> Any:
    """Return the value that a text, such as one from the command line, gives to a field.

    Raises:
        ValueError: one line without the field's name, because only the caller knows how the user wrote it.
    """
    field = model.model_fields[name]
    # The field itself, as metadata, brings its range and its other constraints.
    kind: Any = Annotated[field.annotation, field]  # pyright: ignore[reportInvalidTypeForm]
    adapter = TypeAdapter(kind, config=model.model_config)
    try:
        return adapter.validate_strings(text)
    except ValidationError as error:
        raise ValueError(_describe_fault(error.errors()[0], model)) from None


def describe_unknown(key: str, model: type[Options]) -> str:
    """Return the fault of an unknown key: the most similar name, and all names that there are."""
    known = list(model.model_fields)
    similar = difflib.get_close_matches(key, known, n=1)
    hint = f", did you mean {similar[0]!r}?" if similar else ""
    return f"unknown key {key!r}{hint} (known: {', '.join(known)})"


def _describe_fault(fault: ErrorDetails, model: type[Options]) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return describe_unknown(key, model)
    if fault["type"] == "missing":
        return f"{key}: is missing"
    given = repr(fault["input"])
    found = f"{message} (found {given if len(given) <= 100 else given[:100] + ' …'})"
    if key:
        return f"{key}: {found}"
    # Without a key it is a fault of several fields together, whose values the message names itself.
    return found if isinstance(fault["input"], str) else message
