"""A group of options: a frozen dataclass whose fields are options, and how a command takes it as one parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, Self, get_type_hints


class Group:
    """Base of the dataclasses of options. Each field is `Annotated[TYPE, typer.Option(...)]`, with its default."""

    @classmethod
    def parameters(cls) -> list[Parameter]:
        """One parameter an option, as typer reads them."""
        hints = get_type_hints(cls, include_extras=True)
        return [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
            for field in fields(cls)  # type: ignore[arg-type]  # every subclass is a dataclass
        ]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The group of its parameters' values."""
        return cls(**given)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options of each group in its signature, in the group's place."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Group)}
    options = {name: kind.parameters() for name, kind in groups.items()}
    flat: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        flat += options.get(name) or [parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY)]

    @wraps(command)
    def flattened(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind.of({option.name: given.pop(option.name) for option in options[name]})
        command(**given)

    flattened.__signature__ = Signature(flat)  # type: ignore[attr-defined]
    flattened.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return flattened
