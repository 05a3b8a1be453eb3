r"""Prompts that change with the step, as AUTOMATIC1111's web interface writes them.

`[from:to:when]` is `from` up to step `when` and `to` after it, `[to:when]` begins with nothing, `[from::when]` ends
with nothing; `when` is a number of steps, or, with a point in it, a share of them. `[a|b]` is `a` on steps 1, 3, … and
`b` on steps 2, 4, …. All may be nested. Brackets that are none of these stay as they are, for the attention that they
mean; those that do not close are text, and a backslash keeps the next character out of all this. Source: the grammar in
modules/prompt_parser.py of AUTOMATIC1111/stable-diffusion-webui.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

CLOSING = {"(": ")", "[": "]"}

WHEN = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Changing:
    """Texts that take turns: `choose` gives the number of the one at a step, from 1; `changes`: steps that end one."""

    texts: tuple["Pieces", ...]
    choose: Callable[[int], int]
    changes: frozenset[int]


Pieces = tuple[str | Changing, ...]
"""A text: what never changes, and what does."""


def texts_by_step(prompt: str, steps: int) -> list[tuple[int, str]]:
    """(last step, text) of every stretch of steps, the last one at `steps`."""
    pieces = _parse(prompt, steps)
    ends = sorted({steps, *(step for step in _changes(pieces) if 1 <= step <= steps)})
    return [(end, _text(pieces, end)) for end in ends]


def _parse(text: str, steps: int) -> Pieces:
    pieces: list[str | Changing] = []
    closed_by = _matches(text)
    place = 0
    while place < len(text):
        end = closed_by.get(place)
        if text[place] == "[" and end is not None:
            changing = _changing(text[place + 1 : end], steps)
            if changing is not None:
                pieces.append(changing)
                place = end + 1
                continue
        width = 2 if text[place] == "\\" else 1
        pieces.append(text[place : place + width])
        place += width
    return tuple(pieces)


def _matches(text: str) -> dict[int, int]:
    """The places of brackets that are closed, and of those that close them; a wrong one in between closes neither."""
    found: dict[int, int] = {}
    opened: list[int] = []
    place = 0
    while place < len(text):
        letter = text[place]
        if letter in CLOSING:
            opened.append(place)
        elif letter in CLOSING.values():
            if opened and CLOSING[text[opened[-1]]] == letter:
                found[opened.pop()] = place
            else:
                opened.clear()
        place += 2 if letter == "\\" else 1
    return found


def _changing(inside: str, steps: int) -> Changing | None:
    """What stands between two square brackets, if it changes with the step."""
    parts = _split(inside, ":")
    when = WHEN.fullmatch(parts[-1])
    if when is not None and len(parts) in (2, 3):
        number = float(when[1])
        last = min(steps, int(number * steps if "." in when[1] else number))
        ends = parts[:-1] if len(parts) == 3 else ["", parts[0]]
        return Changing(tuple(_parse(text, steps) for text in ends), lambda step: int(step > last), frozenset({last}))
    turns = _split(inside, "|")
    if len(turns) > 1 and len(parts) == 1:
        texts = tuple(_parse(text, steps) for text in turns)
        return Changing(texts, lambda step: (step - 1) % len(texts), frozenset(range(1, steps + 1)))
    return None


def _split(text: str, mark: str) -> list[str]:
    """Split at marks that stand outside all closed brackets."""
    closed_by = _matches(text)
    parts, start, place = [], 0, 0
    while place < len(text):
        if text[place] == mark:
            parts.append(text[start:place])
            start = place + 1
        place = closed_by.get(place, place + (text[place] == "\\")) + 1
    return [*parts, text[start:]]


def _changes(pieces: Pieces) -> Iterator[int]:
    for piece in pieces:
        if isinstance(piece, Changing):
            yield from piece.changes
            for text in piece.texts:
                yield from _changes(text)


def _text(pieces: Pieces, step: int) -> str:
    return "".join(
        piece if isinstance(piece, str) else _text(piece.texts[piece.choose(step)], step) for piece in pieces
    )
