"""Options that belong together, declared once and shared by the commands that take them."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import Any, get_args


@dataclass(frozen=True, slots=True)
class Options:
    """A group that follows from a table: each option's annotation by name, with None as the default.

    A parameter `Annotated[Mapping[str, Any], Options(...)]` gets the options' values by name.
    """

    annotations: Mapping[str, Any]

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The options as parameters of a command."""
        for name, annotation in self.annotations.items():
            yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def gather(self, given: dict[str, Any]) -> Any:
        """What the command gets, taken out of the values given."""
        return {name: given.pop(name) for name in self.annotations}


@dataclass(frozen=True, slots=True)
class _DataclassOptions:
    """A group that is a dataclass, each field declared as a parameter would be: `Annotated` with `typer.Option`."""

    kind: Any

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The fields as parameters of a command."""
        for field in fields(self.kind):
            yield inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
            )

    def gather(self, given: dict[str, Any]) -> Any:
        """The dataclass, its fields taken out of the values given."""
        return self.kind(**{field.name: given.pop(field.name) for field in fields(self.kind)})


def _group(annotation: Any) -> Options | _DataclassOptions | None:
    if is_dataclass(annotation):
        return _DataclassOptions(annotation)
    return next((one for one in get_args(annotation) if isinstance(one, Options)), None)


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command with every option of its groups as a parameter of its own, as typer needs it.

    The command itself gets each group as one value.
    """
    signature = inspect.signature(command)
    groups = {name: group for name, one in signature.parameters.items() if (group := _group(one.annotation))}

    def expand() -> Iterator[inspect.Parameter]:
        for name, found in signature.parameters.items():
            if name in groups:
                yield from groups[name].parameters()
            else:
                yield found.replace(kind=found.KEYWORD_ONLY)

    @wraps(command)
    def expanded(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group.gather(given)
        command(**given)

    expanded.__signature__ = signature.replace(parameters=list(expand()))  # type: ignore[attr-defined]
    return expanded
