"""Kinds of values that settings have: how each is checked, and how it is written on a command line."""

import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import LatentRTError, RequestError, shown
from latentrt.runtime.lora.mix import read_loras

MOST = 2**64 - 1
"""The largest whole number that any setting takes."""

MOST_VALUES = 1_000_000
"""How many values a setting takes at most, one per prompt or picture; an iterator may never end."""

ONE_VALUE = (str, bytes, bytearray, Mapping, Set)
"""Iterables that are no list of values."""


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value, and its check.

    `expects` ends the sentence "must be …". `to_python` turns an accepted value into a Python one, so that numpy's
    small integers do not overflow later on. `text_type` is the type that a command line reads (int, float, bool or
    str); `parse` makes the value from that, or raises ValueError if it is not written as `metavar` says. `form` says
    how a program gives the value, if the type does not.
    """

    expects: str
    accepts: Callable[[Any], bool]
    to_python: Callable[[Any], Any] = _unchanged
    text_type: type = str
    metavar: str | None = None
    form: str = ""
    parse: Callable[[Any], Any] = _unchanged

    def read(self, name: str, value: Any) -> Any:
        """The checked value. `name` is the setting's, for the message.

        Raises:
            RequestError: the value is of another kind, or out of range.
        """
        value = scalar(value)
        try:
            if self.accepts(value):
                return self.to_python(value)
        except LatentRTError:
            raise
        except Exception as error:  # a foreign object may raise anything when it is compared or converted
            raise RequestError(f"{name} {shown(value)}: must be {self.expects}") from error
        raise RequestError(f"{name} {shown(value)}: must be {self.expects}")


def scalar(value: Any) -> Any:
    """The value inside an array without axes; other values as they are."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def is_whole(value: object, least: int, most: int | None = None) -> bool:
    """Whether a value is a whole number in this range, of Python or numpy; True and False are not."""
    return (
        isinstance(value, Integral)
        and not isinstance(value, bool | np.timedelta64)
        and least <= int(value) <= (MOST if most is None else most)
    )


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether a value is a finite number in this range, of Python or numpy; True and False are not."""
    if not isinstance(value, Real) or isinstance(value, bool | np.timedelta64):
        return False
    try:
        number = float(value)
    except OverflowError:
        return False
    return math.isfinite(number) and least <= number <= most


def is_array(value: Any) -> bool:
    """Whether numpy reads it as numbers; raises whatever a foreign object raises."""
    return not isinstance(value, str | bytes | bool) and np.asarray(value).dtype.kind in "fiu"


def one_or_more(value: object) -> tuple[Any, ...]:
    """One value, or several, as a tuple; a text is one value, and so are a dict, bytes, and an array of pixels.

    Raises:
        RequestError: there are more values than anybody would draw.
    """
    is_one = isinstance(value, ONE_VALUE) or (isinstance(value, np.ndarray) and value.ndim != 1)
    if not isinstance(value, Iterable) or is_one:
        return (value,)
    try:
        values = tuple(itertools.islice(value, MOST_VALUES + 1))
    except Exception:  # a foreign object may raise anything; as one value it is refused
        return (value,)
    if len(values) > MOST_VALUES:
        raise RequestError(f"{shown(value)}: more than {MOST_VALUES} values; give fewer")
    return values


def python_number(value: Any) -> int | float:
    """A number as Python's int or float."""
    return int(value) if isinstance(value, Integral) else float(value)


def whole(least: int, most: int | None = None) -> Kind:
    """A whole number in a range."""
    words = f"of at least {least}" if most is None else f"from {least} to {most}"
    return Kind(f"a whole number {words}", lambda value: is_whole(value, least, most), int, int, "NUMBER")


def number(expects: str, least: float = -math.inf, most: float = math.inf) -> Kind:
    """A finite number in a range."""
    return Kind(expects, lambda value: is_number(value, least, most), python_number, float, "NUMBER")


