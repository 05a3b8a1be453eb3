"""From a text to the token rows of an encoder and their weights, in either syntax."""

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.text.a1111_weights import chunks
from latentrt.runtime.text.prompt_weights import parse_weights
from latentrt.runtime.text.tokenizer import Tokenizer


def token_rows(
    tokenizer: Tokenizer, text: str, syntax: str = "latentrt"
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Token ids and weights, both (chunks, 77), of a text that may hold weights."""
    if syntax == "a1111":
        parts = list(chunks(tokenizer, text))
    else:
        parts = [[(token, part.weight) for part in parse_weights(text) for token in tokenizer.encode(part.text)]]
    rows = [tokenizer.rows([token for token, _ in part]) for part in parts]
    weights = [_weights([weight for _, weight in part], len(own)) for part, own in zip(parts, rows, strict=True)]
    return np.concatenate(rows), np.concatenate(weights)


def _weights(flat: list[float], chunks: int) -> NDArray[np.float32]:
    """Weights (chunks, 77) of tokens; those of begin, end and padding are 1."""
    weights = np.ones((chunks, TOKENS_PER_CHUNK), np.float32)
    inner = np.ones(weights[:, 1:-1].size, np.float32)
    inner[: len(flat)] = flat
    weights[:, 1:-1] = inner.reshape(chunks, -1)
    return weights


def padded_rows(tokenizer: Tokenizer, text: str, chunks: int, syntax: str = "latentrt") -> NDArray[np.int64]:
    """Token ids (chunks, 77): the text's, then empty chunks, so that all texts of a batch are equally long."""
    own, _ = token_rows(tokenizer, text, syntax)
    return np.concatenate([own, *[tokenizer.empty_chunk()] * (chunks - len(own))])
