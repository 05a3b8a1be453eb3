"""Groups of options, declared once and shared by the commands that take them."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import Any, get_args


@dataclass(frozen=True, slots=True)
class Options:
    """A group from a table of option annotations by name; every default is None.

    A parameter `Annotated[Mapping[str, Any], Options(...)]` receives the options' values by name.
    """

    annotations: Mapping[str, Any]

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The options as parameters of a command."""
        for name, annotation in self.annotations.items():
            yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def gather(self, given: dict[str, Any]) -> Any:
        """Take the group's values out of those given."""
        return {name: given.pop(name) for name in self.annotations}


@dataclass(frozen=True, slots=True)
class _DataclassOptions:
    """A group that is a dataclass, with its fields declared as parameters would be: `Annotated` with `typer.Option`."""

    kind: Any

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The fields as parameters of a command."""
        for field in fields(self.kind):
            yield inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
            )

    def gather(self, given: dict[str, Any]) -> Any:
        """Take the fields out of the values given, and make the dataclass."""
        return self.kind(**{field.name: given.pop(field.name) for field in fields(self.kind)})


def _group(annotation: Any) -> Options | _DataclassOptions | None:
    if is_dataclass(annotation):
        return _DataclassOptions(annotation)
    return next((note for note in get_args(annotation) if isinstance(note, Options)), None)


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of its groups as a parameter of its own, as typer needs it.

    The command itself receives each group as one value.
    """
    signature = inspect.signature(command)
    parameters = signature.parameters.items()
    groups = {name: group for name, parameter in parameters if (group := _group(parameter.annotation))}

    def expand() -> Iterator[inspect.Parameter]:
        for name, parameter in parameters:
            if name in groups:
                yield from groups[name].parameters()
            else:
                yield parameter.replace(kind=parameter.KEYWORD_ONLY)

    @wraps(command)
    def expanded(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group.gather(given)
        command(**given)

    expanded.__signature__ = signature.replace(parameters=list(expand()))  # type: ignore[attr-defined]
    return expanded
