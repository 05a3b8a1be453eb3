"""Kinds of values that say which sampler and which schedule draw: names, fields of a config, and lists."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import pairwise
from typing import Any

from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.request.kinds import Kind, is_list, is_number, python_number
from latentrt.runtime.samplers import SAMPLERS, ScheduleConfig, sampler_named, schedule_named
from latentrt.runtime.samplers.config import read_field

SCHEDULE_FIELDS = tuple(sorted(field.name for field in fields(ScheduleConfig)))
_KNOWN_FIELDS = ", ".join(SCHEDULE_FIELDS)


def _checked_fields(value: str | Mapping[Any, Any]) -> dict[str, Any]:
    if isinstance(value, str):
        return {**schedule_named(value)}
    if unknown := [str(field) for field in value if field not in SCHEDULE_FIELDS]:
        raise RequestError(f"schedule: {', '.join(unknown)}: no such field; the fields are {_KNOWN_FIELDS}")
    try:
        return {name: None if given is None else read_field(name, given) for name, given in value.items()}
    except CheckpointError as error:
        raise RequestError(f"schedule: {str(error).removeprefix('scheduler config: ')}") from error


def _parse_fields(entries: Iterable[str]) -> dict[str, Any]:
    """Parse several names of schedules or `FIELD=VALUE`; a value that is not JSON is text."""
    values: dict[str, Any] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            try:
                values |= schedule_named(entry)
            except RequestError as error:
                raise ValueError(f"{error}; on the command line, a field is FIELD=VALUE") from error
            continue
        if name not in SCHEDULE_FIELDS:
            raise ValueError(f"{entry!r} is not FIELD=VALUE with one of the fields {_KNOWN_FIELDS}")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


FIELDS = Kind(
    "the name of a schedule, such as 'karras', or a dict of fields, such as {'use_karras_sigmas': True}",
    lambda value: isinstance(value, str | Mapping),
    _checked_fields,
    metavar="NAME|FIELD=VALUE",
    parse=_parse_fields,
)


def _understood(value: str) -> str:
    """A sampler's name as it was given, once it is known to mean something."""
    sampler_named(value)
    return str(value)


SAMPLER = Kind(
    f"one of {', '.join(sorted(SAMPLERS))}",
    lambda value: isinstance(value, str),
    _understood,
    metavar="NAME",
    form="a name, also another program's",
)


def _falls(value: Any) -> bool:
    """Whether a value is a list of at least one number of 0 or more, each below the one before."""
    numbers = is_list(value) and len(value) > 0 and all(is_number(entry, 0) for entry in value)
    return numbers and all(one > other for one, other in pairwise(value))


def _parse_list(text: str) -> list[float]:
    """Parse `[999, 499]` or `999,499`."""
    try:
        values = json.loads(text if text.strip().startswith("[") else f"[{text}]")
    except ValueError:
        values = None
    if not values or not all(is_number(value) for value in values):
        raise ValueError(f"{text!r} is not a list of numbers, such as 999,749,499,249")
    return list(values)


def falling(example: str) -> Kind:
    """A list of numbers, each below the one before."""
    return Kind(
        f"a list of numbers that fall, such as {example}",
        _falls,
        lambda value: tuple(map(python_number, value)),
        metavar="LIST",
        parse=_parse_list,
    )
