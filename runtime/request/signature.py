"""Signatures and docstrings, derived from the declarations of the settings."""

import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from latentrt.runtime.request.setting import Group, Setting
from latentrt.runtime.request.settings import SETTINGS, TYPES

Function = TypeVar("Function", bound=Callable[..., Any])


def takes_settings(without: Collection[str] = ()) -> Callable[[Function], Function]:
    """Spell out `**settings: Unpack[Settings]` in a function's signature and docstring, setting by setting.

    `help()` and editors then show each setting with its type, its default and a sentence. `without` names settings that
    the function refuses.
    """
    shown = {name: setting for name, setting in SETTINGS.items() if name not in without}

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [
            parameter.replace(annotation=_shown(parameter.annotation))
            for parameter in signature.parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD
        ]
        names = {parameter.name for parameter in own}
        given = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=setting.default, annotation=_shown(TYPES[name])
            )
            for name, setting in shown.items()
            if name not in names
        ]
        shown_signature = signature.replace(
            parameters=[*own, *given], return_annotation=_shown(signature.return_annotation)
        )
        setattr(function, "__signature__", shown_signature)  # noqa: B010 - mypy knows no __signature__
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n" + "\n".join(_paragraphs(shown))
        return function

    return decorate


@dataclass(frozen=True, slots=True)
class _Shown:
    text: str

    def __repr__(self) -> str:
        return self.text


def _shown(annotation: Any) -> Any:
    """A type as `help()` shows it, without the names of modules."""
    if annotation is inspect.Parameter.empty:
        return annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"numpy\.ndarray\[.*?\]\]", "ndarray", text)
    return _Shown(re.sub(r"\b(?:\w+\.)+(?=\w)", "", text))


def _paragraphs(settings: dict[str, Setting]) -> Iterator[str]:
    for group in Group:
        members = {name: setting for name, setting in settings.items() if setting.group is group}
        if members:
            yield f"{group}:"
        for name, setting in members.items():
            form = setting.kind.form
            form = f" {form}" if form.startswith("(") else f" ({form})" if form else ""
            text = f"{name}{form}: {describe(setting)}"
            yield textwrap.fill(text, 110, initial_indent="    ", subsequent_indent="        ")


def describe(setting: Setting) -> str:
    """A setting's sentence, how many values it takes, and its default."""
    notes = [setting.repetition, f"default: {setting.default_words}" if setting.default_words else ""]
    joined = "; ".join(note for note in notes if note)
    return setting.help + (f" {joined[0].upper()}{joined[1:]}." if joined else "")
