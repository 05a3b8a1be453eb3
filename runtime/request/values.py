"""What kind a value is that a user gave, and how many of it."""

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from latentrt.runtime.errors import RequestError


def is_whole(value: object, least: int) -> bool:
    """Whether a value is a whole number, Python's or numpy's, of at least `least`; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: object) -> bool:
    """Whether a value is a real number, Python's or numpy's; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_share(value: object) -> bool:
    """Whether a value is a number from 0 to 1."""
    return isinstance(value, Real) and is_number(value) and 0 <= float(value) <= 1


def one_or_more(value: object) -> tuple[Any, ...]:
    """A tuple from one value or a list of them; a text is one value."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def per_prompt(name: str, value: str | Sequence[str | None] | None, prompts: int) -> tuple[str | None, ...]:
    """One entry per prompt from one for all or a list.

    Raises:
        RequestError: a list of another length.
    """
    if value is None or isinstance(value, str):
        return (value,) * prompts
    values = one_or_more(value)
    if len(values) != prompts:
        raise RequestError(f"{name}: {len(values)} given for {prompts} prompts; give one, or one per prompt")
    return values
