"""From prompts to what the U-Net is conditioned on: tokens, text-encoder outputs, time ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.backends import Engine
from latentrt.runtime.model import Model, TextEncoder
from latentrt.runtime.request import Request
from latentrt.runtime.specs import TOKENS_PER_CHUNK
from latentrt.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The U-Net's inputs that stay the same over all steps; with guidance, the negative rows come first.

    hidden (rows, tokens, context width), pooled (rows, pooled width), time_ids (rows, 6).
    """

    hidden: NDArray[Any]
    pooled: NDArray[Any]
    time_ids: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """The tokenizers and text encoders of one bundle."""

    model: Model
    tokenizers: Mapping[str, Tokenizer]
    engines: Mapping[str, Engine]

    def longest(self, request: Request) -> tuple[str, int]:
        """The text of the request that needs most tokens, and how many, in whole chunks of 77."""
        chunks = {
            text: max(len(tokenizer.chunks(text)) for tokenizer in self.tokenizers.values())
            for text in sorted(request.texts)
        }
        longest = max(chunks, key=lambda text: chunks[text])
        return longest, chunks[longest] * TOKENS_PER_CHUNK

    def encode(self, request: Request, tokens: int) -> Conditioning:
        """Encode every text once, in one call per encoder, and lay the rows out for the U-Net."""
        absent = None if self.model.zero_negative else ""  # None stands for a row of zeros
        negatives = [absent if text is None else text for text in request.negatives] if request.guided else []
        rows = [*negatives, *request.prompts]
        texts = sorted({text for text in rows if text is not None})
        order = [len(texts) if text is None else texts.index(text) for text in rows]
        hidden, pooled = (
            np.concatenate([encoded, np.zeros_like(encoded[:1])])[order].repeat(request.images, axis=0)
            for encoded in self._encode_texts(texts, tokens)
        )
        return Conditioning(hidden, pooled, self._time_ids(request))

    def _encode_texts(self, texts: Sequence[str], tokens: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Hidden states (texts, tokens, context width) and pooled text (texts, pooled width)."""
        outputs = [self._run(encoder, texts, tokens // TOKENS_PER_CHUNK) for encoder in self.model.text_encoders]
        hidden = np.concatenate([found["hidden"].reshape(len(texts), tokens, -1) for found in outputs], axis=-1)
        first_chunk = slice(None, None, tokens // TOKENS_PER_CHUNK)
        pooled = np.concatenate([found["pooled"][first_chunk] for found in outputs if "pooled" in found], axis=-1)
        return hidden, pooled

    def _run(self, encoder: TextEncoder, texts: Sequence[str], chunks: int) -> dict[str, NDArray[Any]]:
        tokenizer, engine = self.tokenizers[encoder.tokenizer], self.engines[encoder.component]
        ids = np.concatenate([_padded(tokenizer, text, chunks) for text in texts])
        buffers = engine.bind({"texts": len(ids)})
        buffers["input_ids"].write(ids)
        engine.run()
        return {port.name: buffers[port.name].numpy() for port in engine.spec.outputs}

    def _time_ids(self, request: Request) -> NDArray[np.float32]:
        positive = request.conditioning.time_ids(request.height, request.width)
        negative = (request.negative_conditioning or request.conditioning).time_ids(request.height, request.width)
        branches = [negative, positive] if request.guided else [positive]
        return np.repeat(np.array(branches, np.float32), request.count, axis=0)


def _padded(tokenizer: Tokenizer, text: str, chunks: int) -> NDArray[np.int64]:
    """The text's chunks, then empty ones up to `chunks`, so that all rows of a batch are equally long."""
    own = tokenizer.chunks(text)
    return np.concatenate([own, *[tokenizer.empty_chunk()] * (chunks - len(own))])
