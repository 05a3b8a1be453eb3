"""The fields of a network's config: types as its class's signature has them, and defaults where a file says nothing.

diffusers and transformers pass whatever a file holds on to their constructors, where a wrong type becomes an error of
arithmetic somewhere. Here a config is checked as it is read: a list stands for a tuple of any length, as in diffusers'
own configs, and null for the default where the class does not take None.
"""

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic_core import to_json

from latentrt.export.random_weights import tensor_shapes
from latentrt.export.sources.source import Config
from latentrt.runtime.errors import CheckpointError

CONFIG_CLASSES: Mapping[str, tuple[str, str]] = {
    "UNet2DConditionModel": ("diffusers", "UNet2DConditionModel"),
    "AutoencoderKL": ("diffusers", "AutoencoderKL"),
    "AutoencoderTiny": ("diffusers", "AutoencoderTiny"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextConfig"),
    "text_encoder_2": ("transformers", "CLIPTextConfig"),
}
"""`_class_name`, or else the folder, of a config -> library and name of the class whose signature describes it."""

INDEX_ENTRIES = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "unet", "vae")
"""Fields of `model_index.json` that name a library and a class."""


def checked_config(config: Config, folder: str) -> Config:
    """Check the fields that a network's class knows, and add the defaults of those that are missing or null.

    Configs of other classes are given back as they are.

    Raises:
        CheckpointError: a field is of another type; names file and field.
    """
    kind = CONFIG_CLASSES.get(str(config.get("_class_name"))) or CONFIG_CLASSES.get(folder)
    if kind is None:
        return config
    defaults: dict[str, Any] = {}
    for name, (annotation, default) in _signature(*kind).items():
        if config.get(name) is None and (name not in config or NoneType not in _members(annotation)):
            if default is not inspect.Parameter.empty:
                defaults[name] = list(default) if isinstance(default, tuple) else default
        elif name in config:
            _check(config, name, annotation)
    return Config(config.file, config | defaults)


def checked_index(index: Config) -> Config:
    """Check the entries of a `model_index.json` that are read.

    Raises:
        CheckpointError: an entry is not a library and a class.
    """
    for name in INDEX_ENTRIES:
        if index.get(name) is not None:
            _check(index, name, tuple[str | None, ...], "a list of a library and a class")
            if len(index[name]) != 2:
                raise CheckpointError(f"{index.file}: {name} is {index[name]!r}; it must be a library and a class")
    _check(index, "force_zeros_for_empty_prompt", bool | None)
    return index


def check_constructs(kind: Any, config: Config) -> None:
    """Raise `CheckpointError` if a network's class refuses a config whose fields are of the right types."""
    try:
        tensor_shapes(kind, config)
    except Exception as error:  # constructors raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{config.file}: {kind.__name__} cannot be made from it: {reason}. Download the checkpoint again"
        ) from error


def positive(config: Config, name: str) -> int:
    """Read a field that must be a whole number above 0.

    Raises:
        CheckpointError: it is missing, null or something else.
    """
    number = config[name]
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise CheckpointError(f"{config.file}: {name} is {number!r}; it must be a whole number above 0")
    return number


def one_for_all(config: Config, name: str) -> int:
    """Read the one number behind a field that holds a number, or a list with an equal number per block or axis.

    Raises:
        CheckpointError: the numbers differ, or are none.
    """
    value = config[name]
    values = value if isinstance(value, list) else [value]
    if len(set(values)) != 1:
        raise CheckpointError(f"{config.file}: {name} is {value}; latentrt serves one value for all")
    return positive(Config(config.file, {name: values[0]}), name)


def _check(config: Config, name: str, annotation: Any, words: str = "") -> None:
    try:
        _adapter(annotation).validate_json(to_json(config.get(name), inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        needed = words or " or ".join(dict.fromkeys(_spelled(annotation)))
        raise CheckpointError(
            f"{config.file}: {name} is {config.get(name)!r}; it must be {needed}. Download the checkpoint again"
        ) from error


@cache
def _signature(library: str, name: str) -> Mapping[str, tuple[Any, Any]]:
    """Fields of a class's config -> their types, and defaults; without those that come from base classes."""
    kind = getattr(import_module(library), name)
    if library == "diffusers":
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
        return {entry.name: (entry.annotation, entry.default) for entry in parameters}
    fields = inspect.get_annotations(kind).items()
    return {name: (annotation, getattr(kind, name)) for name, annotation in fields if hasattr(kind, name)}


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(_loosened(annotation), config=ConfigDict(allow_inf_nan=False))
    except PydanticSchemaGenerationError:
        return TypeAdapter(Any)


def _loosened(annotation: Any) -> Any:
    """The type with tuples of any length; where they nest, entries may also be single."""
    members = _members(annotation)
    singles = tuple(member for member in members if not _is_tuple(member))
    leaves = tuple(dict.fromkeys(leaf for member in members if _is_tuple(member) for leaf in _leaves(member)))
    if not leaves:
        return annotation
    entry: Any = Union[leaves]  # noqa: UP007 - made at run time
    if any(_is_tuple(inner) for member in members if _is_tuple(member) for inner in get_args(member)):
        entry = entry | tuple[entry, ...]
    return Union[(*singles, tuple[entry, ...])]


def _is_tuple(kind: Any) -> bool:
    return kind is tuple or get_origin(kind) is tuple


def _leaves(kind: Any) -> Iterator[Any]:
    """The types within a tuple's type; those of diffusers' bare `tuple` are numbers."""
    if kind is tuple:
        yield int
    elif _is_tuple(kind):
        for inner in get_args(kind):
            yield from () if inner is Ellipsis else _leaves(inner)
    else:
        yield kind


WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    NoneType: ("null", "null"),
}
"""Types in messages, one and several."""


def _spelled(annotation: Any) -> Iterator[str]:
    for member in _members(annotation):
        if _is_tuple(member):
            yield f"a list of {' or '.join(dict.fromkeys(WORDS[leaf][1] for leaf in _leaves(member)))}"
        else:
            yield WORDS[member][0] if member in WORDS else str(member)
