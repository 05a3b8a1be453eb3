r"""Attention in a prompt as AUTOMATIC1111's web interface writes it, and its chunks of 75 tokens.

`(word)` counts 1.1 times, `[word]` 1 / 1.1 times, `(word:1.3)` 1.3 times, nested ones multiply; a bracket that nothing
closes reaches to the end. `\(`, `\)`, `\[`, `\]` and `\\` are text; other backslashes vanish. BREAK begins a new chunk.
A comma within the last 20 tokens of a full chunk takes what follows it into the next one. Source:
modules/prompt_parser.py and modules/sd_hijack_clip.py in AUTOMATIC1111/stable-diffusion-webui.
"""

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.text.prompt_weights import Fragment, merged
from latentrt.runtime.text.tokenizer import Tokenizer

MARKS = re.compile(r"\\[()\[\]\\]|\\|[()\[\]]|:([+-]?[.\d]+)\)|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\s*\bBREAK\b\s*")

UP, DOWN = 1.1, 1 / 1.1
"""What a round and a square bracket multiply by."""

ROOM = TOKENS_PER_CHUNK - 2
"""Tokens of a text in one chunk, beside its begin and end."""

WRAP = 20
"""Tokens behind a comma that a full chunk hands on to the next."""

Chunk = list[tuple[int, float]]
"""Tokens and their weights."""


def parse_attention(prompt: str) -> list[list[Fragment]]:
    """The fragments between one BREAK and the next, in order; at least one, which may be empty."""
    parts: list[list[Fragment]] = [[]]
    placed: list[Fragment] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def take(text: str) -> None:
        placed.append(Fragment(text))
        parts[-1].append(placed[-1])

    def close(bracket: str, factor: float) -> None:
        for fragment in placed[opened[bracket].pop() :]:
            fragment.weight *= factor

    for mark in MARKS.finditer(prompt):
        symbol, weight = mark.group(), _number(mark[1])
        if symbol in opened:
            opened[symbol].append(len(placed))
        elif weight is not None and opened["("]:
            close("(", weight)
        elif symbol == ")" and opened["("]:
            close("(", UP)
        elif symbol == "]" and opened["["]:
            close("[", DOWN)
        elif symbol.startswith("\\"):
            take(symbol[1:])
        else:
            for number, text in enumerate(BREAK.split(symbol)):
                if number:
                    parts.append([])
                take(text)
    for bracket, factor in (("(", UP), ("[", DOWN)):
        while opened[bracket]:
            close(bracket, factor)
    return [merged(part) for part in parts]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # two points, for one
        return None


def chunks(tokenizer: Tokenizer, prompt: str) -> Iterator[Chunk]:
    """The prompt's chunks of up to 75 tokens; at least one, which may be empty."""
    comma = tokenizer.encode(",")
    parts = parse_attention(prompt)
    if len(parts) > 1 and not any(one.text for one in parts[-1]):
        del parts[-1]  # a BREAK at the end begins nothing
    for part in parts:
        yield from _filled([(token, one.weight) for one in part for token in tokenizer.encode(one.text)], comma)


def _filled(tokens: Chunk, comma: list[int]) -> Iterator[Chunk]:
    """Chunks of tokens that no BREAK divides."""
    chunk: Chunk = []
    last_comma = -1
    for entry in tokens:
        is_comma = [entry[0]] == comma
        handed: Chunk = []
        if len(chunk) == ROOM:
            if not is_comma and last_comma >= 0 and len(chunk) - last_comma <= WRAP:
                chunk, handed = chunk[: last_comma + 1], chunk[last_comma + 1 :]
            yield chunk
            chunk, last_comma = handed, -1
        elif is_comma:
            last_comma = len(chunk)
        chunk.append(entry)
    yield chunk


def emphasised(hidden: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Hidden states (chunks, tokens, width) times the weights (chunks, tokens), each chunk brought back to its mean.

    The interface's emphasis mode "Original" (modules/sd_emphasis.py).
    """
    scaled = hidden * weights[..., None]
    means, scaled_means = (values.mean(axis=(1, 2), keepdims=True) for values in (hidden, scaled))
    return np.asarray(scaled * np.where(scaled_means == 0, 1, means / np.where(scaled_means == 0, 1, scaled_means)))