def share(note: str = "") -> Kind:
    """A number from 0 to 1."""
    return number(f"a number from 0 to 1{note}", 0, 1)


def one_of(names: Iterable[str]) -> Kind:
    """One of several names."""
    known = sorted(names)
    return Kind(
        f"one of {', '.join(known)}",
        lambda value: isinstance(value, str) and value in known,
        str,
        metavar="NAME",
        form="a name",
    )


def is_list(value: Any) -> bool:
    """Whether a value is a list, a tuple or an array."""
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, ONE_VALUE)


def _is_pair(value: Any, accepts: Callable[[Any], bool]) -> bool:
    return is_list(value) and len(value) == 2 and all(map(accepts, value))


def _match_two(text: str, pattern: str, words: str) -> tuple[str, str]:
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ValueError(f"{text!r} is not {words}")
    return match[1], match[2]


def _parse_interval(text: str) -> tuple[float, float]:
    low, high = _match_two(text, r"([\d.]+):([\d.]+)", "FROM:TO, such as 0.2:0.8")
    return float(low), float(high)


def _parse_pair(text: str) -> tuple[int, int]:
    """`ACROSSxDOWN`, as people write sizes, turned into (down, across), SDXL's own order."""
    across, down = _match_two(text, r"(\d+)x(\d+)", "two whole numbers, across x down, such as 1024x768")
    return int(down), int(across)


def pair(form: str = "(height, width)", metavar: str = "WIDTHxHEIGHT") -> Kind:
    """Two whole numbers: a size or a crop's corner. Programs give height or top first, command lines width or left."""
    return Kind(
        "two whole numbers of at least 0, (height, width) or (top, left)",
        lambda value: _is_pair(value, lambda length: is_whole(length, 0)),
        lambda value: (int(value[0]), int(value[1])),
        metavar=metavar,
        form=form,
        parse=_parse_pair,
    )


def _read_latents(value: Any) -> NDArray[np.float32]:
    """Latents as an array of their own, so that the caller may change the original meanwhile."""
    return np.array(value, np.float32)


def _text(value: str | None) -> str | None:
    return value if value is None else str(value)


TEXT = Kind("text", lambda value: isinstance(value, str), str, metavar="TEXT")
OPTIONAL_TEXT = Kind("text", lambda value: value is None or isinstance(value, str), _text, metavar="TEXT")
PATH = Kind("a path, as text or as a Path", lambda value: isinstance(value, str | os.PathLike) and bool(str(value)))
FLAG = Kind("True or False", lambda value: isinstance(value, bool | np.bool_), bool, bool)
INTERVAL = Kind(
    "two shares of the steps, from and to, such as (0.2, 0.8)",
    lambda value: _is_pair(value, lambda bound: is_number(bound, 0, 1)) and value[0] <= value[1],
    lambda value: (python_number(value[0]), python_number(value[1])),
    metavar="FROM:TO",
    parse=_parse_interval,
)
LORAS = Kind(
    "a dict of strengths by name, such as {'style': 0.8}",
    lambda value: isinstance(value, Mapping),
    lambda value: read_loras(value, is_number),
    form="a dict of strengths by name",
)
PICTURE = Kind(
    "a picture",
    lambda value: True,
    metavar="FILE",
    form="a PIL image, or an array (height, width, 3) of bytes or of floats from 0 to 1",
)
MASK = Kind(
    "a mask",
    lambda value: True,
    metavar="FILE",
    form="a PIL image, or an array (height, width) of bytes, 0 and 1, floats from 0 to 1, or booleans",
)
"""`latentrt.runtime.request.images` checks pictures and masks, with the size that is asked for."""

LATENTS = Kind(
    "an array of numbers (images, 4, height / 8, width / 8), on the host",
    is_array,
    _read_latents,
    form="an array (images, 4, height / 8, width / 8)",
)
"""`latentrt.runtime.request.reading` checks latents against the model."""
