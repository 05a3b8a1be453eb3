r"""Weights inside a prompt: `a (red:1.3) circle` makes red count more, `(red:0.6)` less.

Only parentheses that end in a colon and a number from 0 to 10 are weights, and they may be nested; whatever else stands
in a prompt is text: `(style: anime)`, `(happy :)`. A number has digits after its point, if it has one: `(word:1.)` is
text. So are two whole numbers around the colon, as in `(12:30)` and `(16:9)`, and a weight of nothing: `(:3)`. `\(` and
`\)` are parentheses that never begin or end a weight.
"""

import logging
import re
from dataclasses import dataclass
from functools import lru_cache

log = logging.getLogger(__name__)

MARKS = re.compile(r"\\[()]|\(|:[^():\\]*\)|\)")

NUMBER = re.compile(r"\s*\d*\.?\d+\s*")
NEARLY = re.compile(r"\(([^():\\]*)(:\s*[-+]?\d*\.?\d+(?:\.|e\d+)?\s*(?:\)|$))")
"""Like a weight: a word, a colon and a number, though it may be out of range, or lack its parenthesis."""

LARGEST_WEIGHT = 10.0


@dataclass(slots=True)
class Fragment:
    """A stretch of a prompt and its weight."""

    text: str
    weight: float = 1.0


def parse_weights(prompt: str) -> list[Fragment]:
    """The fragments of a prompt, in order; their texts, joined, are the prompt without its weights."""
    fragments: list[Fragment] = []
    opened: list[int] = []
    place = 0

    def take(text: str) -> None:
        if text:
            fragments.append(Fragment(text))

    for mark in MARKS.finditer(prompt):
        take(prompt[place : mark.start()])
        place, symbol = mark.end(), mark.group()
        if symbol == "(":
            opened.append(len(fragments))
            take(symbol)
        elif opened and (weight := _weight(prompt[: mark.start()], symbol)) is not None:
            first = opened.pop()
            del fragments[first]  # the parenthesis itself
            for fragment in fragments[first:]:
                fragment.weight *= weight
        else:
            if symbol.endswith(")") and not symbol.startswith("\\") and opened:
                opened.pop()
            take(symbol.removeprefix("\\"))
    take(prompt[place:])
    _tell_of_text(prompt)
    return merged(fragments)


def _weight(before: str, symbol: str) -> float | None:
    """The weight that a colon, a text and a parenthesis stand for; None where they are text, after what is `before`."""
    text = symbol[1:-1]
    if not symbol.startswith(":") or not NUMBER.fullmatch(text) or float(text) > LARGEST_WEIGHT:
        return None
    is_ratio = before[-1:].isdigit() and text.isdigit()
    is_empty = before.rstrip().endswith("(")
    return None if is_ratio or is_empty else float(text)


@lru_cache(maxsize=1024)
def _tell_of_text(prompt: str) -> None:
    """Say once of a prompt what in it is text, though it may have been meant as a weight."""
    for match in NEARLY.finditer(prompt):
        has_word = any(letter.isalpha() for letter in match[1])
        if has_word and (_weight(match[1], match[2]) is None or not match[2].endswith(")")):
            log.warning(
                "prompt: %r is text. A weight is a number from 0 to %d, as in (word:1.3)", match[0], LARGEST_WEIGHT
            )


def merged(fragments: list[Fragment]) -> list[Fragment]:
    """Join neighbours of equal weight, so that words which a mark had cut are whole again."""
    merged: list[Fragment] = []
    for fragment in fragments:
        if merged and merged[-1].weight == fragment.weight:
            merged[-1].text += fragment.text
        else:
            merged.append(fragment)
    return merged
