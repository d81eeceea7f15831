"""A command whose options are the fields of a model: one each, `--set KEY=VALUE` and `--config FILE.yaml`."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from paperlib import files
from paperlib.typed_options import OLD_NAMES, Options, check_values, describe_unknown, read_text, rename_old

Chosen = TypeVar("Chosen", bound=Options)
METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}
SET = "Set any option by its name; repeatable. An option of its own wins over this."
CONFIG = "YAML file of options, one `key: value` per line. All other ways win over this."


def run_with_options(
    arguments: Sequence[str], model: type[Chosen], run: Callable[[Chosen], int], name: str, description: str | None
) -> int:
    """Read the options of a command, check them, and call `run` with the model's object.

    Args:
        arguments: what stands after the command's name on the command line.
        model: its fields are the options.
        run: gets the checked options and returns an exit status.
        name: the command, for its help.
        description: what the command does, for its help.

    Returns:
        The exit status.

    Raises:
        ValueError, FileNotFoundError: one line names the file or option, the key and the fault.
    """

    def command(**given: Any) -> int:
        return run(collect_options(model, given))

    # Typer reads the signature; every value stays text, because the model knows best how to read it.
    parameters = [_make_parameter(key, model) for key in _in_order(model)]
    kind = inspect.Parameter.KEYWORD_ONLY
    for key, annotation in {
        "set": Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET)],
        "config": Annotated[Path | None, typer.Option("--config", metavar="FILE.yaml", help=CONFIG)],
    }.items():
        parameters.append(inspect.Parameter(key, kind, default=None, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help=description)(command)
    return typer.main.get_command(app).main(list(arguments), prog_name=name, standalone_mode=False)


def collect_options(model: type[Chosen], given: dict[str, Any]) -> Chosen:
    """Return the checked options: those given by themselves win over `--set`, and that over `--config`.

    Args:
        model: the options model.
        given: texts and flags by field, None where not given, with `set` and `config`.

    Raises:
        ValueError, FileNotFoundError: one line names the file or option, the key and the fault.
    """
    config = given.pop("config")
    assignments = given.pop("set") or []
    values = {}
    if config:
        values |= rename_old(model, files.read_mapping(config), f"{config}: ")
    values |= _read_assignments(model, assignments)
    for key, value in given.items():
        if value is not None:
            values[key] = _read_value(model, key, value, option_name(key))
    if missing := [key for key, field in model.model_fields.items() if field.is_required() and key not in values]:
        raise ValueError(f"{option_name(missing[0])} is missing")
    # Texts were checked one by one, so a fault that is left stands in the file.
    return check_values(model, str(config or ""), **values)


def option_name(key: str) -> str:
    """Return the name of a field's option."""
    return "--" + key.replace("_", "-")


def _read_assignments(model: type[Options], assignments: Sequence[str]) -> dict[str, Any]:
    texts: dict[str, str] = {}
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        key = OLD_NAMES.get(key, key)
        if not sign:
            raise ValueError(f"--set {assignment}: expected KEY=VALUE")
        if key not in model.model_fields:
            raise ValueError(f"--set {assignment}: {describe_unknown(key, model)}")
        if key in texts:
            raise ValueError(f"--set {assignment}: {key} is given twice")
        texts[key] = text
    return {key: _read_value(model, key, text, f"--set {key}") for key, text in texts.items()}


def _read_value(model: type[Options], key: str, value: str | bool, place: str) -> Any:
    if isinstance(value, bool):  # a flag
        return value
    try:
        return read_text(model, key, value)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _in_order(model: type[Options]) -> list[str]:
    """Return the fields, with those first that the model itself defines or gives another default."""
    own = list(inspect.get_annotations(model))
    return [*own, *(key for key in model.model_fields if key not in own)]


def _make_parameter(key: str, model: type[Options]) -> inspect.Parameter:
    field = model.model_fields[key]
    names = [option_name(each) for each in (key, *(old for old, new in OLD_NAMES.items() if new == key))]
    help_text = f"{field.description}{_describe_default(field)}"
    if field.annotation is bool:
        # Only what is off by default needs no `--no-`.
        names = names if field.default is False else [f"{name}/--no-{name[2:]}" for name in names]
        annotation = Annotated[bool | None, typer.Option(*names, help=help_text, show_default=False)]
    else:
        annotation = Annotated[
            str | None,
            typer.Option(*names, metavar=_describe_values(field.annotation), help=help_text, show_default=False),
        ]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _describe_default(field: FieldInfo) -> str:
    if field.is_required() or field.default in (None, False):
        return ""
    return f" Default: {'on' if field.default is True else field.default}."


def _describe_values(annotation: Any) -> str:
    """Return what the help shows for a value: its type, or what it may be."""
    if get_origin(annotation) is Annotated:
        return _describe_values(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _describe_values(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return f"[{'|'.join(get_args(annotation))}]"
    return METAVARS.get(annotation, "TEXT")
