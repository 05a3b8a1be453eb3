r"""Weights inside a prompt: `a (red:1.3) circle` makes red count more, `(red:0.6)` less.

Only parentheses that end in a colon and a number are weights, and they may be nested; other parentheses are part of the
text. `\(` and `\)` are parentheses that never begin or end a weight.
"""

import re
from dataclasses import dataclass

from latentrt.runtime.errors import RequestError

MARKS = re.compile(r"\\[()]|\(|:[^():\\]*\)|\)")

NUMBER = re.compile(r"\s*\d*\.?\d+\s*")
UNCLOSED = re.compile(r":\s*\d*\.?\d+\s*$")

LARGEST_WEIGHT = 10.0


@dataclass(slots=True)
class Fragment:
    """A stretch of a prompt and its weight."""

    text: str
    weight: float = 1.0


def parse_weights(prompt: str) -> list[Fragment]:
    """The fragments of a prompt, in order; their texts, joined, are the prompt without its weights.

    Raises:
        RequestError: a weight is not a number from 0 to 10, or its parenthesis is not closed.
    """
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
        elif symbol.startswith(":") and opened:
            first = opened.pop()
            weight = _weight(prompt, symbol[1:-1])
            del fragments[first]  # the parenthesis itself
            for fragment in fragments[first:]:
                fragment.weight *= weight
        else:
            if symbol == ")" and opened:
                opened.pop()
            take(symbol.removeprefix("\\"))
    take(prompt[place:])
    if opened and UNCLOSED.search(prompt):
        raise RequestError(f"prompt {_brief(prompt)}: the weight at its end has no closing parenthesis; add )")
    return _merged(fragments)


def _weight(prompt: str, text: str) -> float:
    if not NUMBER.fullmatch(text) or not float(text) <= LARGEST_WEIGHT:
        raise RequestError(
            f"prompt {_brief(prompt)}: {text.strip()!r} is not a weight; write a number from 0 to "
            rf"{LARGEST_WEIGHT:.0f}, as in (word:1.3), or \( and \) for parentheses that belong to the text"
        )
    return float(text)


def _merged(fragments: list[Fragment]) -> list[Fragment]:
    """Join neighbours of equal weight, so that words which a mark had cut are whole again."""
    merged: list[Fragment] = []
    for fragment in fragments:
        if merged and merged[-1].weight == fragment.weight:
            merged[-1].text += fragment.text
        else:
            merged.append(fragment)
    return merged


def _brief(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 40 else f"{prompt[:40]}…")
