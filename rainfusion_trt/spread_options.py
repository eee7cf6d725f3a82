"""Options that commands share: fields of a dataclass, spread over a command's own signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_type_hints


def spread_options(command: Callable[..., None]) -> Callable[..., None]:
    """Make one option of each field of the dataclasses among a command's parameters.

    typer knows parameters of a function alone. What is returned has such ones; it makes the
    dataclasses of what it is given, and calls `command`.

    Parameters
    ----------
    command : callable
        Its parameters and the fields are annotated as typer has it. A field without a default is
        an option that must be given. The first line of a dataclass's docstring is the title that
        its options have in the help.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _parameters(groups[name])
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hints[name], kind=kind))

    def spread(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**given, **made)

    spread.__doc__ = command.__doc__
    spread.__annotations__ = {each.name: each.annotation for each in parameters}
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return spread


def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    title = inspect.cleandoc(group.__doc__).splitlines()[0].removesuffix(".")
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(field),
            annotation=_under(title, hints[field.name]),
        )
        for field in fields(group)
    ]


def _under(title: str, annotation: Any) -> Any:
    """The same option under a title of the help."""
    (option,) = annotation.__metadata__
    option = copy(option)
    option.rich_help_panel = title
    return Annotated[annotation.__origin__, option]


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
