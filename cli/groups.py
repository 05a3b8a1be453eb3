"""Options that belong together, as one dataclass: declared once, and shared by the commands that take them."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command some of whose parameters are dataclasses, as typer needs it: with every field as an option of its own.

    The command itself gets the dataclasses. A field is declared as a parameter would be: `Annotated` with
    `typer.Option`, and a default.
    """
    signature = inspect.signature(command)
    groups: dict[str, Any] = {
        name: found.annotation for name, found in signature.parameters.items() if is_dataclass(found.annotation)
    }

    def expand() -> Iterator[inspect.Parameter]:
        for name, found in signature.parameters.items():
            for field in fields(groups[name]) if name in groups else ():
                yield inspect.Parameter(field.name, found.KEYWORD_ONLY, default=field.default, annotation=field.type)
            if name not in groups:
                yield found.replace(kind=found.KEYWORD_ONLY)

    @wraps(command)
    def expanded(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    expanded.__signature__ = signature.replace(parameters=list(expand()))  # type: ignore[attr-defined]
    return expanded
